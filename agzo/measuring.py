"""Measuring a batch: capture what its bases need, sample, evaluate; the weights stay as they are.

It is what a step does between its checks and its move, and what a look at a method does.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from agzo.about import About
from agzo.activations.capture import ActivationCapture
from agzo.directions.sampler import DirectionSampler, Gaussian, Sampled
from agzo.directions.seen import SeenTokens
from agzo.distributed.group import Group
from agzo.distributed.pieces import Joint
from agzo.estimator import Measurement, measure
from agzo.execution.perturb import Execution, SideBranch
from agzo.execution.perturbed import Directions
from agzo.execution.weights import Weights
from agzo.guard import Guard
from agzo.per_piece import PER_PIECE, measure_pieces
from agzo.progress import Progress
from agzo.rng import Noise
from agzo.torch_calls.surroundings import Closure, Watch, watched
from agzo.tuned.scope import Scope
from agzo.tuned.select import Tuned


class Measuring(Progress):
    """The part of a `ZeroOrderOptimizer` that measures."""

    accumulation: int
    group: Group
    seed: int
    eps: float
    estimator: str
    queries: int
    about: ClassVar[About]
    _execution: Execution
    _weights: Weights
    _guard: Guard
    scope: Scope
    tuned: list[Tuned]
    _sampler: DirectionSampler
    _seen: SeenTokens | None

    @property
    def _active(self) -> list[Tuned]:
        """The parameters that take part now."""
        return self._guard.active(self._zo)

    @property
    def missing(self) -> str | None:
        """What has to be done before the first step, and has not been yet."""
        return self.scope.missing

    @property
    def must_calibrate(self) -> bool:
        """Whether `calibrate` has to come before the first step, and has not yet."""
        return self.missing is not None

    def _enter(self) -> None:
        """Refuse a step or an estimate that the model or the optimizer is not ready for."""
        if self.missing is not None:
            raise RuntimeError(self.missing)
        self._guard.enter(self._zo)

    def _check(self, closure: Joint) -> None:
        """Refuse, before the first step, a loss that no finite difference can be taken of."""
        must_see = isinstance(self._execution, SideBranch)
        self._guard.check(
            self._zo, closure, self._forward, self._sampler, self._seen, must_see, self.group
        )

    def _check_scope(self, batch: Joint) -> None:
        """Let the scope look at the first batch: at W, and beside it along dense noise."""
        forward = partial(self._forward, batch)

        def perturbed() -> Tensor:
            noise = Noise(self.seed, 0)
            directions = {each.parameter: Gaussian().sample(each, noise) for each in self.tuned}
            return self._execution.evaluate(forward, directions, self.eps)

        self.scope.check(forward, perturbed)

    def eps_at(self, step: int) -> float:
        """Return the size of the perturbation in step number `step`."""
        return self.eps

    def _measure(self, batch: Joint, step: int) -> tuple[Measurement, Tensor]:
        """Return what a step measures, and whether its bases are finite (0-dim bool)."""
        capture, watch = self._watching(batch, step)
        forward, known = self._forward, self._zo.get("lookups", 0)
        peeked = self._seen if capture is None and self.estimator != "one_sided" else None
        if peeked is not None:
            with self.around.entered():
                # No forward at W would show the rows. Before the first step: to the closure's end.
                peeked.peek(batch, known)
            watch, forward = None, lambda closure: peeked.counted(lambda: self._forward(closure))
        self._guard.begin()

        def sample(query: int) -> Directions:
            return self._directions(Noise(self.seed, step, query))

        how = (self.eps_at(step), self._execution, watch, self.about.needs_loss)
        if self.estimator == PER_PIECE:
            measurement = measure_pieces(batch, forward, self._zo, sample, *how, self.scope.step)
        else:
            with self.scope.step():
                measurement = measure(
                    self.estimator, lambda: forward(batch), sample, self.queries, *how,
                    together=self._weights.together,
                    mean=lambda losses: self.group.mean(losses, batch.weight),
                )  # fmt: skip
        self._guard.end(batch)
        if peeked is not None and self.group.any(0 < known < peeked.most):  # not the last lookup
            self._zo["lookups"] = max(known, peeked.most)
            return self._measure(batch, step)
        finite = torch.ones((), dtype=torch.bool, device=measurement.loss.device)
        return measurement, finite if capture is None else capture.finite()

    def _watching(self, batch: Joint, step: int) -> tuple[ActivationCapture | None, Watch | None]:
        """Return the capture of bases that is due, and what watches a forward at W for the step."""
        mask = batch.token_mask
        capture = self._sampler.capture(Noise(self.seed, step), mask)
        watch = None if capture is None else capture.watch
        return capture, watch if self._seen is None else self._seen.beside(watch, mask)

    def _forward(self, closure: Closure) -> Tensor:
        self.scope.begin()
        self._zo["forwards"] += self._execution.points
        with self._guard.running(self._zo):
            loss = self._run(closure)
        if not isinstance(loss, Tensor) or loss.dim() != 0 or not loss.is_floating_point():
            found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"closure returned {found}; allowed is a 0-dim floating-point tensor")
        self._guard.evaluated()
        return loss

    def _run(self, closure: Closure) -> Tensor:
        """Evaluate a closure: every evaluation of a method comes by here."""
        with self.around.entered(), watched():
            return closure()

    def _directions(self, noise: Noise) -> Directions:
        return Sampled(self._active, lambda each: self._sampler.sample(each, noise))
