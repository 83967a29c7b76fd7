"""Read the benchmark's JSON files, strictly: which rows there are, and what they stand on.

A missing file, key or column stops with its name, and so does a benchmark that was stopped before
its last row, or files of several machines or numbers of threads: a figure with a silent gap is
worse than none.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.figures.style import label
from analysis.reading.load import NUMBER, OPTIONAL_NUMBER, ResultError, read_json, value
from analysis.reading.probe import code

VARIANTS = {"warm": "warm start", "tokens": "some tokens", "warm_tokens": "warm, some tokens"}
COMMAND = "python -m experiments.bench"
PARTS = ("forwards", "basis", "perturb", "update")
WHAT = ("shape", "dtype", "batch", "length", "mix", "method", "rank")  # what a row measured
MEASURED = ("parameters", "ratio", "ratio_least", "ratio_largest", "peak_gib", "peak_of_forward")
COLUMNS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("shape", "dtype", "method", "family", "status"), (str,)),
    **dict.fromkeys(("batch", "length", "rounds"), (int,)),
    "textbook": (str, type(None)),
    "rank": (int, type(None)),
    "target_ratio": OPTIONAL_NUMBER,
    **dict.fromkeys(PARTS, OPTIONAL_NUMBER),
}
Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """The rows of some files, and the sentences that say where they come from."""

    tables: list[Row]  # those that are no part of a sweep
    sweeps: list[Row]
    device: str
    origin: list[str]

    @property
    def rows(self) -> list[Row]:
        """Return all, the sweeps last: where both measured the same, a curve is of its sweep."""
        return [*self.tables, *self.sweeps]


def load(paths: Sequence[Path]) -> Bench:
    """Read files of one machine, with one number of threads, that measured different things."""
    tables, sweeps, devices, origin = [], [], {}, []
    for path in paths:
        record = read_json(path)
        command = value(record, "command", (str,), path)
        if command != COMMAND:
            raise ResultError(f"{path}: key command is {command!r}; expected {COMMAND!r}")
        if not value(record, "complete", (bool,), path):
            planned = value(record, "planned", (int,), path)
            raise ResultError(
                f"{path}: has {len(record['rows'])} of {planned} rows; run the same command again, "
                "which goes on from there"
            )
        count = len(value(record, "rows", (list,), path))
        found = [_row(record, index, path) for index in range(count)]
        if not found:
            raise ResultError(f"{path}: key rows is []; expected at least one row")
        kind = sweeps if value(record, "arguments.sweep", (list,), path) else tables
        kind += found
        threads = value(record, "machine.threads", (int,), path)
        device = f"{value(record, 'machine.device_name', (str,), path)}, {threads} thread(s)"
        devices.setdefault(device, path)
        origin.append(_origin(record, device, path))
    if len(devices) > 1:
        raise ResultError(
            f"files of several machines: {', '.join(f'{p} ({d})' for d, p in devices.items())}; "
            "expected one machine and number of threads in a figure"
        )
    for kind in (tables, sweeps):
        _once(kind)
    return Bench(tables, sweeps, next(iter(devices)), list(dict.fromkeys(origin)))


def _once(rows: Iterable[Row]) -> None:
    """Refuse a second measurement of the same: which of the two would a figure show?"""
    seen: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        first = seen.setdefault(tuple(row[key] for key in WHAT), row)
        if first is not row:
            raise ResultError(
                f"{first['path']} and {row['path']} both measured {row['method']} ({row['shape']}, "
                f"{row['dtype']}, {batch_name(row)}); draw them in figures of their own"
            )


def _row(record: dict[str, Any], index: int, path: Path) -> Row:
    """Check one row: what was measured must be there unless memory ran out."""
    name = f"rows[{index}]"
    row = record["rows"][index]
    if not isinstance(row, dict):
        raise ResultError(f"{path}: key {name} is {row!r}; expected an object")
    try:
        flat = {column: value(row, column, kinds, path) for column, kinds in COLUMNS.items()}
        if flat["status"] not in ("ok", "out_of_memory"):
            raise ResultError(
                f"{path}: key status is {flat['status']!r}; expected 'ok' or 'out_of_memory'"
            )
        kinds = NUMBER if flat["status"] == "ok" else (type(None),)
        flat |= {"mix": row.get("mix"), "path": path}  # files of before have no mix
        return flat | {column: value(row, column, kinds, path) for column in MEASURED}
    except ResultError as error:
        raise ResultError(f"{error} (in {name})") from None


def _origin(record: dict[str, Any], device: str, path: Path) -> str:
    """Name machine, versions and commit of a file."""
    return (
        f"{device}, torch {value(record, 'versions.torch', (str,), path)}, "
        f"transformers {value(record, 'versions.transformers', (str,), path)}, "
        f"{code(record, path)}."
    )


def shape_name(shape: str) -> str:
    """Return a shape as a caption writes it."""
    return shape if shape.startswith("smollm2") else f"Qwen3 {shape}"


def batch_name(row: Row) -> str:
    """Return a row's batch as a title writes it."""
    if row["mix"] is not None:
        return f"{row['batch']} {row['mix']} prompts"
    return f"batch {row['batch']} x {row['length']}"


def name(row: Row, several_ranks: bool = False) -> str:
    """Return a row's method as a figure writes it: "AGZO, warm start"."""
    family = row["family"]
    rest = row["method"].removeprefix(family).strip("_")
    words = [label(family), VARIANTS.get(rest, rest.replace("_", " "))]
    if several_ranks and row["rank"] is not None:
        words.append(f"r = {row['rank']}")
    return ", ".join(word for word in words if word)


def is_textbook(row: Row) -> bool:
    """Tell whether a row is the yardstick of a method."""
    return row["textbook"] == row["method"]


def distinct(rows: Iterable[Row], *keys: str) -> list[tuple[Any, ...]]:
    """Return the different values of some columns, in the order of the rows."""
    return list(dict.fromkeys(tuple(row[key] for key in keys) for row in rows))
