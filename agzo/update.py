"""How to move: W <- (1 - lr wd) W - lr * mean over queries of g * Delta, and how that is rounded.

The rounding policy belongs to the method: in bfloat16 most of a small update is lost to nearest
rounding.

| rounding     | float16 and bfloat16 weights                            | memory             |
|--------------|---------------------------------------------------------|--------------------|
| `nearest`    | rounded to the nearest value                            | none               |
| `stochastic` | up or down at random, right on average                  | none               |
| `master`     | a float32 copy is updated, the weight is its rounding   | 4 bytes a weight   |

float32 and float64 weights are updated in their own precision under each policy. A dense update
is made in row chunks; a low-rank one is a single pass over the weight.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from agzo.direction import Direction, LowRank
from agzo.rng import Noise

ROUNDINGS = ("nearest", "stochastic", "master")


def is_low_precision(dtype: torch.dtype) -> bool:
    """Tell whether updates of this dtype need a rounding policy."""
    return dtype in (torch.float16, torch.bfloat16)


@torch.no_grad()
def move(
    weight: Tensor,
    steps: Sequence[tuple[Direction, Tensor]],
    keep: Tensor | None,
    rounding: str,
    master: Tensor | None,
    noise: Noise,
    name: str,
) -> None:
    """Set weight to ``keep * weight + sum(c * direction)`` in place.

    Args:
        weight: the parameter's tensor, any float dtype.
        steps: (direction, c) pairs; c is a 0-dim tensor on the weight's device.
        keep: 1 - lr * weight_decay, a 0-dim tensor on the weight's device; None without decay.
        rounding: one of `ROUNDINGS`.
        master: float32 copy that is updated instead when rounding is "master", else None.
        noise, name: address of the stochastic rounding.
    """
    target = weight if master is None else master
    if not is_low_precision(target.dtype) and all(isinstance(d, LowRank) for d, _ in steps):
        _move_low_rank(target, steps, keep)
    else:
        for start, stop, change in _weighted_rows(steps, weight):
            rows = target if weight.dim() == 0 else target[start:stop]
            _move_rows(rows, change, keep, rounding, (noise, name, start))
            del change  # before the next chunk is made
    if master is not None:
        weight.copy_(master)


def _move_low_rank(
    target: Tensor, steps: Sequence[tuple[Direction, Tensor]], keep: Tensor | None
) -> None:
    if keep is not None:
        target.mul_(keep)
    for direction, coefficient in steps:
        assert isinstance(direction, LowRank)
        left = direction.left.to(target.dtype) * coefficient
        target.addmm_(left, direction.right.T.to(target.dtype))


def _move_rows(
    rows: Tensor,
    change: Tensor,
    keep: Tensor | None,
    rounding: str,
    address: tuple[Noise, str, int],
) -> None:
    """Set rows to ``keep * rows + change`` in place; `change` is overwritten."""
    if not is_low_precision(rows.dtype):
        if keep is not None:
            rows.mul_(keep)
        rows.add_(change)
        return
    moved = change.add_(rows if keep is None else rows.float() * keep)  # float32
    if rounding == "stochastic":
        noise, name, start = address
        bits = noise.bits(moved.shape, moved.device, name, start)
        moved = round_stochastically(moved, bits, rows.dtype)
    rows.copy_(moved)


def _weighted_rows(steps: Sequence[tuple[Direction, Tensor]], weight: Tensor):
    """Yield (start, stop, sum of c * rows), in float64 for a float64 weight, else float32."""
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    blocks = [(direction.rows(), coefficient.to(dtype)) for direction, coefficient in steps]
    while True:
        start, stop, change = 0, 0, None
        for rows, coefficient in blocks:
            block = next(rows, None)
            if block is None:
                return
            start, stop, values = block
            del block
            values = values.to(dtype).mul_(coefficient)
            change = values if change is None else change.add_(values)
            del values
        assert change is not None
        yield start, stop, change
        del change  # before the next chunk is made


def round_stochastically(values: Tensor, bits: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float32 values to float16 or bfloat16, up or down at random, right on average.

    Args:
        values: float32.
        bits: int32 of the same shape, uniform in [0, 2^16).
        dtype: torch.float16 or torch.bfloat16.
    """
    if dtype == torch.bfloat16:
        dropped = 16  # bits of a float32 mantissa that the target lacks
    else:
        dropped = 13
        bits = bits >> 3
    pattern = (values.view(torch.int32) + bits) >> dropped << dropped
    rounded = torch.where(torch.isfinite(values), pattern.view(torch.float32), values)
    if dtype == torch.float16:
        # Below the smallest normal number the spacing is fixed.
        grid = torch.floor(values * 2.0**24 + bits * 2.0**-13) * 2.0**-24
        rounded = torch.where(values.abs() < 2.0**-14, grid, rounded)
    return rounded.to(dtype)
