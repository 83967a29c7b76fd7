"""Proposition 5.1: given its basis, AGZO's estimate has the mean grad F_mu,A A A^T (Eq. 17)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from experiments.theory.evidence import Context, Fields, Row, but
from experiments.theory.scenes import (
    BLOCK,
    HOLD,
    Draws,
    TwoInputs,
    draw_enough,
    flat_gradient,
    hold_bases,
    normal,
    projected,
    smoothed_gradients,
    tanh_network,
)

NAME = "Prop. 5.1"
PER_SMOOTHED = 16  # estimates for each exact gradient of the smoothed loss


def quadratic(context: Context) -> list[Row]:
    """A loss quadratic in all weights: smoothing adds a constant, so grad F_mu,A = grad F."""
    generator = context.generator("quadratic")
    model, mu = TwoInputs(generator), 0.1
    batches = [[normal(generator, 8, size) for size in (5, 6, 3)] for _ in range(5)]

    def loss(batch: list[Tensor]) -> Tensor:
        return F.mse_loss(model(*batch[:2]), batch[2])

    for_basis, *population = batches
    closures = [lambda batch=batch: loss(batch) for batch in population]
    optimizer = context.agzo(
        model, lr=0.0, eps=mu, rank=2, refresh_every=HOLD, queries=BLOCK,
        seed=context.noise_seed(NAME),
    )  # fmt: skip
    bases = hold_bases(optimizer, lambda: loss(for_basis))
    gradient = flat_gradient(optimizer, lambda: torch.stack([c() for c in closures]).mean())
    claimed = projected(optimizer, gradient, bases)
    half = context.precision * context.coarse

    def slope(draws: Draws) -> Tensor:
        return draws.estimates @ claimed / claimed.square().sum()

    draws = draw_enough(optimizer, closures, lambda d: context.size(slope(d), half))
    setting = "quadratic loss, 2 layers and biases, mu 0.1, rank 2, 4 batches, basis of a fifth"
    outside = draws.estimates - projected(optimizer, draws.estimates, bases)
    return [
        Row(NAME, "the mean estimate, measured along grad F AA^T, has length 1 of it", setting,
            1.0, **context.mean(slope(draws), half)),
        Row(NAME, "distance of the mean estimate from grad F AA^T, all coordinates, share of it",
            setting, 0.0, **context.length(draws.estimates, claimed.norm().item(), -claimed,
                                           "as the row above")),
        Row(NAME, "no estimate leaves the basis: largest entry of g Delta (I - AA^T), share of "
            "g Delta", setting, 0.0,
            (outside.norm(dim=1) / draws.estimates.norm(dim=1)).max().item(), tolerance=2e-6,
            sized="float32 bases"),
    ]  # fmt: skip


def smooth(context: Context) -> list[Row]:
    """A network that is not quadratic, at a mu so large that F_mu,A is not F."""
    generator = context.generator("smooth")
    model, mu = tanh_network(generator), 0.4
    x, y = normal(generator, 10, 6), normal(generator, 10, 3)
    other = normal(generator, 10, 6)

    def loss(weights: Mapping[str, Tensor]) -> Tensor:
        return F.mse_loss(functional_call(model, dict(weights), (x,)), y)

    optimizer = context.agzo(
        model, lr=0.0, eps=mu, rank=2, refresh_every=HOLD, queries=BLOCK,
        seed=context.noise_seed(NAME + " smooth"),
    )  # fmt: skip
    bases = hold_bases(optimizer, lambda: model(other).sum())

    def closure() -> Tensor:
        return F.mse_loss(model(x), y)

    def smoothed(first: int, blocks: int) -> Tensor:
        found = smoothed_gradients(optimizer, loss, mu, range(first, first + blocks))
        return projected(optimizer, found, bases)

    rough = smoothed(2 * 10**6, 3).mean(0)  # where to look: fixed before the measurement
    half = context.precision * context.coarse

    def slope(vectors: Tensor) -> Tensor:
        return vectors @ rough / rough.square().sum()

    draws = draw_enough(
        optimizer, [closure], lambda d: context.size(slope(d.estimates), 0.9 * half)
    )
    count = draws.g.numel() // PER_SMOOTHED
    exact = smoothed(3 * 10**6, math.ceil(count / BLOCK))[:count]
    # Each exact gradient is paired with the mean of a few estimates: independent differences.
    gradient = flat_gradient(optimizer, closure)
    plain = projected(optimizer, gradient, bases)
    # The bias from smoothing, seen better without <G, Delta> Delta, whose mean is G A A^T.
    remainder = (draws.g - draws.delta @ gradient)[:, None] * draws.delta

    def grouped(vectors: Tensor) -> Tensor:
        kept = vectors[: count * PER_SMOOTHED]
        return kept.view(count, PER_SMOOTHED, -1).mean(1)

    scale = exact.mean(0).norm().item()
    setting = "tanh network, 2 layers and biases, mu 0.4, rank 2, basis of another batch"
    by = f"as the row above, with {count} gradients"
    samples: Fields = {"samples": draws.g.numel()}
    sized = context.sized(half, draws.g.numel())
    first = context.mean(1.0 + slope(grouped(draws.estimates) - exact), half)
    return [
        Row(NAME, "the mean estimate along grad F_mu,A AA^T (by backpropagation at W + mu Delta) "
            "has length 1 of it", setting, 1.0,
            **but(first, sized=sized, **samples)),
        Row(NAME, "distance of the mean estimate from grad F_mu,A AA^T, share of it", setting, 0.0,
            **but(context.length(grouped(remainder) + plain - exact, scale, sized=by), **samples)),
        Row(NAME, "the same with the plain gradient, grad F AA^T, in place of the smoothed one",
            setting, 0.0, **context.length(remainder, plain.norm().item(), sized=by),
            expected=False, note="mu is not small: the mean is the smoothed loss's gradient"),
    ]  # fmt: skip
