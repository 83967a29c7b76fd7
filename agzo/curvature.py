"""What limits a step along a direction: its slope and its curvature, both by forwards alone.

    g = (f(W + eps D) - f(W - eps D)) / (2 eps)          the slope, <grad f, D>
    c = (f(W + eps D) + f(W - eps D) - 2 f(W)) / eps^2   the curvature, D^T H D

A zeroth-order step W - lr g D is taken for the sake of all examples and measured on a few. With g
of the step's minibatch and g', c' of other examples, to second order, they lose on average

    lr E[g g'] - lr^2 E[g^2 c'] / 2

which is largest at lr = E[g g'] / E[g^2 c'], where it is E[g g']^2 / (2 E[g^2 c']): the progress of
the best step. A direction that is better aligned with the gradient has a larger E[g g'], and helps
only if it does not meet as much more curvature.

`Bend` is one sample: a minibatch, a direction of its own, and the two pairs. Cost: a forward that
the minibatch's bases are taken in, two of the minibatch, and two of the other examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agzo.execution.perturb import Directions
from agzo.optimizer import ZeroOrderOptimizer
from agzo.torch_calls.surroundings import Closure

RESAMPLES = 2000
"""Samples drawn with replacement for an interval."""


@dataclass(frozen=True)
class Bend:
    """Slope and curvature along one direction, on its own minibatch and on other examples."""

    g: float
    c: float
    g_other: float
    c_other: float


def bend(
    optimizer: ZeroOrderOptimizer,
    closure: Closure,
    token_mask: Tensor | None,
    other: Closure,
    other_loss: Tensor,
    step: int,
    eps: float,
) -> Bend:
    """Measure along the direction that step number `step` takes on a minibatch.

    Args:
        optimizer: any zeroth-order method; its weights and state stay as they are.
        closure, token_mask: of the minibatch, as for `step`.
        other: returns the loss of other examples; other_loss is its value at W (0-dim).
        step: number of the direction; each has other noise.
        eps: size of the perturbation, in the range where g does not depend on it.
    """
    (directions, *_), loss = optimizer.directions(closure, token_mask, step)
    own = _slope_and_curvature(optimizer, closure, loss, directions, eps)
    rest = _slope_and_curvature(optimizer, other, other_loss, directions, eps)
    return Bend(*own, *rest)


def _slope_and_curvature(
    optimizer: ZeroOrderOptimizer,
    closure: Closure,
    loss: Tensor,
    directions: Directions,
    eps: float,
) -> tuple[float, float]:
    """Return g and c; differences of losses are taken in float64."""
    plus, minus = optimizer.losses(closure, directions, (eps, -eps)).double().tolist()
    middle = loss.double().item()
    return (plus - minus) / (2.0 * eps), (plus + minus - 2.0 * middle) / eps**2


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def summary(bends: Sequence[Bend], seed: int = 0) -> dict[str, Interval]:
    """Return what the samples say, each with an interval over samples.

    Keys: "g2" E g^2, "gg" E[g g'], "c" E c, "c_other" E c', "c_spread" the standard deviation of
    c', "g2c" E[g^2 c'], "lr" the best learning rate, "progress" that of the step with it, "lr_own"
    and "progress_own" the same by the minibatch alone. A rate or a progress is infinite where the
    curvature is not positive: no step is too long then.
    """
    if len(bends) < 2:
        raise ValueError(f"{len(bends)} samples: allowed are two or more, for an interval")
    rows, count = [[b.g, b.c, b.g_other, b.c_other] for b in bends], len(bends)
    values = torch.tensor(rows, dtype=torch.float64, device="cpu")
    draws = torch.randint(
        *(count, (RESAMPLES, count)),
        generator=torch.Generator("cpu").manual_seed(seed),
        dtype=torch.int64,
        device="cpu",
    )
    resampled = _statistics(values[draws])  # key -> (RESAMPLES,)
    found = {}
    for key, value in _statistics(values[None]).items():
        low = resampled[key].quantile(0.025, interpolation="lower")  # some may be infinite
        high = resampled[key].quantile(0.975, interpolation="higher")
        found[key] = Interval(value.item(), low.item(), high.item())
    return found


def _statistics(values: Tensor) -> dict[str, Tensor]:
    """Return each statistic of samples (resamples, samples, 4), (resamples,)."""
    g, c, g_other, c_other = values.unbind(-1)
    g2, gg = g.square().mean(1), (g * g_other).mean(1)
    g2c, g2c_own = (g.square() * c_other).mean(1), (g.square() * c).mean(1)

    def best(gain: Tensor, cost: Tensor) -> tuple[Tensor, Tensor]:
        rate = torch.where(cost > 0, gain / cost, torch.inf)
        return rate.clamp(min=0.0), torch.where(gain > 0, gain * rate / 2, 0.0)

    lr, progress = best(gg, g2c)
    lr_own, progress_own = best(g2, g2c_own)
    return {
        "g2": g2, "gg": gg, "c": c.mean(1), "c_other": c_other.mean(1),
        "c_spread": c_other.std(1), "g2c": g2c, "lr": lr, "progress": progress,
        "lr_own": lr_own, "progress_own": progress_own,
    }  # fmt: skip
