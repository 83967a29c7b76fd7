"""The record of a run on disk: result.json and metrics.jsonl.

Files are replaced whole (written beside, flushed, renamed), so a reader never sees half of one.
"""

import json
import os
from pathlib import Path
from typing import Any

from experiments.config.errors import BadInput

RESULT, FAILED, METRICS = "result.json", "failed.json", "metrics.jsonl"


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically; a number that is not finite is an error."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically."""
    beside = path.with_name(f".{path.name}.tmp")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


class CannotWrite(RuntimeError):
    """A file of the run cannot be written: the disk is full, or gone."""


def check_writable(folder: Path) -> None:
    """Refuse, before a model is loaded, a run's folder that cannot be made or written."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "cannot be written" if there.is_dir() else "is no folder"
        raise BadInput(f"out: {there} {why}, so {folder} cannot be; allowed is a folder of yours")


class Metrics:
    """The rows of metrics.jsonl; `rows` is what the file holds."""

    def __init__(self, folder: Path, rows: list[dict[str, Any]]) -> None:
        """Start the file with the rows of the checkpoint that is resumed, later ones cut off."""
        self.path = folder / METRICS
        self.rows = rows
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    def add(self, row: dict[str, Any]) -> None:
        """Append a row."""
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
