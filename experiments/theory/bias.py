"""Proposition 5.2 and Corollary 5.3: what smoothing costs, and when nothing else is lost.

To see a small bias in noisy estimates, the part whose mean is known is taken off: the mean of
<G, Delta> Delta is G A A^T whatever the loss (Lemma A.1), so the bias is the mean of
(g - <G, Delta>) Delta, and that is small whenever mu is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agzo import ZeroOrderOptimizer
from agzo.torch_calls.surroundings import Closure
from experiments.theory.evidence import PILOT, Context, Fields, Row
from experiments.theory.scenes import (
    BLOCK,
    HOLD,
    LATER,
    draw,
    flat_gradient,
    hold_bases,
    normal,
    projected,
)

WIDTH, OUT = 6, 3


def log_cosh(model: nn.Module, x: Tensor) -> Tensor:
    """Return the mean over tokens of sum log cosh(x W^T): second derivatives at most |x|^2."""
    y = model(x)
    return (y + F.softplus(-2.0 * y) - math.log(2.0)).sum() / x.shape[0]


def lipschitz(x: Tensor) -> float:
    """Return L of the gradient of `log_cosh`: the largest eigenvalue of X^T X / tokens."""
    return torch.linalg.matrix_norm(x, 2).item() ** 2 / x.shape[0]


def remainders(
    optimizer: ZeroOrderOptimizer, closures: Sequence[Closure], samples: int, first_step: int
) -> Tensor:
    """Return (g - <G, Delta>) Delta, (n, coordinates): their mean is the bias from smoothing."""
    found = []
    for index, closure in enumerate(closures):
        share = math.ceil(samples / len(closures))
        draws = draw(optimizer, [closure], share, first_step + index * 10**5)
        slope = draws.delta @ flat_gradient(optimizer, closure)
        found.append((draws.g - slope)[:, None] * draws.delta)
    return torch.cat(found)


def layer(context: Context, what: str) -> nn.Linear:
    """Return a layer with random weights, float64."""
    model = nn.Linear(WIDTH, OUT, bias=False, dtype=torch.float64).eval()
    nn.init.normal_(model.weight, std=0.6, generator=context.generator(what))
    return model


def lipschitz_bound(context: Context) -> list[Row]:
    """Prop. 5.2: |grad F_mu,A AA^T - grad F AA^T| <= C mu, here with C = L sqrt(D)."""
    name, rank, mu = "Prop. 5.2", 2, 0.8
    model = layer(context, name)
    x = normal(context.generator(name + " x"), 8, WIDTH)

    def closure() -> Tensor:
        return log_cosh(model, x)

    def bias(estimator: str, mu: float, samples: int, first: int) -> Tensor:
        optimizer = context.agzo(
            model, lr=0.0, eps=mu, rank=rank, refresh_every=HOLD, queries=BLOCK,
            estimator=estimator, seed=context.noise_seed(name),
        )  # fmt: skip
        hold_bases(optimizer, closure)
        return remainders(optimizer, [closure], samples, first)

    constant = lipschitz(x) * math.sqrt(OUT * rank)
    setting = "log cosh layer, L known, C = L sqrt(D), rank 2, mu {}"
    tight = context.precision * context.coarse
    n = context.size_length(bias("one_sided", mu, PILOT, 1), tight * constant * mu)
    bound = bias("one_sided", mu, n, LATER)
    found = context.length(bound, constant * mu, sized=context.sized(tight, n))
    # How the bias falls with mu, from the two-sided estimate: the same mean, less noise. Both sizes
    # are measured on the same directions, so that their ratio is known better than either.
    small, large = 0.1, 0.2

    def along(samples: int, first: int) -> tuple[Tensor, Tensor]:
        pair = [bias("two_sided", m, samples, first) for m in (small, large)]
        return pair[0] @ axis, pair[1] @ axis

    pilot = bias("two_sided", large, 4 * PILOT, 2 * LATER).mean(0)
    axis = pilot / pilot.norm()

    def ratio(halved: Tensor, whole: Tensor) -> Tensor:
        """Return samples whose mean is the ratio of the means, to first order."""
        first, second = halved.mean(), whole.mean()
        return second / first * (1.0 + whole / second - halved / first)

    half = 0.5
    n = context.size(ratio(*along(PILOT, 3 * LATER)), half)
    rate = context.mean(ratio(*along(max(n, 4 * PILOT), 4 * LATER)), half)
    power: Fields = {key: math.log2(max(rate[key], 1e-9)) for key in ("measured", "low", "high")}
    return [
        Row(name, "length of the bias, share of C mu", setting.format(mu), 1.0,
            relation="<=", **found),
        Row(name, "power of mu with which the bias grows, where the loss has three derivatives",
            setting.format("0.1 and 0.2, two-sided"), 1.5, relation=">=", **power,
            samples=rate["samples"], sized="ratio of the two to 0.5",
            note="2 in the limit: for a smooth loss the bound C mu is far from reached"),
    ]  # fmt: skip


def kink(context: Context) -> list[Row]:
    """Power 1 is reached at a kink of the gradient: half the square of relu, at W = 0."""
    name, mu = "Prop. 5.2", 0.1
    model = layer(context, name)
    nn.init.zeros_(model.weight)
    x = normal(context.generator(name + " kink"), 1, WIDTH)

    def closure() -> Tensor:
        return 0.5 * F.relu(model(x)).square().sum()

    optimizer = context.agzo(
        model, lr=0.0, eps=mu, rank=1, refresh_every=HOLD, queries=BLOCK,
        seed=context.noise_seed(name + " kink"),
    )  # fmt: skip
    hold_bases(optimizer, closure)
    # The gradient at 0 is 0; the mean estimate is mu |x|^2 / sqrt(2 pi) in each row, along x.
    along = x.expand(OUT, WIDTH).reshape(-1) / (x.norm() * OUT**0.5)
    bound = x.norm().item() ** 2 * math.sqrt(OUT) * mu
    claimed, half = 1.0 / math.sqrt(2.0 * math.pi), context.precision * context.coarse * 0.5
    pilot = draw(optimizer, [closure], PILOT).estimates @ along / bound
    draws = draw(optimizer, [closure], context.size(pilot, half), LATER)
    return [
        Row(name, "length of the bias, share of C mu: 1/sqrt(2 pi), whatever mu is",
            "half squared relu at W = 0, rank 1, mu 0.1", claimed,
            **context.mean(draws.estimates @ along / bound, half),
            note="a gradient that is Lipschitz and no more: the power 1 of the bound is reached"),
    ]  # fmt: skip


def spanning(context: Context) -> list[Row]:
    """Cor. 5.3: a basis that spans every batch's inputs leaves the bias of smoothing alone."""
    name = "Cor. 5.3"
    model = layer(context, name)
    generator = context.generator(name + " x")
    shape = normal(generator, 2, WIDTH)  # every input of every batch is in these two rows' span
    for_basis, *batches = [normal(generator, 8, 2) @ shape for _ in range(3)]
    closures = [lambda x=x: log_cosh(model, x) for x in batches]
    constant = max(map(lipschitz, batches)) * math.sqrt(OUT * 2)
    rows = []
    for rank, mu in ((2, 0.05), (1, 0.001)):
        optimizer = context.agzo(
            model, lr=0.0, eps=mu, rank=rank, refresh_every=HOLD, queries=BLOCK,
            seed=context.noise_seed(f"{name} {rank} {mu}"),
        )  # fmt: skip
        bases = hold_bases(optimizer, lambda: log_cosh(model, for_basis))
        gradient = flat_gradient(optimizer, lambda: torch.stack([c() for c in closures]).mean())
        offset = projected(optimizer, gradient, bases) - gradient
        scale = gradient.norm().item()
        pilot = remainders(optimizer, closures, PILOT, 1)
        tight = 0.2 * constant * mu
        n = context.size_length(pilot, tight)
        samples = remainders(optimizer, closures, n, LATER)
        found = context.length(samples, scale, offset, context.sized(tight / scale, n))
        setting = f"log cosh layer, inputs of rank 2, 2 batches, mu {mu:g}, rank {rank}"
        bound = Row(
            name, "|E g Delta - grad F| / |grad F|, bound C mu / |grad F|", setting,
            constant * mu / scale, relation="<=", **found,
        )  # fmt: skip
        if rank == 2:
            rows.append(bound)
            continue
        note = "r = 1 is less than the inputs' rank: the basis does not span the gradient"
        rows.append(replace(bound, expected=False, note=note))
        rows.append(
            Row(name, "the same, against what the basis cannot see: |G (I - AA^T)| / |G|",
                setting, offset.norm().item() / scale, **found)
        )  # fmt: skip
    return rows
