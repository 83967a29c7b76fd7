"""Proposition 5.1 takes the basis as given. AGZO takes it from the batch it measures.

Two batches, equally likely, each a layer's inputs and upstream gradients. With the basis A(B) of
the measured batch the mean over batches is E[grad f(B) A(B) A(B)^T]; with the basis of an
independent batch it is E[grad f(B)] E[AA^T]. `helps` and `hurts` show two ways to differ.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from agzo.torch_calls.surroundings import Closure
from experiments.theory.evidence import PILOT, Context, Row, but
from experiments.theory.scenes import (
    BLOCK,
    EPS,
    HOLD,
    LATER,
    Draws,
    LinearLoss,
    draw,
    hold_bases,
    normal,
    projected,
)

OUT, WIDTH = 4, 5
NAME = "Prop. 5.1"


def two_batches(context: Context, strong: float) -> tuple[LinearLoss, list[Closure], list[Tensor]]:
    """Return a layer, the closures of two batches, and their gradients.

    Batch b has a token along axis 1 - b that the gradient uses, and one `strong` times along axis b
    that it does not; with strong = 0 the one token lies along axis b and is used.
    """
    generator = context.generator("two batches")
    axes = torch.eye(WIDTH, dtype=torch.float64)
    use = [normal(generator, 1, OUT) for _ in range(2)]
    scenes = []
    for b in range(2):
        if strong:
            x = torch.stack([strong * axes[b], axes[1 - b]])
            scenes.append((x, torch.cat([torch.zeros(1, OUT, dtype=torch.float64), use[b]])))
        else:
            scenes.append((axes[b : b + 1], use[b]))
    layer = LinearLoss.make(*scenes[0])
    all_scenes = [LinearLoss(x, q, layer.model) for x, q in scenes]
    return layer, [s.closure for s in all_scenes], [s.gradient for s in all_scenes]


def slopes(context: Context, strong: float, same: bool) -> tuple[Tensor, float]:
    """Return samples of <g Delta, G> / |G|^2, G the mean gradient, and their half width.

    Args:
        context: confidence and precision.
        strong: see `two_batches`.
        same: take each basis from the measured batch, else from an independent one.
    """
    layer, closures, gradients = two_batches(context, strong)
    mean = torch.stack(gradients).mean(0).reshape(-1)
    half = context.precision * context.coarse * 2 / 3

    def measure(samples: int, first: int) -> Tensor:
        found: list[Draws] = []
        pairs = [(a, b) for a in range(2) for b in range(2) if not same or a == b]
        for a, b in pairs:
            optimizer = context.agzo(
                layer.model, lr=0.0, eps=EPS, rank=1, refresh_every=1 if same else HOLD,
                queries=BLOCK, seed=context.noise_seed(f"batches {strong} {same} {a} {b}"),
            )  # fmt: skip
            if not same:
                hold_bases(optimizer, closures[a])
            found.append(draw(optimizer, [closures[b]], samples // len(pairs), first))
        return torch.cat([d.estimates for d in found]) @ mean / mean.square().sum()

    n = context.size(measure(PILOT, 1), half)
    return measure(n, LATER), half


def both_ways(context: Context, strong: float, setting: str, note: str) -> tuple[list[Row], Any]:
    """Return the rows on the basis of an independent and of the measured batch, and the latter."""
    independent, half = slopes(context, strong, same=False)
    same, _ = slopes(context, strong, same=True)
    rows = [
        Row(NAME, "basis of an independent batch: E g Delta along grad F = E grad F AA^T", setting,
            0.5, **context.mean(independent, half)),
        Row(NAME, "basis of the measured batch less basis of an independent one: no difference",
            setting, 0.0, **but(context.difference(same, independent), sized="as the row above"),
            expected=False, note=note),
    ]  # fmt: skip
    return rows, context.mean(same, half)


def helps(context: Context) -> list[Row]:
    """Each batch's gradient lies along its own input: the batch's own basis keeps all of it."""
    setting = "2 batches, each with its own input direction, rank 1"
    note = "A depends on the batch: here that helps"
    rows, same = both_ways(context, 0.0, setting, note)
    claim = "basis of the measured batch: E grad f(B) A(B) A(B)^T along grad F"
    return [*rows, Row("instead", claim, setting, 1.0, **same)]


def hurts(context: Context) -> list[Row]:
    """Each batch's gradient lies where its own input is weak: its own basis misses it."""
    setting = "2 batches, strong in each other's gradient direction, rank 1"
    note = "A depends on the batch: here that loses the gradient"
    rows, same = both_ways(context, 10.0, setting, note)
    claim = "basis of the measured batch: E grad f(B) A(B) A(B)^T along grad F is nearly nothing"
    return [*rows, Row("instead", claim, setting, 0.01, relation="<=", **same)]


def given_the_batch(context: Context) -> list[Row]:
    """Given batch and basis the statement holds with f(., B) in place of F."""
    generator = context.generator("given the batch")
    scene = LinearLoss.make(normal(generator, 9, WIDTH), normal(generator, 9, OUT))
    optimizer = context.agzo(
        scene.model, lr=0.0, eps=EPS, rank=2, refresh_every=HOLD, queries=BLOCK,
        seed=context.noise_seed("given the batch"),
    )  # fmt: skip
    bases = hold_bases(optimizer, scene.closure)
    claimed = projected(optimizer, scene.gradient.reshape(-1), bases)
    half = context.precision * context.coarse

    def slope(draws: Draws) -> Tensor:
        return draws.estimates @ claimed / claimed.square().sum()

    n = context.size(slope(draw(optimizer, [scene.closure], PILOT)), half)
    draws = draw(optimizer, [scene.closure], n, LATER)
    setting = "one batch for basis and loss, rank 2"
    return [
        Row(NAME, "given batch and basis: mean estimate along grad f(., B) AA^T, share of it",
            setting, 1.0, **context.mean(slope(draws), half)),
        Row(NAME, "given batch and basis: its distance from grad f(., B) AA^T, share of it",
            setting, 0.0, **context.length(draws.estimates, claimed.norm().item(), -claimed,
                                           "as the row above")),
    ]  # fmt: skip
