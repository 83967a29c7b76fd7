"""MeZO's sampling of train, dev and evaluation examples.

Training and dev rows are the first `num_train + num_dev` of one permutation of the train split, dev
the last `num_dev` of them; evaluation rows are the first `num_eval` of a permutation of the
validation split under the same seed. A split that is too small shrinks training, or evaluation, and
never dev.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.data.sources import RawData
from experiments.tasks.base import DataError, Example, Task

MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class Splits:
    """The three sampled splits; `sizes` sets what was asked for beside what there is."""

    train: list[Example]
    dev: list[Example]
    eval: list[Example]
    sizes: dict[str, dict[str, int]]


def permutation(length: int, seed: int) -> list[int]:
    """Return MeZO's order of `length` rows: `np.random.seed(seed);
    np.random.permutation(length)`."""
    # The legacy generator is the protocol: its stream is frozen, and published runs drew from it.
    return np.random.RandomState(seed).permutation(length).tolist()


def protocol(
    task: Task,
    raw: RawData,
    num_train: int = 1000,
    num_dev: int = 500,
    num_eval: int = 1000,
    seed: int = 0,
) -> Splits:
    """Sample the splits of one run.

    Raises DataError when a count is below one, the seed is out of range, or dev leaves no training
    row.
    """
    requested = {"train": num_train, "dev": num_dev, "eval": num_eval}
    for name, count in requested.items():
        if count < 1:
            raise DataError(f"train.num_{name}={count} is not allowed; needed: at least 1")
    if not 0 <= seed <= MAX_SEED:
        raise DataError(f"train.train_seed={seed} is not allowed; needed: 0 to {MAX_SEED}")
    if not raw.validation:
        raise DataError(
            f"task {task.name!r}: the validation split is empty, needed: at least one row"
        )
    if task.max_dev is not None:
        num_dev = min(num_dev, task.max_dev)
    if len(raw.train) <= num_dev:
        raise DataError(
            f"task {task.name!r}: train.num_dev={num_dev} leaves nothing to train on; "
            f"the train split has {len(raw.train)} rows, allowed: 1 to {len(raw.train) - 1}"
        )
    pool = permutation(len(raw.train), seed)[: num_train + num_dev]
    chosen = permutation(len(raw.validation), seed)[:num_eval]
    train = _examples(task, raw, "train", pool[:-num_dev])
    dev = _examples(task, raw, "train", pool[-num_dev:])
    evaluation = _examples(task, raw, "validation", chosen)
    sizes = {"train": len(train), "dev": len(dev), "eval": len(evaluation)}
    return Splits(train, dev, evaluation, {"requested": requested, "used": sizes})


def _examples(task: Task, raw: RawData, split: str, indices: Sequence[int]) -> list[Example]:
    rows = raw.train if split == "train" else raw.validation
    places = raw.places.get(split) or [f"{split} row {index}" for index in range(len(rows))]
    return [task.example(rows[index], places[index]) for index in indices]
