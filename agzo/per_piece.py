"""estimator="per_piece": each micro-batch is measured along a direction of its own, two-sided.

    g_i = (f_i(W + eps Delta_i) - f_i(W - eps Delta_i)) / (2 eps),  f_i the loss of micro-batch i
    W <- W - lr * mean of g_i Delta_i

f is the mean of the f_i, with the weights of `agzo.distributed.pieces`, and each g_i has that
weight as a factor (1 on average). A step has as many directions as there are micro-batches, for the
forwards of one: 2, and one more where f(W) is needed. With ``accumulation`` equal to the batch size
each example has its own. They are run apart, so that takes the time of as many small forwards.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from agzo.directions.sampler import sample_rest
from agzo.distributed.group import Group
from agzo.distributed.pieces import Joint
from agzo.estimator import ESTIMATORS, Measurement
from agzo.execution.perturb import Directions, Execution
from agzo.torch_calls.surroundings import Closure, Watch

PER_PIECE = "per_piece"
WITH_PIECES = (*ESTIMATORS, PER_PIECE)


def check_per_piece(queries: int, group: Group | None, stream: object) -> None:
    """Raise ValueError for what it does not have: several directions of a piece, and shares."""
    if queries > 1:
        raise ValueError(
            f"queries={queries}: with estimator='per_piece' allowed is 1, each piece's own"
        )
    several = f"{group.size} processes" if group is not None and group.size > 1 else None
    several = several or ("streamed layers" if stream is not None else None)
    if several:
        allowed = ", ".join(ESTIMATORS)
        raise ValueError(f"estimator='per_piece': with {several} allowed are {allowed}")


def measure_pieces(
    batch: Joint,
    forward: Callable[[Closure], Tensor],
    state: dict[str, Any],
    sample: Callable[[int], Directions],
    eps: float,
    execution: Execution,
    watch: Watch | None,
    at_w: bool,
    around: Callable[[], AbstractContextManager[object]],
) -> Measurement:
    """Measure each piece of a batch; the number of a piece is that of its query.

    `forward` evaluates a closure and counts it in `state`, where a pass of all pieces is one in the
    end. `around` returns what is entered around the evaluations of a piece, which have other
    inputs than those of the next. The others are those of `agzo.estimator.measure`.

    Raises:
        ValueError: there is one piece.
    """
    count = len(batch.pieces)
    if count < 2:
        raise ValueError(
            "estimator='per_piece': the batch is in 1 piece; allowed are 2 or more (accumulation=2 "
            "or more), each with a direction of its own"
        )
    base = None
    if watch is not None or at_w:
        whole = partial(forward, batch)
        base = execution.unperturbed(whole if watch is None else lambda: watch(whole))
    forwards = state["forwards"] + 2
    queries: list[tuple[Directions, Tensor]] = []
    losses: list[Tensor] = []
    weights: list[float] = []
    try:
        for index, piece in enumerate(batch.pieces):
            directions = sample(index)
            alone = partial(forward, _only(batch, index))
            with around():
                both = [execution.evaluate(alone, directions, scale) for scale in (eps, -eps)]
            own = torch.stack([each.detach() for each in both])
            own = own.to(torch.promote_types(own.dtype, torch.float32))
            sample_rest(directions)
            weights.append(piece.weight * count / batch.weight)
            queries.append((directions, (own[0] - own[1]) / (2.0 * eps) * weights[-1]))
            losses.append(own)
    finally:  # of a step that fails as well
        state["forwards"] = min(state["forwards"], forwards)
    if base is None:
        means = [own.mean() * weight for own, weight in zip(losses, weights, strict=True)]
        base = torch.stack(means).mean()
    loss = base.detach().to(losses[0].dtype)
    return Measurement(loss, queries, torch.stack(losses))


def _only(batch: Joint, index: int) -> Closure:
    def run() -> Tensor:
        with batch.entered(index):
            return batch.pieces[index].closure()

    return run
