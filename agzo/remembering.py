"""Methods that remember a float32 number for each weight, and look by it.

A subclass says in its sampler how a direction follows from the memory, and in `_remember` how the
memory follows from the directions that were measured. The memory is as large as what is tuned, in
float32, so a large one is refused unless ``large_state=True``. What a direction reads is never
written again: each step makes the new memory beside the old one, one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from agzo.about import About
from agzo.directions.direction import Direction
from agzo.directions.sampler import Gaussian
from agzo.estimator import Measurement
from agzo.execution.perturb import Directions
from agzo.moments import refuse_large_state
from agzo.optimizer import ZeroOrderOptimizer
from agzo.scaling import SCALINGS
from agzo.tuned.select import Tuned

MEMORY = "memory"  # key in a parameter's state


class Remembering(ZeroOrderOptimizer):
    """Base of such methods; `memory_is` names the memory in errors, `empty` is its first value."""

    memory_is: ClassVar[str]
    empty: ClassVar[float] = 0.0
    about = About(updates=("sgd", *SCALINGS))  # moments would be a second memory of that size

    def __init__(self, model: Any, **shared: Any) -> None:
        if shared.get("embeddings") == "seen":
            raise ValueError(
                f"embeddings='seen': {type(self).__name__} has {self.memory_is} for each row of a "
                "table; allowed are tuned, frozen"
            )
        super().__init__(model, **shared)

    def memory(self, tuned: Tuned) -> Tensor | None:
        """Return what is remembered of a parameter, float32 of its shape; None before a step."""
        return self.state[tuned.parameter].get(MEMORY) if tuned.parameter in self.state else None

    def _refuse_large_state(self, whole: int) -> None:
        sizes = {each.name: each.parameter.numel() for each in self.tuned}
        what = f"large_state=False: {type(self).__name__} keeps {self.memory_is} for each weight"
        refuse_large_state(what, sizes, whole)

    @torch.no_grad()
    def _learn(
        self, queries: list[tuple[Directions, Tensor]], measurement: Measurement | None
    ) -> None:
        factors = self._factors(queries, measurement)
        for each in self._active:
            old = self.memory(each)
            if old is None:
                shape = each.parameter.shape
                old = torch.full(shape, self.empty, dtype=torch.float32, device=each.device)
            new = torch.empty_like(old)
            directions = [directions[each.parameter] for directions, _ in queries]
            for rows, blocks in _blocks(directions):
                before = old[rows]
                new[rows] = self._remember(before, [b.view(before.shape) for b in blocks], factors)
            self.state[each.parameter][MEMORY] = new

    def _factors(
        self, queries: list[tuple[Directions, Tensor]], measurement: Measurement | None
    ) -> Tensor:
        """Return a number for each query, (queries,): its slope, unless overridden."""
        return torch.stack([g for _, g in queries])

    def _remember(self, old: Tensor, directions: list[Tensor], factors: Tensor) -> Tensor:
        """Return the new memory of a block of rows.

        Args:
            old: what was remembered; it must not be written.
            directions: the block of each query's direction, float32, free to be overwritten.
            factors: of the queries, from `_factors`.
        """
        raise NotImplementedError


class OfMemory(Gaussian):
    """A sampler whose directions follow from a memory of each parameter's size."""

    def __init__(self, method: Remembering) -> None:
        self._method = method

    def kept(self, tuned: Tuned) -> int:
        """Count the memory's values."""
        return tuned.parameter.numel()


def _blocks(directions: Sequence[Direction]) -> Iterator[tuple[Any, list[Tensor]]]:
    """Yield the rows of a block, and the block of each direction."""
    for blocks in zip(*(each.rows() for each in directions), strict=True):
        start, stop, _ = blocks[0]
        yield (slice(start, stop) if directions[0].shape else ...), [v for _, _, v in blocks]
