"""The first batches of a Trainer's run, for a method that looks at some before its first step.

They come from a loader of their own. The random generators are seeded for it and then put back, so
training sees its batches as if nobody had looked, and a resumed run looks at the same ones.

Imports nothing but the library.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset


def first_batches(trainer: Any, count: int, set_seed: Any) -> list[list[Any]]:
    """Return the inputs of the first `count` steps, of each its micro-batches in all processes.

    Args:
        trainer: a transformers Trainer that is made.
        count: how many steps.
        set_seed: transformers' function of that name.

    Raises:
        ValueError: training data that can be read only once, or that are empty.
    """
    data = trainer.train_dataset
    if isinstance(data, IterableDataset) and iter(data) is iter(data):
        raise ValueError(
            f"train_dataset: this {type(data).__name__} can be read only once, and the method "
            "looks at batches first; allowed is a data set whose __iter__ begins anew"
        )
    with TemporaryDirectory() as folder:
        trainer._save_rng_state(folder)
        try:
            set_seed(trainer.args.seed)
            loader = trainer.get_train_dataloader()
            steps = _steps(loader, trainer.args.gradient_accumulation_steps)
            found = [next(steps) for _ in range(count)]
        finally:
            trainer._load_rng_state(folder)
    state = trainer.accelerator.gradient_state
    if state.active_dataloader is loader:  # left in the middle of an epoch
        loader.end()
    if trainer.args.world_size > 1:
        found = [_of_all(step, trainer.args.world_size) for step in found]
    return found


def _steps(loader: Iterable[Any], accumulation: int) -> Iterator[list[Any]]:
    """Yield the micro-batches of one step after another, epoch after epoch."""
    while True:
        epoch, empty = iter(loader), True
        while step := list(itertools.islice(epoch, accumulation)):
            empty = False
            yield step
        if empty:
            raise ValueError("train_dataset: it gives no batch; allowed is one or more")


def _of_all(step: list[Any], processes: int) -> list[Any]:
    """Return the micro-batches that all processes have of a step, in the order of the processes."""
    own = [
        {key: value.cpu() if isinstance(value, Tensor) else value for key, value in each.items()}
        for each in step
    ]
    shares: list[Any] = [None] * processes
    torch.distributed.all_gather_object(shares, own)
    return list(itertools.chain.from_iterable(shares))
