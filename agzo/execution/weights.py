"""Where the weights are while a method measures and moves: on their device, or on the way to it.

A method asks two things of them: to run the evaluations of a step, and to change a parameter after
it. `Resident` weights, the default, do both at once. `agzo.execution.stream.StreamedLayers` brings
each layer to the device once for all the evaluations, and changes it the next time it is there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from agzo.torch_calls.surroundings import Closure


def in_turn(evaluations: Sequence[Closure]) -> list[Tensor]:
    """Run evaluations one after another."""
    return [evaluation() for evaluation in evaluations]


class Weights(Protocol):
    """What a method needs of where the weights are."""

    device: torch.device | None
    """The device that uses them all; None: each is used where it lies."""

    def together(self, evaluations: Sequence[Closure]) -> list[Tensor]:
        """Run evaluations and return their losses; what one captures, later ones may use."""
        ...

    def change(self, parameter: nn.Parameter, change: Callable[[], None]) -> None:
        """Call `change` while the parameter is on the device that uses it, now or before its use.

        Changes of one parameter are called in order.
        """
        ...

    def flush(self) -> None:
        """Call every change that is still to come; afterwards each parameter's data are right."""
        ...


class Resident:
    """Weights that stay on their device."""

    device: torch.device | None = None

    def together(self, evaluations: Sequence[Closure]) -> list[Tensor]:
        """Run evaluations one after another."""
        return in_turn(evaluations)

    def change(self, parameter: nn.Parameter, change: Callable[[], None]) -> None:
        """Change a parameter at once."""
        change()

    def flush(self) -> None:
        """Do nothing: no change is ever put off."""


def check_streamed(execution: str, rounding: str) -> None:
    """Refuse what needs all weights at once, or a second set of them on the device."""
    if execution != "side_branch":
        raise ValueError(f"execution={execution!r}: with streamed layers allowed is side_branch")
    if rounding == "master":
        raise ValueError(
            "rounding='master': with streamed layers allowed are nearest and stochastic (float32 "
            "copies would stay on the device), or weights in float32"
        )
