"""How a perturbation is executed: the loss at W + scale * direction, weights left as they were.

`SideBranch` (default) never writes a weight: it answers torch's calls as if they were perturbed,
see `agzo.execution.perturbed`. `InPlace` is the readable reference: it writes W + scale * direction
and restores from a copy (memory: a second set of the tuned weights). The two agree to float
tolerance.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from agzo.execution.perturbed import Directions, Perturbed, perturbed_copy
from agzo.torch_calls.surroundings import Closure


class Execution(Protocol):
    """Evaluates a closure at perturbed weights."""

    points: int
    """At how many weights at once the closure that is running is evaluated."""

    def unperturbed(self, closure: Closure) -> Tensor:
        """Return ``closure()`` at W itself."""
        ...

    def evaluate(self, closure: Closure, directions: Directions, scale: float) -> Tensor:
        """Return ``closure()`` at W + scale * direction for every parameter in `directions`."""
        ...


class InPlace:
    """Reference execution: write the perturbed weights, evaluate, restore from a copy."""

    points = 1

    def unperturbed(self, closure: Closure) -> Tensor:
        """Return ``closure()``."""
        return closure()

    @torch.no_grad()
    def evaluate(self, closure: Closure, directions: Directions, scale: float) -> Tensor:
        """Return the loss at the perturbed weights; see `Execution.evaluate`."""
        originals = {p: p.detach().clone() for p in directions}
        try:
            for parameter, direction in directions.items():
                parameter.copy_(perturbed_copy(parameter.detach(), direction, scale))
            return closure()
        finally:
            for parameter, original in originals.items():
                parameter.copy_(original)


class SideBranch:
    """Default execution: add the perturbation behind each use of a weight, write nothing."""

    points = 1

    def unperturbed(self, closure: Closure) -> Tensor:
        """Return ``closure()``."""
        return closure()

    @torch.no_grad()
    def evaluate(self, closure: Closure, directions: Directions, scale: float) -> Tensor:
        """Return the loss at the perturbed weights; see `Execution.evaluate`."""
        with Perturbed(directions, scale):
            return closure()
