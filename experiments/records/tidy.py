"""What a probe leaves: `about.json`, and one CSV file for each table, in a folder of its own.

While it measures, finished pieces lie in `parts/`, so that one that was stopped goes on from there.
Imports no more than torch, agzo and the standard library.
"""

import csv
import io
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.records import machine

Row = dict[str, Any]
Tables = dict[str, list[Row]]
ABOUT, TRIAL = "about.json", ".trial"
DIGITS = 6  # significant digits of a number in a table: a picture needs no more


def about(probe: str, device: torch.device) -> dict[str, Any]:
    """Return what a probe's numbers stand on, for `write`."""
    return {
        "probe": probe,
        **machine.git_state(),
        "versions": machine.versions(),
        "machine": machine.about(device),
    }


def write(folder: Path, about: Mapping[str, Any], tables: Tables) -> None:
    """Write the tables, then `about.json`, whose presence says that the folder is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        replace(folder / f"{name}.csv", to_csv(rows))
    counts = {name: len(rows) for name, rows in sorted(tables.items())}
    replace(folder / ABOUT, json.dumps({**about, "rows": counts}, indent=1) + "\n")


class Kept:
    """Keeps the pieces of a measurement in `folder`/parts until the whole is there.

    A piece is used again for the same settings and the same commit without local changes.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder / "parts"
        self.stamp = _plain({"settings": settings, "code": machine.git_state()})

    def __call__(self, name: str, make: Callable[[], Any]) -> Any:
        """Return a piece as JSON gives it back: read from its file, or made now and kept."""
        path = self.folder / f"{re.sub(r'[^A-Za-z0-9.]+', '-', name)}.json"
        if path.exists() and self.stamp["code"]["git_dirty"] is False:
            found = read(path)
            if found.get("stamp") == self.stamp:
                return found["value"]
        value = _plain(make())
        self.folder.mkdir(parents=True, exist_ok=True)
        replace(path, json.dumps({"stamp": self.stamp, "value": value}) + "\n")
        return value

    def clear(self) -> None:
        """Remove the pieces."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def read(path: Path) -> dict[str, Any]:
    """Read a JSON object; anything else is an error that names the file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        found = error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds no JSON object; remove it to measure again")
    return found


def to_csv(rows: Sequence[Row]) -> str:
    """Write rows with the same keys as CSV; numbers that are not finite are an error."""
    if not rows:
        raise ValueError("rows=[]: a table needs at least one row")
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        if row.keys() != rows[0].keys():
            raise ValueError(f"row {row}: allowed are the columns {', '.join(rows[0])}")
        writer.writerow({key: _cell(key, value) for key, value in row.items()})
    return text.getvalue()


def finished(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Tell whether the folder holds these measurements already, before any work is done for it.

    Raises:
        ValueError: it cannot be written, or holds measurements of other settings.
    """
    writable(folder)
    path = folder / ABOUT
    if not path.exists():
        return False
    about = read(path)
    found, wanted = about.get("settings"), _plain(settings)
    given = found if isinstance(found, dict) else {}
    # An option that is "" was not given; one that came later is not in an older file.
    keys = sorted(k for k in {**given, **wanted} if (given.get(k) or "") != (wanted.get(k) or ""))
    if keys:
        raise ValueError(
            f"--out={folder}: it holds measurements with another {', '.join(keys)}; allowed is a "
            "folder of their own for new settings, or remove the old one"
        )
    absent = [name for name in about.get("rows", ()) if not (folder / f"{name}.csv").is_file()]
    if absent:
        raise ValueError(f"{folder}: lacks {absent[0]}.csv; remove {ABOUT} to measure again")
    return True


def writable(folder: Path) -> None:
    """Make a folder, and find out whether it can be written to before any work is done for it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace(folder / TRIAL, "")
        (folder / TRIAL).unlink()
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"--out={folder}: {reason}; allowed is a folder to write to") from error


def replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def _cell(key: str, value: Any) -> Any:
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise ValueError(f"{key}={value}: allowed are finite numbers")
        return f"{value:.{DIGITS}g}"
    return value
