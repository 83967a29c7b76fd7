"""Where rows come from. Every source gives the Hub's field names and integer labels.

`pocket` generates them, `local` reads `<root>/<task>/{train,validation}.jsonl` (of a task without
code any file, see files.py), `hub` asks the Hugging Face Hub (see hub.py). Each row is checked
here, so that a bad one stops a run before its model loads. `origin` tells a result exactly which
data it stands on.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.config.paths import user_path
from experiments.config.shorten import shortened
from experiments.data import files
from experiments.data.hub import SPLITS, load_hub
from experiments.data.jsonl import NEEDED, objects
from experiments.tasks.base import DataError, Row, Task

SOURCES = ("pocket", "local", "hub")


@dataclass(frozen=True)
class RawData:
    """The checked rows of both splits and a JSON-able account of where they came from.

    `places` says of each split's rows where each is, for messages.
    """

    train: list[Row]
    validation: list[Row]
    origin: dict[str, Any]
    places: dict[str, list[str]] = field(default_factory=dict, compare=False)


def load_splits(
    task: Task,
    source: str,
    *,
    root: str | Path | None = None,
    seed: int = 0,
    pocket_rows: tuple[int, int] = (1500, 1000),
) -> RawData:
    """Load the train and validation rows of a task.

    `root` is for `local` only, `pocket_rows` (train, validation) for `pocket` only; `seed` is for
    `pocket`, and for rows in one file or split, of which a fifth becomes the validation split.
    Raises DataError naming the key, path or field that cannot be used.
    """
    if source not in SOURCES:
        raise DataError(f"data.source={source!r} is unknown, allowed: {list(SOURCES)}")
    if source == "local":
        rows, places, origin = _load_local(task, root)
    else:
        rows, origin = load_hub(task) if source == "hub" else _load_pocket(task, seed, pocket_rows)
        whose = origin["path"] if source == "hub" else "pocket"
        places = {split: _check(task, rows[split], f"{whose} {split}") for split in rows}
    if len(rows) == 1:
        origin |= {"divided_by_seed": seed}
        rows, places = _divided(task, rows["train"], places["train"], seed)
    for split in SPLITS:
        if not rows[split]:
            raise DataError(
                f"task {task.name!r}, data.source={source!r}: the {split} split is empty, "
                f"needed: at least one row ({origin})"
            )
    sizes = {f"{split}_rows": len(rows[split]) for split in SPLITS}
    return RawData(rows["train"], rows["validation"], {**origin, **sizes}, places)


def _load_pocket(
    task: Task, seed: int, pocket_rows: tuple[int, int]
) -> tuple[dict[str, list[Row]], dict[str, Any]]:
    from experiments import pocket  # builds its world on import; other sources do without it

    if task.name not in pocket.TASKS:
        others = "'local' and 'hub'" if task.hub else "'local', with data.root"
        raise DataError(
            f"task {task.name!r}, data.source='pocket': no rows are generated for it, allowed: "
            f"{others}"
        )
    generate: Callable[..., list[dict[str, Any]]] = pocket.generate
    rows: dict[str, list[Row]] = {}
    for split, count in zip(SPLITS, pocket_rows, strict=True):
        rows[split] = list(generate(task.name, split, count, seed))
    return rows, {"source": "pocket", "world_seed": seed}


def _load_local(
    task: Task, root: str | Path | None
) -> tuple[dict[str, list[Row]], dict[str, list[str]], dict[str, Any]]:
    if root is None:
        raise DataError(
            "data.root is not set; data.source='local' needs the folder of the data sets"
        )
    folder = user_path(root)
    if task.any_file:
        return _load_files(task, folder)
    if not folder.is_dir():
        raise DataError(
            f"data.root={str(root)!r} is no folder, "
            f"needed: a folder with {task.name}/train.jsonl and {task.name}/validation.jsonl"
        )
    rows: dict[str, list[Row]] = {}
    places: dict[str, list[str]] = {}
    origin: dict[str, Any] = {"source": "local", "root": str(folder)}
    for split in SPLITS:
        path = folder / task.name / f"{split}.jsonl"
        rows[split], places[split], digest = read_jsonl(path, task)
        if not rows[split]:
            raise DataError(
                f"task {task.name!r}, {path}: the {split} split is empty, needed: at least one row"
            )
        origin[f"{split}_sha256"] = digest
    return rows, places, origin


def read_jsonl(path: Path, task: Task) -> tuple[list[Row], list[str], str]:
    """Read and check one JSON-lines file; return rows, where each is, and the file's SHA-256."""
    if not path.is_file():
        names = sorted(each.name for each in path.parent.glob("*"))
        beside = shortened(names) if path.parent.is_dir() else "no folder"
        raise DataError(
            f"task {task.name!r}: {path} is missing (there: {beside}); "
            f"{NEEDED}, with the Hub's field names"
        )
    content = path.read_bytes()
    lines = ((f"line {number}", row) for number, row in objects(content))
    return *_checked(task, path, lines), hashlib.sha256(content).hexdigest()


def _load_files(
    task: Task, root: Path
) -> tuple[dict[str, list[Row]], dict[str, list[str]], dict[str, Any]]:
    rows: dict[str, list[Row]] = {}
    places: dict[str, list[str]] = {}
    origin: dict[str, Any] = {"source": "local", "root": str(root)}
    for split, path in files.find(task, root).items():
        rows[split], places[split] = _checked(task, path, files.read(path))
        origin[f"{split}_sha256"] = files.sha256(path)
    return rows, places, origin


def _checked(
    task: Task, path: Path, found: Iterable[tuple[str, Any]]
) -> tuple[list[Row], list[str]]:
    """Check each row of a file as it is read; return rows and where each is."""
    rows: list[Row] = []
    places: list[str] = []
    try:
        for place, row in found:
            places.append(f"{path} {place}")
            task.example(row, places[-1])
            rows.append(row)
    except DataError:
        raise
    except ValueError as error:  # a line that cannot be read
        raise DataError(f"task {task.name!r}, {path}{error}") from error
    return rows, places


def _divided(
    task: Task, rows: list[Row], places: list[str], seed: int
) -> tuple[dict[str, list[Row]], dict[str, list[str]]]:
    """Divide the rows of one file: a fifth of them, drawn by the seed, are for evaluation."""
    if len(rows) < 3:
        raise DataError(
            f"task {task.name!r}: {len(rows)} rows in one file or split, needed: at least 3, to "
            "train, to choose and to evaluate on"
        )
    order = np.random.RandomState(seed).permutation(len(rows)).tolist()
    count = max(1, len(rows) // 5)
    chosen = {"train": sorted(order[count:]), "validation": sorted(order[:count])}
    return (
        {split: [rows[i] for i in numbers] for split, numbers in chosen.items()},
        {split: [places[i] for i in numbers] for split, numbers in chosen.items()},
    )


def _check(task: Task, rows: Sequence[Row], what: str) -> list[str]:
    """Check all rows; return where each is."""
    places = [f"{what} row {index}" for index in range(len(rows))]
    for row, place in zip(rows, places, strict=True):
        task.example(row, place)
    return places
