"""Theorem 5.4, Corollary 5.5, Lemma 5.6: how well an estimate points along the gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from agzo import ZeroOrderOptimizer
from agzo.activations.spectrum import gradients
from agzo.alignment import beta, captured, cosine, expected_cosine
from agzo.directions.low_rank import LowRank
from agzo.rng import Noise
from experiments.theory.evidence import PILOT, Context, Row, but
from experiments.theory.scenes import (
    BLOCK,
    EPS,
    HOLD,
    LATER,
    Draws,
    LinearLoss,
    draw_enough,
    flat_gradient,
    hold_bases,
    normal,
    projected,
    tanh_network,
)

OUT, WIDTH, TOKENS = 6, 10, 24
SAYS = "E cos of the estimate and the gradient = beta_D |GA| / |G|, D = d_out r"


def one_layer(context: Context) -> LinearLoss:
    """Return a layer with random inputs and gradient."""
    generator = context.generator("one layer")
    return LinearLoss.make(normal(generator, TOKENS, WIDTH), normal(generator, TOKENS, OUT))


def cosine_row(
    context: Context, name: str, says: str, setting: str, claimed: float,
    optimizer: ZeroOrderOptimizer, scene: LinearLoss, **rest: Any,
) -> tuple[Row, Draws]:  # fmt: skip
    """Measure E cos on a layer, so precisely that the interval is a share of the claim."""
    half, gradient = context.precision * claimed, scene.gradient.reshape(-1)
    draws = draw_enough(
        optimizer, [scene.closure], lambda d: context.size(d.cosines(gradient), half)
    )
    found = context.mean(draws.cosines(gradient), half)
    return Row(name, says, setting, claimed, **found, **rest), draws


def one_layer_cosines(context: Context) -> list[Row]:
    """Thm. 5.4 for ranks 1, 2, 4; Remark A.6; the mean squared error of the estimate."""
    scene, rows = one_layer(context), []
    gradient = scene.gradient
    for rank in (1, 2, 4):
        optimizer = context.agzo(
            scene.model, lr=0.0, eps=EPS, rank=rank, refresh_every=HOLD, queries=BLOCK,
            seed=context.noise_seed(f"theorem {rank}"),
        )  # fmt: skip
        basis = hold_bases(optimizer, scene.closure)["weight"]
        claimed = beta(OUT * rank) * captured(gradient, basis).item()
        row, draws = cosine_row(
            context, "Thm. 5.4", SAYS, f"one layer 6 x 10, rank {rank}", claimed, optimizer, scene
        )
        rows.append(row)
        if rank == 2:
            inside, errors = gradient @ basis, draws.estimates - gradient.reshape(-1)
            rest = (gradient - inside @ basis.T).square().sum().item()
            error = (OUT * rank + 1) * inside.square().sum().item() + rest
            found = context.mean(errors.square().sum(1) / error)
            rows += [
                Row("Remark A.6", "|GA| = |GAA^T|, share of it", f"one layer 6 x 10, rank {rank}",
                    1.0, (inside.norm() / (inside @ basis.T).norm()).item(), tolerance=1e-6,
                    sized="float32 bases"),
                Row("MSE (AIM-ZO)", "E |g Delta - G|^2, share of (d_out r + 1) |GA|^2 + "
                    "|G (I - AA^T)|^2", f"one layer 6 x 10, rank {rank}", 1.0,
                    **but(found, sized="as Thm. 5.4, rank 2")),
            ]  # fmt: skip
    return rows


def whole_network(context: Context) -> list[Row]:
    """Thm. 5.4 over several layers and biases at once, and why one of its layers is different."""
    model = tanh_network(context.generator("network"))
    x, y = (normal(context.generator("network batch"), 12, size) for size in (6, 3))

    def closure() -> Tensor:
        return F.mse_loss(model(x), y)

    optimizer = context.agzo(
        model, lr=0.0, eps=EPS, rank=2, refresh_every=HOLD, queries=BLOCK,
        seed=context.noise_seed("network"),
    )  # fmt: skip
    bases = hold_bases(optimizer, closure)
    gradient = flat_gradient(optimizer, closure)
    # Delta over all layers is R in coordinates: d_out r numbers a weight, and every bias.
    dimension = sum(
        t.parameter.shape[0] * 2 if t.name in bases else t.parameter.numel()
        for t in optimizer.tuned
    )
    share = projected(optimizer, gradient, bases).norm() / gradient.norm()
    claimed = beta(dimension) * share.item()
    half = context.precision * claimed
    draws = draw_enough(optimizer, [closure], lambda d: context.size(d.cosines(gradient), half))
    directions = optimizer.estimate(closure, step=1).queries[0][0]
    by_library = expected_cosine(directions, gradients(closure, optimizer.tuned))
    setting = "tanh network, 2 layers and biases, rank 2"
    # The first layer's part of the same estimates, against the first layer's gradient.
    first = optimizer.tuned[0]
    n = first.parameter.numel()
    part = Draws(draws.delta[:, :n], draws.g).cosines(gradient[:n])
    sized = "as the first row of this network"
    own = beta(first.parameter.shape[0] * 2) * captured(
        gradient[:n].view(first.parameter.shape), bases[first.name]
    )
    return [
        Row("Thm. 5.4", "E cos over all layers together, D the sum of d_out r and of the dense "
            "coordinates", setting, claimed, **context.mean(draws.cosines(gradient), half)),
        Row("Thm. 5.4", "agzo.alignment.expected_cosine gives this number", setting, claimed,
            by_library, tolerance=1e-6 * claimed, sized="float32 bases"),
        Row("Thm. 5.4", "E cos of the first layer's part alone = its own beta_D |GA| / |G|",
            setting, own.item(), **but(context.mean(part), sized=sized),
            expected=False, note="one layer is assumed: here one g is shared by all layers"),
        Row("instead", "E |cos| of the first layer's part = its own beta_D |GA| / |G|: its sign is "
            "what the other layers spoil", setting, own.item(),
            **but(context.mean(part.abs()), sized=sized)),
    ]  # fmt: skip


def mezo(context: Context) -> list[Row]:
    """Cor. 5.5: a dense direction."""
    scene = one_layer(context)
    optimizer = context.mezo(
        scene.model, lr=0.0, eps=EPS, estimator="one_sided", queries=BLOCK,
        seed=context.noise_seed("mezo"),
    )  # fmt: skip
    claimed = beta(OUT * WIDTH)
    setting = "one layer 6 x 10, MeZO, one-sided"
    return [cosine_row(context, "Cor. 5.5", "E cos = beta_D, D = d_out d_in", setting, claimed,
                       optimizer, scene)[0]]  # fmt: skip


def lozo(context: Context) -> list[Row]:
    """Thm. 5.4 read for LOZO, whose V is random and not orthonormal."""
    rows, width = [], 4
    note = "V's columns are not orthonormal: the theorem needs it"
    for rank in (1, 2):
        options: dict[str, Any] = {
            "rank": rank, "refresh_every": HOLD, "queries": BLOCK, "estimator": "one_sided",
        }  # fmt: skip
        seed = context.noise_seed(f"lozo {rank}")
        right = lozo_right(context, width, options, seed)
        # The gradient lies along V's weaker direction, where the difference is large.
        _, _, vh = torch.linalg.svd(right.T, full_matrices=False)
        generator = context.generator(f"lozo {rank}")
        gradient = normal(generator, OUT, 1) @ vh[-1:] + 0.1 * normal(generator, OUT, width)
        scene = LinearLoss.make(torch.eye(width, dtype=torch.float64), gradient.T)
        optimizer = context.lozo(scene.model, lr=0.0, eps=EPS, seed=seed, **options)
        claimed = beta(OUT * rank) * captured(gradient, torch.linalg.qr(right).Q).item()
        says = "E cos = beta_D |GA| / |G| with A the orthonormalised V"
        setting = f"one layer 6 x {width}, LOZO, rank {rank}, G mostly along V's weakest direction"
        extra = {} if rank == 1 else {"expected": False, "note": note}
        rows.append(
            cosine_row(context, "Thm. 5.4", says, setting, claimed, optimizer, scene, **extra)[0]
        )
    return [*rows, *lozo_wide(context)]


def lozo_right(context: Context, width: int, options: dict[str, Any], seed: int) -> Tensor:
    """Return the V that LOZO will use for a layer of this width, (d_in, r) float64."""
    scene = LinearLoss.make(torch.zeros(1, width), torch.zeros(1, OUT))
    optimizer = context.lozo(scene.model, lr=0.0, eps=EPS, seed=seed, **options)
    direction = optimizer.estimate(scene.closure, step=1).queries[0][0][
        optimizer.tuned[0].parameter
    ]
    assert isinstance(direction, LowRank)
    return direction.right.double()


def lozo_wide(context: Context) -> list[Row]:
    """The same at a width like a real model's: V^T V is nearly a multiple of the identity."""
    generator = context.generator("lozo wide")
    x, q = normal(generator, 4, 1024), normal(generator, 4, OUT)
    scene = LinearLoss.make(x, q)
    optimizer = context.lozo(
        scene.model, lr=0.0, eps=EPS, rank=2, refresh_every=HOLD, queries=BLOCK,
        estimator="one_sided", seed=context.noise_seed("lozo wide"),
    )  # fmt: skip
    exact = {optimizer.tuned[0].parameter: scene.gradient}
    directions = optimizer.estimate(scene.closure, step=1).queries[0][0]
    claimed = expected_cosine(directions, exact)
    half = context.precision * context.coarse * claimed

    def cosines(samples: int, first: int) -> Tensor:
        found = []
        for step in range(first, first + math.ceil(samples / BLOCK)):
            for delta, g in optimizer.estimate(scene.closure, step=step).queries:
                found.append(cosine(delta, exact) * g.sign())
        return torch.stack(found)

    found = context.mean(cosines(context.size(cosines(PILOT, 1), half), LATER), half)
    return [
        Row("Thm. 5.4", "E cos = beta_D |GA| / |G| with A the orthonormalised V",
            "one layer 6 x 1024, LOZO, rank 2", claimed, **found,
            note="not exact, but no difference can be seen at this precision"),
    ]  # fmt: skip


def beta_bounds(context: Context) -> list[Row]:
    """Lemma 5.6, on every dimension up to 200,000 and on larger ones up to 10^12."""
    dimensions = [*range(2, 200_001), *(10**k + j for k in range(6, 13) for j in range(3))]
    values = {d: beta(d) for d in (*dimensions, *(d + 1 for d in dimensions))}
    outside = sum(
        not math.sqrt(2 / (math.pi * d)) <= values[d] <= math.sqrt(2 / (math.pi * (d - 1)))
        for d in dimensions
    )
    rising = sum(values[d + 1] >= values[d] for d in dimensions)
    # Not in the paper: beta_D sqrt(D) falls too, so Theorem 5.7 does not need "s < n". Proof: let
    # c_D = D beta_D^2. From beta_D beta_(D+1) = 2/(pi D), c_D / c_(D+2) = 1 + 1/(D (D+2)), which
    # falls in D, and c tends to 2/pi; so c_D / c_(D+1) is a product of factors above 1.
    scaled = [d for d in dimensions if d <= 10**6]
    growing = sum(
        values[d + 1] * math.sqrt(d + 1) >= values[d] * math.sqrt(d) for d in scaled
    )  # fmt: skip
    setting, counted = "D = 2 ... 200000, and 10^6 ... 10^12", "every D listed"
    rows = [
        Row("Lemma 5.6", "dimensions outside sqrt(2/(pi D)) <= beta_D <= sqrt(2/(pi (D-1)))",
            setting, 0.0, float(outside), samples=len(dimensions), sized=counted),
        Row("Lemma 5.6", "dimensions where beta_(D+1) < beta_D does not hold", setting, 0.0,
            float(rising), samples=len(dimensions), sized=counted),
        Row("beyond 5.6", "dimensions where beta_D sqrt(D) does not fall",
            "D = 2 ... 200000, 10^6", 0.0, float(growing), samples=len(scaled), sized=counted,
            note="not in the paper"),
    ]  # fmt: skip
    for dimension in (3, 32, 512):
        claimed = beta(dimension)
        half = context.precision * claimed

        def first_coordinate(n: int, step: int, dimension: int = dimension) -> Tensor:
            noise = Noise(context.noise_seed("sphere"), step)
            z = noise.tensor((n, dimension), torch.device("cpu"), "sphere", "dense").double()
            return z[:, 0].abs() / z.norm(dim=1)

        n = context.size(first_coordinate(PILOT, dimension), half)
        found = context.mean(first_coordinate(n, LATER + dimension), half)
        rows.append(
            Row("Eqs. 24, 25", "E |U_1| on the unit sphere, from the library's noise = beta_D",
                f"D = {dimension}", claimed, **found)
        )  # fmt: skip
    return rows
