"""Where rows come from. Every source gives the Hub's field names and integer labels.

`pocket` generates them, `local` reads `<root>/<task>/{train,validation}.jsonl`, `hub` asks the
Hugging Face Hub (see hub.py). Each row is checked here, so that a bad one stops a run before its
model loads. `origin` tells a result exactly which data it stands on.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.data.hub import load_hub
from experiments.paths import user_path
from experiments.tasks.base import DataError, Row, Task

SPLITS = ("train", "validation")
SOURCES = ("pocket", "local", "hub")


@dataclass(frozen=True)
class RawData:
    """The checked rows of both splits and a JSON-able account of where they came from."""

    train: list[Row]
    validation: list[Row]
    origin: dict[str, Any]


def load_splits(
    task: Task,
    source: str,
    *,
    root: str | Path | None = None,
    seed: int = 0,
    pocket_rows: tuple[int, int] = (1500, 1000),
) -> RawData:
    """Load the train and validation rows of a task.

    `root` is for `local` only; `seed` and `pocket_rows` (train, validation) are for `pocket` only.
    Raises DataError naming the key, path or field that cannot be used.
    """
    if source not in SOURCES:
        raise DataError(f"data.source={source!r} is unknown, allowed: {list(SOURCES)}")
    if source == "local":
        rows, origin = _load_local(task, root)
    elif source == "hub":
        rows, origin = load_hub(task)
        for split in SPLITS:
            _check(task, rows[split], f"{task.hub.path} {split}")
    else:
        rows, origin = _load_pocket(task, seed, pocket_rows)
    for split in SPLITS:
        if not rows[split]:
            raise DataError(
                f"task {task.name!r}, data.source={source!r}: the {split} split is empty, "
                f"needed: at least one row ({origin})"
            )
    sizes = {f"{split}_rows": len(rows[split]) for split in SPLITS}
    return RawData(rows["train"], rows["validation"], {**origin, **sizes})


def _load_pocket(
    task: Task, seed: int, pocket_rows: tuple[int, int]
) -> tuple[dict[str, list[Row]], dict[str, Any]]:
    from experiments import pocket  # builds its world on import; other sources do without it

    generate: Callable[..., list[dict[str, Any]]] = pocket.generate
    rows: dict[str, list[Row]] = {}
    for split, count in zip(SPLITS, pocket_rows, strict=True):
        rows[split] = list(generate(task.name, split, count, seed))
        _check(task, rows[split], f"pocket {split}")
    return rows, {"source": "pocket", "world_seed": seed}


def _load_local(task: Task, root: str | Path | None) -> tuple[dict[str, list[Row]], dict[str, Any]]:
    if root is None:
        raise DataError(
            "data.root is not set; data.source='local' needs the folder of the data sets"
        )
    folder = user_path(root)
    if not folder.is_dir():
        raise DataError(
            f"data.root={str(root)!r} is no folder, "
            f"needed: a folder with {task.name}/train.jsonl and {task.name}/validation.jsonl"
        )
    rows: dict[str, list[Row]] = {}
    origin: dict[str, Any] = {"source": "local", "root": str(folder)}
    for split in SPLITS:
        path = folder / task.name / f"{split}.jsonl"
        rows[split], digest = read_jsonl(path, task)
        origin[f"{split}_sha256"] = digest
    return rows, origin


def read_jsonl(path: Path, task: Task) -> tuple[list[Row], str]:
    """Read and check one JSON-lines file; return its rows and the file's SHA-256."""
    if not path.is_file():
        beside = (
            sorted(p.name for p in path.parent.glob("*")) if path.parent.is_dir() else "no folder"
        )
        raise DataError(
            f"task {task.name!r}: {path} is missing (there: {beside}); "
            "needed: one JSON object a line, with the Hub's field names"
        )
    content = path.read_bytes()
    rows: list[Row] = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:  # bad JSON or bad UTF-8
            raise DataError(f"{path} line {number}: not a JSON object: {error}") from error
        task.example(row, f"{path} line {number}")
        rows.append(row)
    return rows, hashlib.sha256(content).hexdigest()


def _check(task: Task, rows: Sequence[Row], what: str) -> None:
    for index, row in enumerate(rows):
        task.example(row, f"{what} row {index}")
