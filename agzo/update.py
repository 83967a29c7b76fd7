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

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from agzo.directions.direction import Direction, Sum
from agzo.execution.perturbed import Directions
from agzo.execution.weights import Weights
from agzo.moments import Combination
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


class Mover:
    """Moves the parameters of an optimizer along what its queries measured.

    Args:
        weights: where they are; streamed ones change later.
        names: of the parameters, by which stochastic rounding is addressed.
        rounding: one of `ROUNDINGS`.
        moments: turn the measured queries into one direction; None adds them as they are.
    """

    def __init__(
        self,
        weights: Weights,
        names: Mapping[nn.Parameter, str],
        rounding: str,
        moments: Combination | None,
    ) -> None:
        self._weights, self._names = weights, names
        self._rounding, self._moments = rounding, moments

    def move(
        self,
        groups: Iterable[Mapping[str, Any]],
        state: MutableMapping[Any, Any],
        queries: list[tuple[Directions, Tensor]],
        alive: Tensor,
        noise: Noise,
        refreshed: bool,
    ) -> None:
        """Set each parameter to ``(1 - lr wd) W - lr * mean of g Delta``.

        Args:
            groups: torch's parameter groups, with "lr" and "weight_decay".
            state: torch's state, by parameter: moments and float32 copies.
            queries: (directions, g) for each.
            alive: 0-dim bool; False leaves all as it is.
            noise: of the step.
            refreshed: the right factors are others than those of the step before.
        """
        alive = alive.clone()  # streamed weights change later, by what held in this step
        for group in groups:
            lr = group["lr"]
            lr = lr.clone() if isinstance(lr, Tensor) else lr  # a scheduler changes it in place
            decay = lr * group["weight_decay"]
            keep = 1.0 - alive.double() * decay if decay else None
            for parameter in group["params"]:
                mine = [(d[parameter], g) for d, g in queries if parameter in d]
                if mine:
                    change = partial(
                        self._change, parameter, state, mine, lr, keep, alive, noise, refreshed,
                    )  # fmt: skip
                    self._weights.change(parameter, change)

    def _change(
        self,
        parameter: nn.Parameter,
        state: MutableMapping[Any, Any],
        queries: list[tuple[Direction, Tensor]],
        lr: float | Tensor,
        keep: Tensor | None,
        alive: Tensor,
        noise: Noise,
        refreshed: bool,
    ) -> None:
        """Move one parameter, where it is now."""
        device = parameter.device
        queries = [(direction, g.to(device)) for direction, g in queries]
        alive = alive.to(device)
        if self._moments is None:
            share = -lr / len(queries)
            steps = [(d, torch.where(alive, g * share, 0.0)) for d, g in queries]
        else:
            own = state[parameter]
            moved = self._moments.direction(queries, own, noise.step, refreshed, alive)
            steps = [(moved, alive.double() * -lr)]
        keep = keep if keep is None else keep.to(device)
        master = state[parameter].get("master") if parameter in state else None
        move(parameter, steps, keep, self._rounding, master, noise, self._names[parameter])
