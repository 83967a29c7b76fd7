"""The learning rate of each step of a run."""

from typing import Any


class Schedule:
    """Sets the lr before a step: "constant", or "linear", which falls to 0 at the run's end.

    Args:
        optimizer: a new one; the lr of each of its groups is that of the first step.
        kind: train.schedule of a run.
        steps: of the whole run.
    """

    def __init__(self, optimizer: Any, kind: str, steps: int) -> None:
        self._optimizer, self._kind, self._steps = optimizer, kind, steps
        self._first = [group["lr"] for group in optimizer.param_groups]

    def set(self, step: int) -> None:
        """Give every group its lr of step number `step`, from 0."""
        factor = 1.0 if self._kind == "constant" else 1.0 - step / self._steps
        for group, first in zip(self._optimizer.param_groups, self._first, strict=True):
            group["lr"] = first * factor
