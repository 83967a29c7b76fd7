"""What is left of a list of runs: submit it to a cluster, or say how every run stands.

Submitting twice at once is safe: one process looks and submits, a second is refused meanwhile, and
each run's folder has a lock of its own beside that.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from experiments import slurm
from experiments.config import BadInput
from experiments.job import Run
from experiments.lock import lock
from experiments.state import KINDS, Now, state


def on_slurm(runs: Sequence[Run], settings: slurm.Settings) -> None:
    """Submit the runs that are missing or failed, and say how the others stand."""
    folder = Path(runs[0].config.out, slurm.FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder):
        print(slurm.submit(missing(runs, slurm.queue()), settings), flush=True)


def missing(runs: Iterable[Run], queue: dict[str, str] | None) -> list[Run]:
    """Return the runs that are to be done, and say how the others stand."""
    todo, counts = [], Counter[str]()
    for run in runs:
        found = state(run, queue)
        counts[found.kind] += 1
        if found.kind in ("missing", "failed"):
            todo.append(run)
        elif found.kind != "done":
            print(_line(run, found))
    print(_sum(counts), flush=True)
    return todo


def status(runs: Iterable[Run]) -> None:
    """Print a line for every run that is not done, and how many are of each kind."""
    try:
        queue = slurm.queue()
    except BadInput:  # no Slurm here
        queue = None
    counts = Counter[str]()
    for run in runs:
        found = state(run, queue)
        counts[found.kind] += 1
        if found.kind != "done":
            print(_line(run, found))
    print(_sum(counts), flush=True)


def _line(run: Run, found: Now) -> str:
    return f"{found.kind:8}{run.name}{found.remark}"


def _sum(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[kind]} {kind}" for kind in KINDS)
