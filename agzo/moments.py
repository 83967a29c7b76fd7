"""Momentum and Adam in the coordinates that a direction draws, not in those of the whole weight.

A direction is L B^T with L drawn and B known: AGZO's basis, LOZO's V, the identity for dense noise.
The step's estimate is g L B^T, so moments of g L are enough, and they are as small as L:

    sgd        W <- W - lr g L B^T
    momentum   N <- b1 N' + (1 - b1) g L,   W <- W - lr N B^T;   first step N = g L
    adam       M <- b1 M' + (1 - b1) g L,   S <- b2 S' + (1 - b2) (g L)^2,
               W <- W - lr (M / (1 - b1^t)) / (sqrt(S / (1 - b2^t)) + 1e-8) B^T

Where the basis has changed since, N' = N B_old^T B (B^T B)^-1: what of N B_old^T lies in the new
span. LOZO-M (arXiv 2410.07698) writes 1 / d_in for (B^T B)^-1, which is its mean. Squares cannot be
turned so; S' has in each row the row's mean over columns, which for r = 1 is S itself.

Memory: one (momentum) or two (adam) float32 tensors of the size of L, and B.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agzo.direction import Direction, LowRank, _ByRows
from agzo.rng import rows_per_chunk

UPDATES = ("sgd", "momentum", "adam")
KEPT = ("mean", "square", "right")  # keys of a parameter's state; float32 whatever the weight is
TINY = 1e-8


@dataclass(frozen=True)
class Held(_ByRows):
    """A direction that is a tensor, float32: the moments of dense noise."""

    values: Tensor

    @property
    def shape(self) -> torch.Size:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Shape of the parameter."""
        return self.values.shape

    def rows(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yield blocks of rows, free to be overwritten."""
        if self.values.dim() == 0:
            yield 0, 1, self.values.clone()
            return
        step = rows_per_chunk(self.values[:1].numel())
        for start in range(0, self.values.shape[0], step):
            stop = min(self.values.shape[0], start + step)
            yield start, stop, self.values[start:stop].clone()


@dataclass(frozen=True)
class Moments:
    """How moments are kept: `update` is "momentum" or "adam", b1 and b2 are the decay rates."""

    update: str
    b1: float
    b2: float

    def direction(
        self,
        queries: Sequence[tuple[Direction, Tensor]],
        state: MutableMapping[str, Any],
        step: int,
        refreshed: bool,
        alive: Tensor,
    ) -> Direction:
        """Take one parameter's estimates into its state and return what to move along.

        Args:
            queries: (direction, projected_grad) pairs of this step.
            state: the parameter's; holds the keys `KEPT` from its first step on.
            step: number of the step, from 0.
            refreshed: the bases are new at this step.
            alive: 0-dim bool on the parameter's device; where False zero is returned.
        """
        drawn, right = coordinates(queries)
        first = "mean" not in state
        mean = torch.zeros_like(drawn) if first else state["mean"]
        square = torch.zeros_like(drawn) if first else state.get("square", drawn)
        if right is not None and refreshed and not first:
            mean = turned(mean, state["right"], right)
            square = square.mean(dim=1, keepdim=True).expand_as(square)
        if self.update == "momentum":
            moved = mean = drawn if first else torch.lerp(drawn, mean, self.b1)
        else:
            mean = torch.lerp(drawn, mean, self.b1)
            square = torch.lerp(drawn.square(), square, self.b2)
            deviation = (square / (1.0 - self.b2 ** (step + 1))).sqrt()
            moved = mean / (1.0 - self.b1 ** (step + 1)) / (deviation + TINY)
            state["square"] = square
        state["mean"] = mean
        if right is not None:
            state["right"] = right
        moved = torch.where(alive, moved, 0.0)  # the factor is 0 then, and 0 * NaN would not be
        return Held(moved) if right is None else LowRank(moved, right)


def coordinates(queries: Sequence[tuple[Direction, Tensor]]) -> tuple[Tensor, Tensor | None]:
    """Return the mean over queries of g L, float32, and B where the directions are L B^T."""
    share = 1.0 / len(queries)
    first, _ = queries[0]
    if isinstance(first, LowRank):
        lefts = []
        for direction, g in queries:
            assert isinstance(direction, LowRank)
            assert direction.right is first.right  # one basis a step
            lefts.append(direction.left * (g.float() * share))
        return torch.stack(lefts).sum(dim=0), first.right
    mean: Tensor | None = None
    for direction, g in queries:
        noise = direction.dense() * (g.float() * share)
        mean = noise if mean is None else mean.add_(noise)
    assert mean is not None
    return mean, None


def turned(mean: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """Return N B_old^T B (B^T B)^-1: N B_old^T, (d_out, d_in), as far as the span of B holds it."""
    gram, overlap = new.T @ new, old.T @ new  # (r, r) each
    solved, _ = torch.linalg.solve_ex(gram, overlap.T)  # B^T B is symmetric; no wait for the device
    return mean @ solved.T
