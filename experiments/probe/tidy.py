"""What a probe leaves: `about.json`, and one CSV file for each table, in a folder of its own.

Imports no more than torch and the standard library.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from experiments import machine

Row = dict[str, Any]
Tables = dict[str, list[Row]]
ABOUT = "about.json"
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
    replace(folder / ABOUT, json.dumps({**about, "tables": sorted(tables)}, indent=1) + "\n")


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
    """Tell whether the folder holds these measurements already.

    Raises:
        ValueError: it holds measurements of other settings.
    """
    path = folder / ABOUT
    if not path.exists():
        return False
    found = json.loads(path.read_text())["settings"]
    if found != json.loads(json.dumps(dict(settings))):
        keys = [key for key in {**found, **settings} if found.get(key) != settings.get(key)]
        raise ValueError(
            f"--out={folder}: it holds measurements with another {', '.join(sorted(keys))}; "
            "allowed is a folder of their own for new settings, or remove the old one"
        )
    return True


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
