"""Momentum and Adam in the coordinates that a direction draws, not in those of the whole weight.

A direction is L B^T with L drawn and B known: AGZO's basis, LOZO's V, the identity for dense noise.
The step's estimate is g L B^T, so moments of g L are enough, and they are as small as L:

    sgd        W <- W - lr g L B^T
    momentum   N <- b1 N + (1 - b1) g L,  N = g L at first;  W <- W - lr N B^T
    adam       M <- b1 M + (1 - b1) g L,  S <- b2 S + (1 - b2) (g L)^2,  both 0 at first;
               W <- W - lr (M / (1 - b1^t)) / (sqrt(S / (1 - b2^t)) + 1e-8) B^T

While B stays, N B^T is what momentum of the whole estimate would hold. With a new B it cannot be
held: N becomes N B_old^T B (B^T B)^-1, for which N B^T is closest to the old N B_old^T. LOZO-M
(arXiv 2410.07698) divides by d_in, the mean of its B^T B; for orthonormal B there is no division.

Adam turns M alike. Squares of coordinates cannot be turned, and need not be: for Gaussian L

    E (g L_ij)^2 = |G B|^2 + 2 (G B)_ij^2,    G the gradient, |G B|^2 a sum of d_out r such terms

so S is nearly one number, that of the slope g, in whatever basis. S becomes its mean over each row.

Memory: float32 N, or M and S, of the size of L, and B. Weight decay is apart from the moments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from agzo.directions.direction import ByRows, Direction
from agzo.directions.low_rank import LowRank, Still
from agzo.rng import chunks

MOMENTS = ("momentum", "adam")
KEPT = ("mean", "square", "right")  # keys of a parameter's state; float32 whatever the weight is
REMEMBERED = ("memory",)  # and that of a method that remembers a number for each weight
TINY = 1e-8
LARGE = 0.1  # moments of more than this part of the model's size need large_state=True
SMALL = 2**24  # values, 64 MiB: what no memory is too small for

Estimates = Sequence[tuple[Direction, Tensor]]  # (direction, projected_grad), one for each query


class Combination(Protocol):
    """Turns a step's estimates for one parameter into one direction; `Moments` is one."""

    def size(self, drawn: int, right: int) -> int:
        """Count the float32 values that are kept for L of `drawn` values and B of `right`: none."""
        return 0

    def direction(
        self,
        queries: Estimates,
        state: MutableMapping[str, Any],
        step: int,
        refreshed: bool,
        alive: Tensor,
    ) -> Direction:
        """Return what to move along; see `Moments.direction`."""
        ...


@dataclass(frozen=True)
class Held(ByRows):
    """What the moments of dense noise say, made from them in blocks of rows."""

    mean: Tensor
    square: Tensor | None
    rule: Callable[[Tensor, Tensor | None], Tensor]

    @property
    def shape(self) -> torch.Size:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Shape of the parameter."""
        return self.mean.shape

    def rows(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yield ``rule(mean, square)`` for each block of rows."""
        if self.mean.dim() == 0:
            yield 0, 1, self.rule(self.mean, self.square)
            return
        for start, stop in chunks(self.shape):
            square = None if self.square is None else self.square[start:stop]
            yield start, stop, self.rule(self.mean[start:stop], square)


@dataclass(frozen=True)
class Moments:
    """How moments are kept: `update` is "momentum" or "adam", b1 and b2 are the decay rates."""

    update: str
    b1: float
    b2: float

    def size(self, drawn: int, right: int) -> int:
        """Count the float32 values that are kept for L of `drawn` values and B of `right`."""
        return drawn * (2 if self.update == "adam" else 1) + right

    def direction(
        self,
        queries: Estimates,
        state: MutableMapping[str, Any],
        step: int,
        refreshed: bool,
        alive: Tensor,
    ) -> Direction:
        """Take one parameter's estimates into its state and return what to move along.

        Args:
            queries: this step's estimates; low-rank ones share one B.
            state: the parameter's; from its first step on it holds the keys `KEPT`, and the numbers
                of its steps ("count") and of its last one ("last").
            step: number of the step, from 0.
            refreshed: B is not that of the step before.
            alive: 0-dim bool on the parameter's device; where False zero is returned, and the state
                is of no more use.
        """

        def rule(mean: Tensor, square: Tensor | None) -> Tensor:
            moved = mean if square is None else self._ratio(mean, square, count)
            return torch.where(alive, moved, 0.0)  # a factor of 0 would not be enough for a NaN

        first = "mean" not in state
        if first and isinstance(queries[0][0], Still):
            return queries[0][0]
        # A parameter need not take part in all steps; an older state does not say so.
        absent = not first and state.get("last", step - 1) < step - 1
        count = state["count"] = state.get("count", 0 if first else step) + 1
        state["last"] = step
        if not isinstance(queries[0][0], LowRank):
            self._take_dense(queries, state, first)
            return Held(state["mean"], state.get("square"), rule)
        inputs = queries[0][0].inputs
        drawn, right = coordinates(queries)
        if isinstance(queries[0][0], Still):  # an estimate of zero, in the coordinates there are
            drawn, right = torch.zeros_like(state["mean"]), state["right"]
            refreshed = absent = False
        if first:
            self._begin(state, drawn)
        elif refreshed or (absent and not right.equal(state["right"])):
            self._turn(state, right)
        state["right"] = right
        self._take(drawn, state["mean"], state.get("square"), first)
        return LowRank.of(rule(state["mean"], state.get("square")), right, inputs)

    def _begin(self, state: MutableMapping[str, Any], like: Tensor) -> None:
        state["mean"] = torch.zeros_like(like)
        if self.update == "adam":
            state["square"] = torch.zeros_like(like)

    def _take(self, estimate: Tensor, mean: Tensor, square: Tensor | None, first: bool) -> None:
        """Take an estimate into the moments, in place."""
        if square is None:
            mean.mul_(self.b1).add_(estimate, alpha=1.0 if first else 1.0 - self.b1)
        else:
            mean.lerp_(estimate, 1.0 - self.b1)
            square.mul_(self.b2).addcmul_(estimate, estimate, value=1.0 - self.b2)

    def _take_dense(self, queries: Estimates, state: MutableMapping[str, Any], first: bool) -> None:
        direction, g = queries[0]
        if first:
            self._begin(state, torch.empty(direction.shape, dtype=torch.float32, device=g.device))
        mean, square = state["mean"], state.get("square")
        shares = [g.float() / len(queries) for _, g in queries]
        for blocks in zip(*(each.rows() for each, _ in queries), strict=True):
            start, stop, values = blocks[0]
            estimate = values.mul_(shares[0])
            for (_, _, values), share in zip(blocks[1:], shares[1:], strict=True):
                estimate += values.mul_(share)
            rows = ... if mean.dim() == 0 else slice(start, stop)
            self._take(estimate, mean[rows], None if square is None else square[rows], first)

    def _turn(self, state: MutableMapping[str, Any], right: Tensor) -> None:
        """Carry the moments over to a new B, which may have another number of columns."""
        state["mean"] = turned(state["mean"], state["right"], right)
        if self.update == "adam":
            rows = state["square"].mean(dim=1, keepdim=True)
            state["square"] = rows.repeat(1, right.shape[1])

    def _ratio(self, mean: Tensor, square: Tensor, count: int) -> Tensor:
        deviation = (square / (1.0 - self.b2**count)).sqrt_().add_(TINY)
        return (mean / (1.0 - self.b1**count)).div_(deviation)


def coordinates(queries: Estimates) -> tuple[Tensor, Tensor]:
    """Return the mean over queries of g L, (d_out, r) float32, and B, (d_in, r)."""
    total: Tensor | None = None
    right: Tensor | None = None
    for direction, g in queries:
        assert isinstance(direction, LowRank)
        one, right = direction.drawn * (g.float() / len(queries)), direction.known
        total = one if total is None else total.add_(one)
    assert total is not None
    assert right is not None
    return total, right


def turned(mean: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """Return N B_old^T B (B^T B)^-1: the N' whose N' B^T is closest to N B_old^T."""
    old = old.clone(memory_format=torch.contiguous_format)  # as loaded: products round by layout
    gram, overlap = new.T @ new, new.T @ old  # (r, r), (r, r_old)
    solved, _ = torch.linalg.solve_ex(gram, overlap)  # unlike solve it does not wait for the device
    return mean @ solved.T


def refuse_large_state(what: str, sizes: Mapping[str, int], whole: int, instead: str = "") -> None:
    """State is meant to be small: refuse what would be a good part of a large model.

    Args:
        what: begins the error: the setting that asks for the state.
        sizes: float32 values for each tuned parameter.
        whole: values of the model.
        instead: a setting that needs none, if there is one.
    """
    values = sum(sizes.values())
    allowed = max(SMALL, LARGE * whole)
    if values > allowed:
        largest = max(sizes, key=lambda name: sizes[name])
        raise ValueError(
            f"{what}: its state would take {_gib(values)} in float32, for a "
            f"model of {whole:,} values ({_gib(sizes[largest])} of it for {largest} alone); "
            f"allowed are up to {_gib(allowed)} ({'low-rank directions, ' if instead else ''}"
            f"embeddings='frozen', fewer params){instead}, or large_state=True"
        )


def _gib(values: float) -> str:
    """Write the memory of so many float32 values."""
    return f"{values * 4 / 2**30:.3g} GiB"
