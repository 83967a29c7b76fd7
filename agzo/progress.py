"""What every method counts: steps, forward passes, and whether every loss so far was finite.

Kept inside the optimizer's state under the key "zo", so that torch's state_dict carries it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from agzo.surroundings import Surroundings


class Progress(torch.optim.Optimizer):
    """Base of every method's optimizer class; call `_begin_progress` after torch's __init__."""

    forwards_once: int = 0  # forward passes before the first step
    around: Surroundings = Surroundings()  # what is around the call of a method that runs

    def _begin_progress(self, device: torch.device, **entries: Any) -> None:
        alive = torch.ones((), dtype=torch.bool, device=device)
        state = cast(dict[Any, Any], self.state)
        state["zo"] = {"step": 0, "forwards": 0, "alive": alive, **entries}

    @property
    def _zo(self) -> dict[str, Any]:
        return cast(dict[Any, Any], self.state)["zo"]

    @property
    def forwards(self) -> int:
        """Forward passes so far; a backward counts as two, a one-off check as what it ran."""
        return self._zo["forwards"]

    @property
    def finite(self) -> Tensor:
        """0-dim bool on the device: everything measured so far was finite."""
        return self._zo["alive"]

    def forwards_of_step(self, step: int) -> int:
        """Count the forward passes that step number `step` (from 0) takes."""
        raise NotImplementedError

    def steps_within(self, forwards: int) -> int:
        """Count the steps that a budget of forward passes pays for, one-off checks included."""
        used, step = self.forwards_once, 0
        while used + self.forwards_of_step(step) <= forwards:
            used += self.forwards_of_step(step)
            step += 1
        return step

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Load what `state_dict` returned."""
        device = self.finite.device
        super().load_state_dict(dict(state_dict))
        saved = state_dict["state"]["zo"]
        state = cast(dict[Any, Any], self.state)
        state["zo"] = {**saved, "alive": saved["alive"].clone().to(device)}
