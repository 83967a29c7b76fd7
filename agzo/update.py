"""How to move: W <- (1 - lr wd) W - lr * mean over queries of g * Delta, and how that is rounded.

The rounding policy belongs to the method: in bfloat16 most of a small update is lost to nearest
rounding.

| rounding     | float16 and bfloat16 weights                            | memory             |
|--------------|---------------------------------------------------------|--------------------|
| `nearest`    | rounded to the nearest value                            | none               |
| `stochastic` | up or down at random, right on average                  | none               |
| `master`     | a float32 copy is updated, the weight is its rounding   | 4 bytes a weight   |

float32 and float64 weights are updated in their own precision under each policy. The pass over the
weight is the direction's own, `Direction.add_to`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from agzo.directions.direction import Direction, Sum
from agzo.rng import Noise
from agzo.torch_calls.inputs import is_low_precision

ROUNDINGS = ("nearest", "stochastic", "master")


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
    low = is_low_precision(target.dtype)
    key = noise.key(name, "rounding") if low and rounding == "stochastic" else None
    if low and len(steps) > 1:
        steps = [(Sum(steps), torch.ones((), dtype=torch.float32, device=target.device))]
    for direction, coefficient in steps:
        direction.add_to(target, keep, coefficient, key)
        keep = None
    if master is not None:
        weight.copy_(master)
