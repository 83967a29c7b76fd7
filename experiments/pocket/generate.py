"""Data sets of the pocket world in the hub's field names, at any size and seed."""

from __future__ import annotations

import json
from random import Random

from experiments.pocket.splits import SPLITS, part_of
from experiments.pocket.tasks import TASKS, PocketTask, Row

MAX_TRIES = 10_000  # draws for one row before the world counts as exhausted


def generate(task: str, split: str, n: int, seed: int) -> list[Row]:
    """Return `n` rows of one split; the first rows of a longer list are those of a shorter one.

    Labels come in shuffled blocks of one each, so they are balanced to within one row. No row
    occurs twice, and none is shared between the splits or with the pre-training text.
    Raises ValueError for an unknown task or split and for n < 1.
    """
    if task not in TASKS:
        raise ValueError(f"pocket task={task!r}: expected one of {sorted(TASKS)}")
    if split not in SPLITS:
        raise ValueError(f"pocket split={split!r}: expected one of {list(SPLITS)}")
    if n < 1:
        raise ValueError(f"pocket n={n!r}: expected at least 1 row")
    source = TASKS[task]
    rng = Random(f"pocket/{task}/{split}/{seed}")
    seen: set[str] = set()
    rows: list[Row] = []
    block: list[int] = []
    while len(rows) < n:
        if not block:
            block = rng.sample(range(source.labels), source.labels)
        rows.append(source.identify(_fresh(source, split, block.pop(), rng, seen), len(rows)))
    return rows


def _fresh(task: PocketTask, split: str, label: int, rng: Random, seen: set[str]) -> Row:
    """Draw until a row falls into the split and was not drawn before."""
    for _ in range(MAX_TRIES):
        row = task.draw(rng, label)
        if part_of(task.key(row)) != split:
            continue
        mark = json.dumps(row)
        if mark not in seen:
            seen.add(mark)
            return row
    raise ValueError(
        f"pocket task={task.name!r} split={split!r}: no new row in {MAX_TRIES} draws after "
        f"{len(seen)}; ask for fewer rows"
    )
