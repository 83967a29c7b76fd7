"""find_eps: the eps at which a measured slope is the true one, by forwards alone.

    found = agzo.find_eps(model, closure, token_mask)
    optimizer = AGZO(model, lr=1e-6, eps=found.eps)

A small eps drowns in the round-off of the loss, from below; a large one meets curvature, from
above. A two-sided slope

    s(eps) = (f(W + eps Delta) - f(W - eps Delta)) / (2 eps) = <G, Delta> + O(eps^2) + O(1 / eps)

changes with eps where one of the errors is large, and stays where both are small. So the two
neighbours in the grid whose slopes agree best, over several directions, are taken for the truth,
and every eps is judged by them (`agzo.window`). A gradient would judge better, but it needs a
backward pass.

Costs 2 forwards and 2 for each direction and eps; the weights stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agzo.agzo import AGZO
from agzo.check import check_count
from agzo.optimizer import ZeroOrderOptimizer
from agzo.torch_calls.surroundings import Closure
from agzo.window import LIMIT, Row, choose, judged, quality

EPS = (1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


@dataclass(frozen=True)
class EpsWindow:
    """The usable eps of a grid, and the one to take: as far from both ends as can be."""

    eps: float
    lowest: float
    highest: float
    estimator: str
    relative_error: float
    """rms(measured - true) / rms(true) of the projected gradient at `eps`; up to .25 is usable."""
    forwards: int
    table: list[Row]
    """Each eps with what `agzo.window.quality` says of it, and whether it is usable."""

    def __str__(self) -> str:
        return (
            f"eps={self.eps:g} ({self.estimator}: usable {self.lowest:g} to {self.highest:g}, "
            f"error {self.relative_error:.2g} of the slope)"
        )


def find_eps(
    model: nn.Module,
    closure: Closure,
    token_mask: Tensor | None = None,
    *,
    method: type[ZeroOrderOptimizer] = AGZO,
    eps: Sequence[float] = EPS,
    directions: int = 8,
    **options: Any,
) -> EpsWindow:
    """Return the window of eps for a method on a model, measured on one batch.

    Args:
        model, closure, token_mask: as a step takes them.
        method: its class; the directions and the estimator are the method's.
        eps: the grid, two or more.
        directions: how many are measured, 2 or more; each has all of the grid.
        options: further arguments of the method, such as rank, estimator or embeddings.

    Raises:
        ValueError: no eps of the grid is usable, or the closure or the model is not one that a
            finite difference can be taken of.
    """
    check_count("directions", directions, minimum=2)
    grid = sorted(set(eps))
    if len(grid) < 2 or not grid[0] > 0:
        raise ValueError(f"eps={list(eps)}: allowed are two or more numbers > 0")
    calibrated = ValueError(
        f"method: {method.__name__} looks at batches before its first step; allowed are methods "
        "that need none"
    )
    if method.about.alters:  # the model itself
        raise calibrated
    optimizer = method(model, lr=0.0, eps=grid[0], **options)  # pyright: ignore[reportCallIssue]
    if optimizer.must_calibrate:
        raise calibrated
    found, base = optimizer.directions(closure, token_mask, queries=directions)
    with torch.no_grad():
        again = closure()
    if not torch.equal(torch.nan_to_num(base), torch.nan_to_num(again)):
        raise ValueError(
            f"the closure gave {base.item():.9g} and then {again.item():.9g} for the same weights; "
            "allowed is a deterministic loss (one fixed batch, no active dropout)"
        )
    scales = [sign * each for each in grid for sign in (1.0, -1.0)]
    losses = torch.stack([optimizer.losses(closure, each, scales) for each in found])
    losses = losses.double().cpu().reshape(directions, len(grid), 2)  # ..., plus and minus
    sizes = torch.tensor(grid, dtype=torch.float64, device="cpu")
    two_sided = (losses[..., 0] - losses[..., 1]) / (2 * sizes)  # (directions, eps)
    one_sided = (losses[..., 0] - base.double().cpu()) / sizes
    truth = _agreed(two_sided, grid)
    measured = one_sided if optimizer.estimator == "one_sided" else two_sided
    table: list[Row] = [
        {"eps": each} | judged(_pairs(truth, measured[:, i])) for i, each in enumerate(grid)
    ]
    row = choose(table, f"eps={grid}")
    if row["eps"] is None:
        raise ValueError(
            f"eps={grid}: none is usable for {optimizer.estimator} slopes; the best, "
            f"{row['best']:g}, is {row['relative_error']:.2g} of the slope off, and {LIMIT} is "
            "allowed: try another grid, estimator='two_sided', or a larger batch"
        )
    return EpsWindow(
        row["eps"],
        row["lowest"],
        row["highest"],
        optimizer.estimator,
        row["relative_error"],
        2 + len(scales) * directions,
        table,
    )


def _agreed(slopes: Tensor, grid: Sequence[float]) -> Tensor:
    """Return the slopes (directions,) of the two neighbours in the grid that agree best."""
    best, error = 0, math.inf
    for i in range(len(grid) - 1):
        row = quality(_pairs(slopes[:, i], slopes[:, i + 1]))
        apart = row["relative_error"]
        whole = row["finite"] == row["n"] and bool(torch.isfinite(slopes[:, i]).all())
        if whole and apart is not None and apart < error:
            best, error = i, apart
    if not error <= LIMIT:
        raise ValueError(
            f"eps={list(grid)}: the slopes of no two neighbours agree (at best within {error:.2g} "
            f"of their size, and {LIMIT} is allowed); allowed is a finer or wider grid, or a loss "
            "of higher precision"
        )
    return slopes[:, best : best + 2].mean(dim=1)


def _pairs(truth: Tensor, measured: Tensor) -> list[tuple[float, float | None]]:
    """Return (true, measured) as plain numbers; what is not finite is None."""
    found = zip(truth.tolist(), measured.tolist(), strict=True)
    return [(true, each if math.isfinite(each) else None) for true, each in found]
