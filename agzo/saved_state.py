"""What a zeroth-order optimizer saves and goes back to, beside what every method counts.

The settings with which it was made are in its state, and another optimizer does not take it. Those
in `CHANGEABLE` may be changed between steps; a state has those of its time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from agzo.estimator import Measurement
from agzo.execution.weights import Resident, Weights
from agzo.moments import KEPT, REMEMBERED
from agzo.progress import ENTRY, Progress, saved_entry
from agzo.tuned.select import Tuned

SETTINGS = (
    *("eps", "estimator", "queries", "noise", "rounding", "embeddings"),
    *("update", "momentum", "beta2"),
)
"""Settings of every method that are in its state; its own are in its `about`."""

CHANGEABLE = ("eps", "momentum", "beta2")
"""Settings that may be changed between steps, as attributes."""


class Staged(NamedTuple):
    """A step that is measured and has not moved."""

    measurement: Measurement
    finite: Tensor  # 0-dim bool: its bases are
    forwards: int  # that were counted before it
    eps: float

    def check(self, eps: float) -> None:
        """Raise ValueError if eps was changed since: the slopes are of the old one."""
        if eps != self.eps:
            raise ValueError(
                f"eps={eps:g}: allowed is {self.eps:g} until the step that is staged has been taken"
            )


class SavedState(Progress):
    """The state of a zeroth-order optimizer: its counts, settings, moments and float32 copies."""

    tuned: list[Tuned]
    seed: int
    stream_version: str
    _weights: Weights
    _staged: Staged | None = None  # no part of a state

    def __getstate__(self) -> dict[str, Any]:
        if not isinstance(self._weights, Resident):
            raise TypeError(
                "stream: an optimizer of streamed layers cannot be copied or pickled; allowed is "
                "its state_dict()"
            )
        state = super().__getstate__()
        staged = state.pop("_staged", None)
        if staged is not None:
            own = state["state"].copy()
            own[ENTRY] = {**own[ENTRY], "forwards": staged.forwards}
            state["state"] = own
        return state

    def live_state(self) -> dict[str, Any]:
        """Return torch's state dict, of weights and moments that are up to date, to write at once.

        The settings are those of now; where one was changed after construction, "made_with" has
        what it was.
        """
        self._weights.flush()
        state = super().live_state()
        entry = state["state"][ENTRY]
        now = {key: getattr(self, key) for key in CHANGEABLE}
        if self._staged is not None:
            entry = {**entry, "forwards": self._staged.forwards}
        made = {key: entry["settings"][key] for key in now if now[key] != entry["settings"][key]}
        entry = {**entry, "settings": {**entry["settings"], **now}}
        state["state"][ENTRY] = {**entry, "made_with": made} if made else entry
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned; eps, momentum and beta2 are those of then.

        Raises:
            ValueError: another noise stream, or an optimizer that was made with other settings.
        """
        zo = saved_entry(state_dict)
        if zo["stream"] != self.stream_version:
            raise ValueError(
                f"stream={zo['stream']!r}: allowed is {self.stream_version!r}; noise of another "
                "stream version would continue a different run"
            )
        mine = self._zo["settings"]
        made_with = {**zo["settings"], **zo.get("made_with", {})}
        for key, value in made_with.items():
            if key not in mine:
                raise ValueError(
                    f"{key}={value!r}: the loaded state was made with it, and this "
                    f"{type(self).__name__} has no {key}; allowed are states of one that was made "
                    "with the same arguments, by this version"
                )
            if value != mine[key]:
                raise ValueError(
                    f"{key}={mine[key]!r}: allowed is {value!r}, as when the loaded state was made"
                )
        self._weights.flush()
        self._staged = None
        super().load_state_dict(state_dict)
        self._zo["settings"] = made_with
        self._zo.pop("made_with", None)
        self.seed = zo["seed"]
        for key in CHANGEABLE:
            setattr(self, key, zo["settings"][key])
        # torch casts floating-point state to the parameter's dtype; ours is float32 and stays so.
        ordered = [p for group in self.param_groups for p in group["params"]]
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        devices = {each.parameter: each.device for each in self.tuned}
        for saved_as, parameter in zip(keys, ordered, strict=True):
            saved = state_dict["state"].get(saved_as, {})
            for key in ("master", *KEPT, *REMEMBERED):
                if key in saved:
                    self.state[parameter][key] = saved[key].clone().to(devices[parameter])
