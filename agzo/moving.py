"""Moving: how what a step has measured becomes an update, also from a log without a forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from agzo.about import About
from agzo.directions.sampler import DirectionSampler
from agzo.estimator import Measurement
from agzo.execution.perturbed import Directions
from agzo.execution.weights import Weights
from agzo.moments import MOMENTS, Combination, Moments, refuse_large_state
from agzo.progress import Progress
from agzo.rng import Noise
from agzo.scaling import SCALINGS, Scaling
from agzo.torch_calls.surroundings import apart
from agzo.tuned.select import Tuned
from agzo.update import Mover

ON_ROWS = "its directions lie on rows of each batch's tokens"


class Moving(Progress):
    """The part of a `ZeroOrderOptimizer` that moves."""

    eps_at: Callable[[int], float]
    momentum: float
    beta2: float
    seed: int
    update: str
    rounding: str
    about: ClassVar[About]
    embeddings: str
    tuned: list[Tuned]
    _sampler: DirectionSampler
    _weights: Weights
    _names: dict[Any, str]
    _directions: Callable[[Noise], Directions]
    _refreshes: Callable[[int], bool]

    @property
    def _moments(self) -> Combination | None:
        kept = self.update in MOMENTS
        return Moments(self.update, self.momentum, self.beta2) if kept else None

    def _refuse_large_state(self, whole: int) -> None:
        """Refuse moments that are too large for a model of `whole` values."""
        if self._moments is not None:
            sizes = {e.name: self._moments.size(*self._sampler.sizes(e)) for e in self.tuned}
            refuse_large_state(f"update={self.update!r}", sizes, whole, ", update='sgd'")

    @property
    def needs_data(self) -> str | None:
        """Why directions cannot be made again without the batches; None: they can."""
        seen = self.embeddings == "seen"
        return self.about.needs_data or (ON_ROWS if seen else None)

    @apart
    def replay(self, projected_grad: Tensor) -> None:
        """Move as the step did that measured `projected_grad`, (queries,), without a forward.

        Needs the weights, the state and the lr of that step; `needs_data` methods cannot.
        """
        if self.needs_data is not None:
            raise RuntimeError(f"{type(self).__name__}: {self.needs_data}")
        alive, step = self._zo["alive"], self._zo["step"]
        alive &= torch.isfinite(projected_grad).all().to(alive.device)
        measured = enumerate(projected_grad.unbind())
        queries = [(self._directions(Noise(self.seed, step, query)), g) for query, g in measured]
        self._end(queries, None)

    def _end(
        self, queries: list[tuple[Directions, Tensor]], measurement: Measurement | None
    ) -> None:
        """Move as was measured, remember what later steps need, and end the step."""
        self._move(queries, Noise(self.seed, self._zo["step"]))
        self._learn(queries, measurement)
        self._sampler.stepped()
        self._zo["step"] += 1
        self._look_later()

    def _applied(self, query: int, evaluated: Directions) -> Directions:
        """Return what the update applies: the evaluated directions themselves."""
        return evaluated

    def _move(self, queries: list[tuple[Directions, Tensor]], noise: Noise) -> None:
        if self.update in SCALINGS:
            scaling = Scaling(self.update, self.eps_at(noise.step), self.beta2)
            slopes = torch.stack([g for _, g in queries])
            factors = scaling.factors(slopes, self._zo, noise.step).unbind()
            queries = [(directions, c) for (directions, _), c in zip(queries, factors, strict=True)]
        applied = [(self._applied(i, directions), g) for i, (directions, g) in enumerate(queries)]
        refreshed = self._refreshes(noise.step)
        mover = Mover(self._weights, self._names, self.rounding, self._moments)
        mover.move(self.param_groups, self.state, applied, self.finite, noise, refreshed)

    def _learn(
        self, queries: list[tuple[Directions, Tensor]], measurement: Measurement | None
    ) -> None:
        """Remember for later steps what a step has measured, of a replay the slopes alone."""
