"""Looking at a method: what a step would measure, and losses along its directions.

Nothing that a later step depends on is changed: neither weights and bases nor counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from agzo.directions.sampler import sample_rest
from agzo.distributed.group import ALONE
from agzo.distributed.pieces import Batch, Joint, joint
from agzo.estimator import Measurement
from agzo.execution.perturbed import Directions
from agzo.measuring import Measuring
from agzo.rng import Noise
from agzo.torch_calls.surroundings import Closure, apart


class Looking(Measuring):
    """The part of a `ZeroOrderOptimizer` for whoever looks at it."""

    @apart
    def estimate(
        self, closure: Batch, token_mask: Tensor | None = None, step: int | None = None
    ) -> Measurement:
        """Measure as step number `step` (default: the next one) would, and move nothing.

        For looking at a method: the directions and projected gradients are those of `step`, inside
        bases of this batch where that step takes some, or where there are none yet. Weights, bases
        and the counts of steps and forwards stay as they are.
        """
        self._enter()
        batch = joint(closure, token_mask, self.accumulation, self.group)
        with self._only_looking(batch):
            return self._measure(batch, self._zo["step"] if step is None else step)[0]

    @apart
    def directions(
        self, closure: Closure, token_mask: Tensor | None = None, step: int = 0, queries: int = 1
    ) -> tuple[list[Directions], Tensor]:
        """Return the directions that step number `step` would measure on a batch, and its loss.

        Takes one forward, in which bases are captured as by `estimate`; it is not counted. `losses`
        evaluates them.
        """
        self._enter()
        batch = joint(closure, token_mask, 1, ALONE)
        run = partial(self._run, batch)
        with self._only_looking(batch):
            capture, watch = self._watching(batch, step)
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
        forwards, reached = self._zo["forwards"], set(self._guard.reached)
        try:
            with self._sampler.looking():
                yield
        finally:
            self._zo["forwards"] = forwards
            self._guard.reached.intersection_update(reached)

    @apart
    def losses(self, closure: Closure, directions: Directions, scales: Sequence[float]) -> Tensor:
        """Return the losses at W + scale * direction, (scales,); they are not counted.

        The closure may be of another batch than that of the directions. Weights stay as they are.
        """
        run = partial(self._run, closure)
        found = [self._execution.evaluate(run, directions, scale) for scale in scales]
        return torch.stack(found)
