"""What every method counts: steps, forward passes, and whether every loss so far was finite.

Kept inside the optimizer's state under the key "zo", so that torch's state_dict carries it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor


class Progress(torch.optim.Optimizer):
    """Base of every method's optimizer class; call `_begin_progress` after torch's __init__."""

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
        """0-dim bool on the device: every loss so far was finite; weights move only while true."""
        return self._zo["alive"]

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Load what `state_dict` returned."""
        device = self.finite.device
        super().load_state_dict(dict(state_dict))
        saved = state_dict["state"]["zo"]
        state = cast(dict[Any, Any], self.state)
        state["zo"] = {**saved, "alive": saved["alive"].clone().to(device)}
