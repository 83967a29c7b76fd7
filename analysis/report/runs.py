"""Every run below a folder, finished or not: how it stands, its numbers, its logged steps, its log.

The tables read finished runs and stop at the first file that is wrong. A page has to show what is
wrong, so here each run is read for itself, and what cannot be read is said in its place.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.figures.style import label
from analysis.reading.load import RESULT, ResultError, points, read_json, read_result, row, value
from analysis.reading.suite import FAILED

METRICS, CONFIG, LOG = "metrics.jsonl", "config.yaml", "log.txt"
MARKS = (RESULT, FAILED, METRICS, LOG)  # a folder with one of these is a run's
LOG_LINES = 200


@dataclass(frozen=True)
class RunFolder:
    """One run's folder. `row` has the columns of `reading.load`, and is empty if not finished."""

    folder: Path
    state: str  # finished, diverged, failed, unfinished or unreadable
    why: str  # of a run that is not finished
    record: dict[str, Any] = field(default_factory=dict)
    row: dict[str, Any] = field(default_factory=dict)
    points: list[dict[str, Any]] = field(default_factory=list)
    config: str | dict[str, Any] | None = None
    log: str = ""

    @property
    def finished(self) -> bool:
        """Say whether the run has a result."""
        return self.state == "finished"

    @property
    def method(self) -> str:
        """Name the method of a finished run, with its variant."""
        variant = self.row["variant"]
        return label(self.row["method"]) + (f" ({variant})" if variant else "")


def find_runs(root: Path) -> list[RunFolder]:
    """Read every run below a folder, in the order of their paths."""
    folders = {path.parent for name in MARKS for path in root.rglob(name)}
    return [read_run(folder) for folder in sorted(folders)]


def read_run(folder: Path) -> RunFolder:
    """Read one run's folder; a file in it that cannot be read makes the run unreadable."""
    log = _log(folder / LOG)
    try:
        if (folder / RESULT).is_file():
            return _finished(folder, log)
        return _not_finished(folder, log)
    except (ResultError, OSError, UnicodeDecodeError) as error:
        return RunFolder(folder, "unreadable", _relative(str(error), folder), log=log)


def _finished(folder: Path, log: str) -> RunFolder:
    path = folder / RESULT
    record = read_result(path)
    flat = row(record, path)
    steps = points(value(record, "metrics", (list,), path), path)
    return RunFolder(folder, "finished", "", record, flat, steps, record["config"], log)


def _not_finished(folder: Path, log: str) -> RunFolder:
    """Read what a run has left that failed, was stopped, or is still at work."""
    state, why = "unfinished", "begun, without a result: stopped, or still at work"
    config: str | dict[str, Any] | None = None
    if (folder / CONFIG).is_file():
        config = (folder / CONFIG).read_text(encoding="utf-8")
    failed = folder / FAILED
    if failed.is_file():
        record = read_json(failed)
        state = "diverged" if record.get("diverged") is True else "failed"
        why = value(record, "error", (str, type(None)), failed) or "no message"
        kept = record.get("config")
        config = kept if isinstance(kept, dict) else config
    metrics = folder / METRICS
    steps = points(list(_rows(metrics)), metrics) if metrics.is_file() else []
    return RunFolder(folder, state, why, points=steps, config=config, log=log)


def _rows(path: Path) -> Iterator[Any]:
    """Read a log of steps; a last line without its end is one that is being written."""
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            raise ResultError(f"{path}: line {number} is not valid JSON ({error})") from None


def _log(path: Path) -> str:
    """Return the end of what a run printed; a rewritten progress line counts as lines."""
    if not path.is_file():
        return ""
    lines = path.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    left_out = len(lines) - LOG_LINES
    head = [f"({left_out:,} earlier lines: see {LOG} in the run's folder)"] if left_out > 0 else []
    return "\n".join([*head, *lines[-LOG_LINES:]])


def _relative(message: str, folder: Path) -> str:
    """Write the folder's own files by their names alone."""
    return message.replace(f"{folder}/", "")
