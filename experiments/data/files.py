"""The user's own files, whatever kind they are: which file is which split, and its rows.

JSON lines, one JSON array, CSV or TSV with a header, Parquet, or a folder that `datasets` saved.
Each row comes with its place in the file, "line 7" of text (where the row begins) or "row 7" of the
rest, counted from 0 as `datasets` counts. Values of CSV are text, as they are written. What cannot
be read is a ValueError that begins with its place, to be put behind the file's path.
"""

import csv
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.config.files import known_sha256
from experiments.config.shorten import clipped, shortened
from experiments.data.hub import SPLITS
from experiments.data.jsonl import array, objects, refuse_other_kinds
from experiments.tasks.base import DataError, Task

Rows = Iterator[tuple[str, Any]]
KINDS = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"  # how `datasets` marks its folders


def find(task: Task, root: Path) -> dict[str, Path]:
    """Return the file or saved folder of each split; where there is one, it is `train`.

    Raises DataError saying what is there and what is needed.
    """
    what = f"task {task.name!r}, data.root={str(root)!r}"
    if root.is_file() or (root / SAVED).is_file():
        if task.splits != SPLITS:
            raise DataError(
                f"{what}: it is one file, and task.splits={list(task.splits)} names splits; "
                "allowed is a folder of files with these names, or task.splits=null"
            )
        if root.is_file() and root.suffix not in KINDS:
            raise DataError(f"{what}: a file {root.suffix!r}, allowed: {', '.join(KINDS)}")
        return {"train": root}
    if not root.is_dir():
        raise DataError(
            f"{what} is not there; needed: a file ({', '.join(KINDS)}) or a folder of them"
        )
    names = dict(zip(SPLITS, task.splits, strict=False))
    return {split: _split(what, root, name) for split, name in names.items()}


def _split(what: str, root: Path, name: str) -> Path:
    if (root / SAVED_SPLITS).is_file():
        found = [root / name] if (root / name / SAVED).is_file() else []
    else:
        found = sorted(path for path in root.glob("*.*") if path.stem == name)
        found = [path for path in found if path.suffix in KINDS]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"{what}: several files of split {name!r} ({', '.join(path.name for path in found)}); "
            "needed: one"
        )
    there = sorted(path.name for path in root.iterdir())
    raise DataError(
        f"{what}: no file of split {name!r} (there: {shortened(there)}); needed: {name} with one "
        f"of the ends {', '.join(KINDS)}, or task.splits with the names of yours"
    )


def read(path: Path) -> Rows:
    """Yield the place of each row and what it holds."""
    if path.is_dir():
        return _saved(path)
    if path.suffix == ".parquet":
        return _parquet(path)
    content = path.read_bytes()
    if path.suffix in DELIMITERS:
        return _csv(content, DELIMITERS[path.suffix])
    return _json(content)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file; of a folder that of its files' names and hashes."""
    if path.is_file():
        return known_sha256(path)
    inside = sorted(each for each in path.rglob("*") if each.is_file())
    said = "".join(f"{known_sha256(each)} {each.relative_to(path)}\n" for each in inside)
    return hashlib.sha256(said.encode()).hexdigest()


def _json(content: bytes) -> Rows:
    values = array(content)
    if values is not None:
        yield from ((f"row {number}", row) for number, row in enumerate(values))
    else:
        yield from ((f"line {number}", row) for number, row in objects(content))


def _csv(content: bytes, delimiter: str) -> Rows:
    needed = "needed: CSV in UTF-8, the names of the fields in its first line"
    refuse_other_kinds(content, needed)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f" line {line}: byte 0x{content[error.start]:02x} is no UTF-8; {needed}"
        ) from error
    limit = csv.field_size_limit(len(text) + 1)  # for all readers, so it is put back
    line = 1
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        names: list[str] | None = None
        for values in reader:
            place, line = f"line {line}", reader.line_num + 1
            if not values:
                continue
            if names is None:
                names = _header(values, place, needed)
            elif len(values) == len(names):
                yield place, dict(zip(names, values, strict=True))
            else:
                raise ValueError(
                    f" {place}: {len(values)} values, {shortened(values)}, allowed: "
                    f"{len(names)}, for {shortened(names)}"
                )
    except csv.Error as error:
        raise ValueError(f" line {line}: no CSV ({error}); {needed}") from error
    finally:
        csv.field_size_limit(limit)


def _header(names: list[str], place: str, needed: str) -> list[str]:
    twice = [name for name in names if names.count(name) > 1 or not name.strip()]
    if twice:
        raise ValueError(
            f" {place}: field {twice[0]!r} is empty or there twice in {shortened(names)}; {needed}"
        )
    return names


def _parquet(path: Path) -> Rows:
    import pyarrow  # comes with `datasets`, whose own reader leaves copies in a cache
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f": no Parquet file ({clipped(str(error))})") from error
    yield from ((f"row {number}", row) for number, row in enumerate(rows))


def _saved(path: Path) -> Rows:
    import datasets  # its import takes seconds

    try:
        table = datasets.Dataset.load_from_disk(str(path))
    except Exception as error:  # Arrow, JSON and the file system raise many kinds
        raise ValueError(f": no folder that datasets saved ({clipped(str(error))})") from error
    yield from ((f"row {number}", dict(row)) for number, row in enumerate(table))  # pyright: ignore
