"""How a run stands for a launcher, from its folder and the queue alone.

done      result.json, or a diverged loss: nothing more will come
running   a living process holds the folder
queued    a job of the cluster is to do it, and waits or is about to begin
failed    an error ended it, or its process died: with the last line it said
missing   neither begun nor queued, or stopped on request
"""

import json
from dataclasses import dataclass
from pathlib import Path

from experiments.launch import slurm
from experiments.launch.job import LOG, Run, look
from experiments.records import checkpoint, record
from experiments.records.lock import died, holder

KINDS = ("done", "running", "queued", "failed", "missing")
TAIL = 8192  # bytes of a log that are searched for its last line


@dataclass(frozen=True)
class Now:
    """One of `KINDS`, and what is worth saying of it (empty, or beginning with ': ')."""

    kind: str
    remark: str = ""


def state(run: Run, queue: dict[str, str] | None) -> Now:
    """Return how a run stands; `queue` as slurm.queue() gives it, None where there is no Slurm."""
    found = look(run)
    if found.status == "finished":
        return Now("done")
    if found.status == "diverged":
        return Now("done", f": diverged ({_short(found.error or '')})")
    if busy := holder(run.folder):
        return Now("running", f": {busy}")
    note = slurm.submitted(run.folder)
    job = note.get("job")
    if job and queue is None:
        return Now("queued", f": job {job}, as far as one can tell without Slurm here")
    if job and queue and job in queue:
        return Now("queued", f": job {job} is {queue[job]}")
    return _ended(run, note.get("output"))


def _ended(run: Run, output: str | None) -> Now:
    """Tell what failed from what was stopped, and from what never began."""
    failure = _error(run.folder / record.FAILED)
    if failure:
        return Now("failed", f": {_short(failure)}")
    last = (output and last_line(Path(output))) or last_line(run.folder / LOG)
    if dead := died(run.folder):
        return Now("failed", f": {dead} is gone; last line: {_short(last or 'none')}")
    steps = checkpoint.steps(run.folder / "checkpoints")
    if last and last.startswith("error:"):
        return Now("failed", f": {_short(last)}")
    return Now("missing", f": stopped after step {steps[-1]}" if steps else "")


def _error(path: Path) -> str | None:
    """Return the error of failed.json, None if there is none."""
    try:
        return str(json.loads(path.read_text())["error"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return f"{path} cannot be read"


def last_line(path: Path) -> str | None:
    """Return the last line with anything in it of a text file, None if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            text = file.read().decode(errors="replace")
    except OSError:
        return None
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1] if lines else None


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else f"{line[:197]}..."
