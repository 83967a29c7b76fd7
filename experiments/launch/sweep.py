"""What is left of a list of runs: submit it to a cluster, or say how every run stands.

Submitting twice at once is safe: one process looks and submits, a second is refused meanwhile, and
each run's folder has a lock of its own beside that.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from experiments.config.errors import BadInput
from experiments.launch import slurm
from experiments.launch.job import Run
from experiments.launch.state import KINDS, Now, state
from experiments.records.lock import lock

TO_DO = ("missing", "failed")


def on_slurm(runs: Sequence[Run], settings: slurm.Settings) -> None:
    """Submit the runs that are missing or failed, and say how the others stand."""
    folder = Path(runs[0].config.out, slurm.FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder):
        print(slurm.submit(missing(runs, slurm.queue()), settings), flush=True)


def missing(runs: Iterable[Run], queue: dict[str, str] | None) -> list[Run]:
    """Return the runs that are to be done, and say how the others stand."""
    found = _look(runs, queue, silent=("done", *TO_DO))
    return [run for run, now in found if now.kind in TO_DO]


def status(runs: Iterable[Run]) -> None:
    """Print a line for every run that is not done, and how many are of each kind."""
    try:
        queue = slurm.queue()
    except BadInput:  # no Slurm here
        queue = None
    _look(runs, queue, silent=("done",))


def _look(
    runs: Iterable[Run], queue: dict[str, str] | None, silent: Sequence[str]
) -> list[tuple[Run, Now]]:
    """Return how each run stands; print the kinds that are not silent, and how many of each."""
    found = [(run, state(run, queue)) for run in runs]
    for run, now in found:
        if now.kind not in silent:
            print(f"{now.kind:8}{run.name}{now.remark}")
    counts = Counter(now.kind for _, now in found)
    print(", ".join(f"{counts[kind]} {kind}" for kind in KINDS), flush=True)
    return found
