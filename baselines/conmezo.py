"""ConMeZO (arXiv 2511.02757, AISTATS 2026): look inside a cone around the momentum.

    u ~ N(0, I),  z = cos(theta) m / rms(m) + sin(theta) u,  z = u while m = 0
    g = (f(W + eps z) - f(W - eps z)) / (2 eps);  W <- W - lr g z
    m <- beta m + (1 - beta) g z,  m = 0 at first

m is one vector of all d tuned coordinates, rms(m) = |m| / sqrt(d): |z| is about sqrt(d), as MeZO's
is, so MeZO's lr and eps are a fair start. 2 forwards a step. Memory: m, as large as the tuned
weights, in float32; a large one is refused unless ``large_state=True``.

The published code for language models estimates |m| from its recursion; here it is computed. Its
toy code lowers theta from pi / 2 in a warm-up, which is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from agzo.check import check_number
from agzo.directions.direction import ByRows, Dense, Direction
from agzo.estimator import Measurement
from agzo.execution.perturb import Directions
from agzo.remembering import OfMemory, Remembering
from agzo.rng import Noise
from agzo.tuned.select import Tuned


@dataclass(frozen=True)
class InCone(ByRows):
    """along * m + across * u, made in blocks of rows."""

    u: Dense
    m: Tensor
    along: Tensor
    across: Tensor

    @property
    def shape(self) -> torch.Size:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Shape of the parameter."""
        return self.u.shape

    def rows(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yield the direction in blocks of rows, float32, free to be overwritten."""
        for start, stop, values in self.u.rows():
            own = self.m[start:stop] if self.shape else self.m
            yield start, stop, values.mul_(self.across).add_(own * self.along)


class Cone(OfMemory):
    """ConMeZO's sampler; `rms` is that of m (0-dim float64), None before the first step."""

    rms: Tensor | None = None

    def __init__(self, method: ConMeZO) -> None:
        super().__init__(method)
        self._theta = method.theta

    def sample(self, tuned: Tuned, noise: Noise) -> Direction:
        """Return the direction of one parameter."""
        u = self.dense(noise, tuned.name, tuned.parameter.shape, tuned.device)
        m = self._method.memory(tuned)
        if m is None or self.rms is None:
            return u
        rms = self.rms.to(m.device)
        along = torch.where(rms > 0, math.cos(self._theta) / rms, 0.0)
        across = torch.where(rms > 0, torch.full_like(rms, math.sin(self._theta)), 1.0)
        return InCone(u, m, along.to(m.dtype), across.to(m.dtype))


class ConMeZO(Remembering):
    """Perturb every coordinate, mostly along the momentum of the estimates before.

    Args:
        model, lr, eps, estimator, shared: see `ZeroOrderOptimizer`.
        theta: angle between z and the momentum, in (0, pi / 2]; pi / 2 is MeZO.
        beta: decay rate of the momentum m, in [0, 1).
    """

    about = replace(Remembering.about, settings=("theta", "beta"))
    memory_is = "a momentum"

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        eps: float,
        theta: float = 1.35,
        beta: float = 0.95,
        estimator: str = "two_sided",
        **shared: Any,
    ) -> None:
        self.theta = check_number("theta", theta, above=0.0, maximum=math.pi / 2)
        self.beta = check_number("beta", beta, minimum=0.0, below=1.0)
        super().__init__(model, lr=lr, eps=eps, estimator=estimator, **shared)

    def _make_sampler(self) -> Cone:
        self._cone = Cone(self)
        return self._cone

    def _remember(self, old: Tensor, directions: list[Tensor], factors: Tensor) -> Tensor:
        new = self.beta * old
        factors = factors.to(old.device, old.dtype) * ((1.0 - self.beta) / len(directions))
        for z, g in zip(directions, factors.unbind(), strict=True):
            new += z.mul_(g)
        return new

    def _learn(
        self, queries: list[tuple[Directions, Tensor]], measurement: Measurement | None
    ) -> None:
        super()._learn(queries, measurement)
        self._measure_rms()

    def _measure_rms(self) -> None:
        found = [m for each in self.tuned if (m := self.memory(each)) is not None]
        squares = [m.double().square().sum().to(self.finite.device) for m in found]
        count = sum(m.numel() for m in found)
        self._cone.rms = (torch.stack(squares).sum() / count).sqrt() if found else None

    def load_state_dict(self, state_dict: Any) -> None:
        """Load what `state_dict` returned; rms(m) is that of the m in it."""
        super().load_state_dict(state_dict)
        self._measure_rms()
