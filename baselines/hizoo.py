"""HiZOO (arXiv 2402.15173, ICLR 2025): steps that are shorter where the loss bends.

    z ~ N(0, 1),  Delta = H^(-1/2) z,  H a diagonal, the identity at first
    l+ = f(W + eps Delta),  l- = f(W - eps Delta),  l = f(W)
    g = (l+ - l-) / (2 eps);  W <- W - lr g Delta
    H <- (1 - alpha) H + alpha |l+ + l- - 2 l| / (2 eps^2) H z^2

H is the inverse of the paper's Sigma. 3 forwards a step. Memory: H, as large as the tuned weights,
in float32; a large one is refused unless ``large_state=True``. (The paper's HiZOO-L, which keeps H
in low rank, is not here.)

The published code evaluates with the old H and steps with the new one, so that what is applied is
not what was evaluated; here a step applies the direction that it measured, and H changes after it.
Its stored version (34e8d14) also moves Sigma itself, not its inverse, towards the curvature: its
steps are longer where the loss bends. Here it is as the paper writes it. Its fourth forward is for
the log alone and is not taken over.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from agzo.check import check_choice, check_number
from agzo.directions.direction import ByRows, Dense, Direction
from agzo.estimator import Measurement
from agzo.execution.perturb import Directions
from agzo.remembering import OfMemory, Remembering
from agzo.rng import Noise
from agzo.tuned.select import Tuned


@dataclass(frozen=True)
class Bent(ByRows):
    """H^(-1/2) z, made in blocks of rows."""

    z: Dense
    curvature: Tensor

    @property
    def shape(self) -> torch.Size:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Shape of the parameter."""
        return self.z.shape

    def rows(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yield the direction in blocks of rows, float32, free to be overwritten."""
        for start, stop, values in self.z.rows():
            own = self.curvature[start:stop] if self.shape else self.curvature
            yield start, stop, values.mul_(own.rsqrt())


class ByCurvature(OfMemory):
    """HiZOO's sampler: z, and H^(-1/2) z once there is an H."""

    def sample(self, tuned: Tuned, noise: Noise) -> Direction:
        """Return the direction of one parameter."""
        z = self.dense(noise, tuned.name, tuned.parameter.shape, tuned.device)
        curvature = self._method.memory(tuned)
        return z if curvature is None else Bent(z, curvature)


class HiZOO(Remembering):
    """Perturb every coordinate by the inverse root of its curvature.

    Args:
        model, lr, eps, shared: see `ZeroOrderOptimizer`.
        curvature_rate: alpha, in [0, 1); 0 is MeZO with a forward too many.
        estimator: "two_sided"; a one-sided step sees no curvature.
    """

    memory_is = "a curvature"
    empty = 1.0
    about = replace(
        Remembering.about,
        settings=("curvature_rate",),
        needs_loss=True,
        needs_data="its curvature needs the losses of a step, and a trajectory has its slope alone",
    )

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        eps: float,
        curvature_rate: float = 1e-8,
        estimator: str = "two_sided",
        **shared: Any,
    ) -> None:
        rate = check_number("curvature_rate", curvature_rate, minimum=0.0, below=1.0)
        self.curvature_rate = rate
        check_choice("estimator", estimator, ("two_sided",))
        super().__init__(model, lr=lr, eps=eps, estimator=estimator, **shared)

    def _make_sampler(self) -> ByCurvature:
        return ByCurvature(self)

    def _factors(
        self, queries: list[tuple[Directions, Tensor]], measurement: Measurement | None
    ) -> Tensor:
        assert measurement is not None
        plus, minus = measurement.losses.double().unbind(1)
        return (plus + minus - 2.0 * measurement.loss.double()).abs() / (2.0 * self.eps**2)

    def _remember(self, old: Tensor, directions: list[Tensor], factors: Tensor) -> Tensor:
        """H z^2 is (H Delta)^2; several queries are averaged."""
        new = (1.0 - self.curvature_rate) * old
        factors = factors.to(old.device, old.dtype) * (self.curvature_rate / len(directions))
        for delta, factor in zip(directions, factors.unbind(), strict=True):
            new += delta.mul_(old).square_().mul_(factor)
        return new
