"""What is tuned, as an object: where a filter of names cannot say it, or more follows from it.

A scope is given to a method as its `params`. It may have to look at batches before it knows what is
tuned (`agzo.optimizer.ZeroOrderOptimizer.calibrate`), check more before the first step, and know
what the evaluations of one step have in common. `baselines.dominant_layer` is one; this one here,
everything that requires grad, does nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn

from agzo.torch_calls.surroundings import Closure
from agzo.tuned.select import Params, Tuned

Evaluate = Callable[[], Tensor]


class Scope:
    """Everything that requires grad, or those of it that `params` says.

    Args:
        params: what it narrows, as `ZeroOrderOptimizer` takes it.
    """

    wants_batches: int = 0
    """Training batches that `look` wants to see."""
    forwards: int = 0
    """Forward passes of `look` and `check` together."""
    found: dict[str, Any] | None = None
    """What `look` found, for the record of a run: JSON values, with a "summary"."""

    def __init__(self, params: Params = None) -> None:
        self.params = params

    @property
    def missing(self) -> str | None:
        """What must be done before it is known what is tuned; None where it is known."""
        return None

    @property
    def settings(self) -> dict[str, Any]:
        """Values that an optimizer whose state is loaded must have in common with its maker."""
        return {}

    def of(self, model: nn.Module, streamed: bool) -> Scope:
        """Return this scope for one optimizer of a model; raise ValueError where it cannot be."""
        return self

    def look(
        self, batches: Sequence[tuple[Closure, Tensor | None]], evaluate: Callable[[Closure], Any]
    ) -> None:
        """Find out what is tuned, or note what there is, from batches: (closure, token mask)."""

    def narrow(self, tuned: list[Tuned]) -> list[Tuned]:
        """Return those of the model's parameters that are tuned, once nothing is missing."""
        return tuned

    def check(self, plain: Evaluate, perturbed: Evaluate) -> None:
        """Refuse a loss that this cannot be a scope for: evaluate it at W, and beside W."""

    def step(self) -> AbstractContextManager[object]:
        """Return what must be entered around the evaluations of a step."""
        return nullcontext()

    def begin(self) -> None:
        """Begin an evaluation."""
