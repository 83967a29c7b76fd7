"""What an optimizer tells of itself: what it moves and costs, and what each step measured.

    print(optimizer.summary())
    handle = optimizer.register_measure_hook(lambda m: tracker.add(m.step, m.projected_grad))

A hook is handed tensors on their device and nothing waits for it: whoever reads a value of one
waits. Hooks belong to the object; a copy of an optimizer, or one from a file, has none.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from agzo.about import About
from agzo.directions.sampler import DirectionSampler
from agzo.estimator import Measurement, forwards_per_step
from agzo.guard import WAITING
from agzo.progress import Progress
from agzo.summary import Summary, summary
from agzo.tuned.coordinates import Moved
from agzo.tuned.select import Tuned


@dataclass(frozen=True)
class Measured:
    """What a step has measured; the tensors are on the device of the loss."""

    step: int
    """Its number, from 0."""
    loss: Tensor
    """0-dim: f(W) where the step evaluated it, else the mean of `losses`."""
    losses: Tensor
    """At the perturbed weights: (queries, 1), or (queries, 2) of a two-sided step, plus first."""
    projected_grad: Tensor
    """The slopes, (queries,)."""
    forwards: int
    """Forward passes up to here."""


MeasureHook = Callable[[Measured], Any]


class _Hooks(OrderedDict[int, MeasureHook]):
    """Hooks by their handle's id; a copy is empty, for they belong to one object."""

    def __reduce__(self) -> Any:
        return _Hooks, ()


class Observed(Progress):
    """Base of the zeroth-order optimizers: `Progress`, and what is told about it."""

    tuned: list[Tuned]
    estimator: str
    queries: int
    about: ClassVar[About]
    _sampler: DirectionSampler
    _captures: Callable[[int], bool]
    _measure_hooks: _Hooks | None = None

    def moved(self) -> list[Moved]:
        """List the tensors of the model that move, see `agzo.tuned.coordinates`."""
        return [self._sampler.moved(each) for each in self.tuned]

    @property
    def forwards_per_step(self) -> int:
        """Forward passes of a step that refreshes its bases (the check of the first step apart)."""
        return self.forwards_of_step(0)

    def forwards_of_step(self, step: int) -> int:
        """Count the forward passes of step number `step`."""
        at_w = self._captures(step) or self.about.needs_loss
        return forwards_per_step(self.estimator, self.queries, at_w)

    @property
    def joined_late(self) -> bool:
        """Whether there is a parameter that did not take part from the first step on."""
        return WAITING in self._zo

    def summary(self) -> Summary:
        """Return what moves how, forwards a step and expected state; its str is one line."""
        return summary(self)

    def register_measure_hook(self, hook: MeasureHook) -> RemovableHandle:
        """Call ``hook(measured)`` after each step has moved; the handle's `remove` ends that."""
        if not callable(hook):
            raise ValueError(
                f"hook: a {type(hook).__name__}; allowed is a function of one agzo.Measured"
            )
        if self._measure_hooks is None:
            self._measure_hooks = _Hooks()
        handle = RemovableHandle(self._measure_hooks)
        self._measure_hooks[handle.id] = hook
        return handle

    def _tell(self, measurement: Measurement) -> None:
        """Call the hooks with what the step that has just ended measured."""
        hooks = self._measure_hooks or {}
        slopes = vars(self)["projected_grad"]
        step = self._zo["step"] - 1
        told = Measured(step, measurement.loss, measurement.losses, slopes, self.forwards)
        for hook in list(hooks.values()):
            hook(told)
