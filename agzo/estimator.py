"""How to measure: the projected gradient g along a direction Delta, by finite differences.

    one-sided    g = (f(W + eps Delta) - f(W)) / eps                    1 + q forwards a step
    two-sided    g = (f(W + eps Delta) - f(W - eps Delta)) / (2 eps)    2 q forwards a step

A method that needs activations captures them in the base forward f(W): free when one-sided (AGZO,
Algorithm 2), one forward more when two-sided. What is captured for a later step needs no forward
of its own: two-sided it is captured at W + eps Delta. The differences stay on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from agzo.perturb import Closure, Directions, Execution

ESTIMATORS = ("one_sided", "two_sided")


@dataclass(frozen=True)
class Measurement:
    """The loss of a step and, for each query, its directions and its projected gradient (0-dim).

    `loss` is f(W) where the step evaluated it, else the mean of the evaluations.
    """

    loss: Tensor
    queries: list[tuple[Directions, Tensor]]


def measure(
    estimator: str,
    closure: Closure,
    sample: Callable[[int], Directions],
    queries: int,
    eps: float,
    execution: Execution,
    capture: AbstractContextManager[object] | None,
    ahead: bool = False,
) -> Measurement:
    """Measure `queries` directions; ``sample(query)`` is called after the capture has run.

    With `ahead` the capture is for a later step: it watches the first forward, whichever that is.
    """

    def watched() -> Tensor:
        with capture or nullcontext():
            return closure()

    base, first = None, watched
    if estimator == "one_sided" or (capture is not None and not ahead):
        base, first = _full_precision(watched()), closure
    measured: list[tuple[Directions, Tensor]] = []
    losses: list[Tensor] = []
    for query in range(queries):
        directions = sample(query)
        plus = _full_precision(execution.evaluate(first, directions, eps))
        first = closure
        if estimator == "one_sided":
            assert base is not None
            measured.append((directions, (plus - base) / eps))
        else:
            minus = _full_precision(execution.evaluate(closure, directions, -eps))
            measured.append((directions, (plus - minus) / (2.0 * eps)))
            losses += [plus, minus]
    loss = base if base is not None else torch.stack(losses).mean()
    return Measurement(loss, measured)


def _full_precision(loss: Tensor) -> Tensor:
    """Return the loss in at least float32; a float64 loss stays float64."""
    return loss.detach() if loss.dtype == torch.float64 else loss.detach().float()


def forwards_per_step(estimator: str, queries: int, captures: bool) -> int:
    """Count the forwards of a step that takes bases for itself if `captures`."""
    if estimator == "one_sided":
        return 1 + queries
    return 2 * queries + int(captures)
