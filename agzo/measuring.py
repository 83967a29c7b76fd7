"""Measuring a batch: capture what its bases need, sample, evaluate; the weights stay as they are.

_measure      what a step does between its checks and its move
estimate, directions, losses     the same for whoever looks at a method
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from agzo.about import About
from agzo.activations.capture import ActivationCapture
from agzo.directions.sampler import DirectionSampler, Gaussian, Sampled, sample_rest
from agzo.directions.seen import SeenTokens
from agzo.distributed.group import ALONE, Group
from agzo.distributed.pieces import Batch, Joint, joint
from agzo.estimator import Measurement, measure
from agzo.execution.perturb import Execution, SideBranch
from agzo.execution.perturbed import Directions
from agzo.execution.weights import Weights
from agzo.guard import Guard
from agzo.per_piece import PER_PIECE, measure_pieces
from agzo.progress import Progress
from agzo.rng import Noise
from agzo.torch_calls.surroundings import Closure, Watch, apart, watched
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

    @apart
    def estimate(
        self, closure: Batch, token_mask: Tensor | None = None, step: int | None = None
    ) -> Measurement:
        """Measure as step number `step` (default: the next one) would, and move nothing.

        For looking at a method: the directions and projected gradients are those of `step`.
        Weights, bases and the counts of steps and forwards stay as they are.
        """
        self._enter()
        batch = joint(closure, token_mask, self.accumulation, self.group)
        with self._only_looking(batch):
            found, _ = self._measure(batch, self._zo["step"] if step is None else step)
            for directions, _ in found.queries:
                sample_rest(directions)
        return found

    @apart
    def directions(
        self, closure: Closure, token_mask: Tensor | None = None, step: int = 0, queries: int = 1
    ) -> tuple[list[Directions], Tensor]:
        """Return the directions that step number `step` would measure on a batch, and its loss.

        Takes one forward, in which bases are captured; it is not counted. `losses` evaluates them.
        """
        self._enter()
        batch = joint(closure, token_mask, 1, ALONE)
        run = partial(self._run, batch)
        with self._only_looking(batch):
            capture, watch = self._looking(batch, step)
            loss = run() if watch is None else watch(run)
            if capture is not None:
                capture.finite()  # checks the mask's use
            found = [self._directions(Noise(self.seed, step, query)) for query in range(queries)]
            for each in found:
                sample_rest(each)
        return found, loss

    @contextmanager
    def _only_looking(self, batch: Joint) -> Iterator[None]:
        """Have all that measuring a batch changes as it was before."""
        forwards = self._zo["forwards"]
        try:
            with self._sampler.looking():
                yield
        finally:
            self._zo["forwards"] = forwards

    @apart
    def losses(self, closure: Closure, directions: Directions, scales: Sequence[float]) -> Tensor:
        """Return the losses at W + scale * direction, (scales,); they are not counted.

        The closure may be of another batch than that of the directions. Weights stay as they are.
        """
        run = partial(self._run, closure)
        found = [self._execution.evaluate(run, directions, scale) for scale in scales]
        return torch.stack(found)

    def _measure(self, batch: Joint, step: int) -> tuple[Measurement, Tensor]:
        """Return what a step measures, and whether its bases are finite (0-dim bool)."""
        capture, watch = self._looking(batch, step)
        if self._seen is not None and capture is None and self.estimator != "one_sided":
            with self.around.entered():
                # No forward at W would show the rows. Before the first step: to the closure's end.
                self._seen.peek(batch, self._zo.get("lookups", 0))
            watch = None
        self._guard.begin()

        def sample(query: int) -> Directions:
            return self._directions(Noise(self.seed, step, query))

        how = (self.eps_at(step), self._execution, watch, self.about.needs_loss)
        if self.estimator == PER_PIECE:
            forward, around = self._forward, self.scope.step
            measurement = measure_pieces(batch, forward, self._zo, sample, *how, around)
        else:
            with self.scope.step():
                measurement = measure(
                    self.estimator, lambda: self._forward(batch), sample, self.queries, *how,
                    together=self._weights.together,
                    mean=lambda losses: self.group.mean(losses, batch.weight),
                )  # fmt: skip
        self._guard.end(batch)
        finite = torch.ones((), dtype=torch.bool, device=measurement.loss.device)
        return measurement, finite if capture is None else capture.finite()

    def _looking(self, batch: Joint, step: int) -> tuple[ActivationCapture | None, Watch | None]:
        """Return the capture of bases that is due, and what watches a forward at W for the step."""
        mask = batch.pieces[0].token_mask
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
