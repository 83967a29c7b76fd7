"""Looking at a method without moving: its measurement, its directions, the loss along them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from agzo.distributed.group import ALONE, Group
from agzo.distributed.pieces import Batch, joint
from agzo.estimator import Measurement
from agzo.execution.perturb import Execution
from agzo.execution.perturbed import Directions
from agzo.progress import Progress
from agzo.rng import Noise
from agzo.torch_calls.surroundings import Closure, apart


class Estimates(Progress):
    """Methods of a `ZeroOrderOptimizer` that measure and leave the weights as they are."""

    accumulation: int
    group: Group
    seed: int
    _execution: Execution
    _enter: Any
    _looking: Any
    _measure: Any
    _directions: Any
    _run: Any

    @apart
    def estimate(
        self, closure: Batch, token_mask: Tensor | None = None, step: int | None = None
    ) -> Measurement:
        """Measure as step number `step` (default: the next one) would, and move nothing.

        For looking at a method: the directions and projected gradients are those of `step`. Weights
        and the counts of steps and forwards stay; a method's bases are those taken here.
        """
        self._enter()
        batch = joint(closure, token_mask, self.accumulation, self.group)
        forwards = self._zo["forwards"]
        try:
            return self._measure(batch, self._zo["step"] if step is None else step)[0]
        finally:
            self._zo["forwards"] = forwards

    @apart
    def directions(
        self, closure: Closure, token_mask: Tensor | None = None, step: int = 0, queries: int = 1
    ) -> tuple[list[Directions], Tensor]:
        """Return the directions that step number `step` would measure on a batch, and its loss.

        Takes one forward, in which bases are captured; it is not counted. `losses` evaluates them.
        """
        self._enter()
        batch = joint(closure, token_mask, 1, ALONE)
        capture, watch = self._looking(batch, step)
        run = partial(self._run, batch)
        loss = run() if watch is None else watch(run)
        if capture is not None:
            capture.finite()  # checks the mask's use
        found = [self._directions(Noise(self.seed, step, query)) for query in range(queries)]
        for each in found:
            list(each.values())  # sampled now: the next batch has other bases
        return found, loss

    @apart
    def losses(self, closure: Closure, directions: Directions, scales: Sequence[float]) -> Tensor:
        """Return the losses at W + scale * direction, (scales,); they are not counted.

        The closure may be of another batch than that of the directions. Weights stay as they are.
        """
        run = partial(self._run, closure)
        found = [self._execution.evaluate(run, directions, scale) for scale in scales]
        return torch.stack(found)
