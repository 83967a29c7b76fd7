"""What every method counts: steps, forward passes, and whether every loss so far was finite.

And what makes its optimizer an object as torch's own are: a state that can be saved, copied and
gone back to. The counts are the entry "zo" of the optimizer's state.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from agzo.torch_calls.surroundings import Surroundings

ENTRY = "zo"


class LateLook:
    """Copies a 0-dim bool to the host beside what the device does, and tells when it is there.

    `read` answers None until then. A flag on the CPU is there at once; one on CUDA when what was
    computed before the copy is done; on another kind of device reading waits for it.
    """

    def __init__(self) -> None:
        self._flag: Tensor | None = None  # on the host, but for devices without a copy beside work
        self._sent: Any = None  # CUDA event: the copy is done

    def send(self, flag: Tensor) -> None:
        """Begin to copy a flag; one that was sent before need not have arrived.

        It must not change before it is read, but to what may be read as well.
        """
        if flag.device.type != "cuda":
            self._flag = None if flag.is_meta else flag
            return
        if self._flag is None:
            self._flag = torch.empty((), dtype=torch.bool, device="cpu", pin_memory=True)
            self._sent = torch.cuda.Event()
        self._flag.copy_(flag, non_blocking=True)
        self._sent.record(torch.cuda.current_stream(flag.device))

    def read(self) -> bool | None:
        """Return the flag, None where it has not arrived or none was sent."""
        if self._flag is None or (self._sent is not None and not self._sent.query()):
            return None
        return bool(self._flag)


class State(dict[Any, Any]):
    """Torch's state of each parameter, and behind ``["zo"]`` that of the whole method.

    That key is not among the others: `torch.distributed.checkpoint` takes each for a parameter's.
    A file has it, and no other class than torch's own have.
    """

    def __init__(self, own: Any = (), entry: Any = None) -> None:
        super().__init__(own)
        self._entry = entry

    def __missing__(self, key: Any) -> Any:
        if key != ENTRY or self._entry is None:
            raise KeyError(key)
        return self._entry

    def __reduce__(self) -> Any:
        return OrderedDict, (), None, None, iter([*self.items(), (ENTRY, self._entry)])


class Progress(torch.optim.Optimizer):
    """Base of every method's optimizer class; call `_begin_progress` after torch's __init__."""

    forwards_once: int = 0  # forward passes before the first step
    around: Surroundings = Surroundings()  # what is around the call of a method that runs

    def _begin_progress(self, device: torch.device, **entries: Any) -> None:
        alive = torch.ones((), dtype=torch.bool, device=device)
        state = cast(dict[Any, Any], self.state)
        state[ENTRY] = {"step": 0, "forwards": 0, "alive": alive, **entries}
        self._late = LateLook()

    @property
    def _zo(self) -> dict[str, Any]:
        return cast(dict[Any, Any], self.state)[ENTRY]

    @property
    def forwards(self) -> int:
        """Forward passes so far; a backward counts as two, a one-off check as what it ran."""
        return self._zo["forwards"]

    @property
    def finite(self) -> Tensor:
        """0-dim bool on the device: everything measured so far was finite."""
        return self._zo["alive"]

    def refuse_not_finite(self) -> None:
        """Raise FloatingPointError if a step measured what is not finite; each step begins so.

        A step does not wait for the device to know of its own measurement. So the step in which it
        happens returns, with its weights as they were; the next one raises (on CUDA, where the host
        runs ahead, the first one that begins after the device is through), and so does each after
        it, until a state from before is loaded.
        """
        if self._late.read() is False:
            raise FloatingPointError(
                f"a loss, a projected gradient or an activation of step {self._zo['step']}, or of "
                "one before it, is not finite, and the weights have not changed since: go back to "
                "weights and a state_dict from before, with a smaller lr (or eps)"
            )

    def _look_later(self) -> None:
        """End a step: have the next one know whether all was finite."""
        self._late.send(self.finite)

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

    def live_state(self) -> dict[str, Any]:
        """Return torch's state dict, with the tensors that later steps change: to write at once."""
        return super().state_dict()

    def state_dict(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return a copy of the state, which later steps leave as it is; as large as the state.

        The method's own entry is ``["state"]["zo"]``, and once more ``["param_groups"][0]["zo"]``:
        there it reaches the files of `torch.distributed.checkpoint` as well.
        """
        found = _copied(self.live_state(), {})
        entry = found["state"].pop(ENTRY)
        first, *others = found["param_groups"]
        return {
            **found,
            "state": State(found["state"], entry),
            "param_groups": [{**first, ENTRY: entry}, *others],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Load what `state_dict` returned."""
        device, entry = self.finite.device, saved_entry(state_dict)
        plain = {
            "state": {k: v for k, v in state_dict["state"].items() if k != ENTRY},
            "param_groups": [
                {k: v for k, v in group.items() if k != ENTRY}
                for group in state_dict["param_groups"]
            ],
        }
        super().load_state_dict(plain)
        own = {**_copied(entry, {}), "alive": entry["alive"].clone().to(device)}
        cast(dict[Any, Any], self.state)[ENTRY] = own
        self._look_later()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a pickle is made of: all that torch itself does not set up anew."""
        own = vars(self).keys() - _TORCH_KEYS - {"_late"}
        return {**super().__getstate__(), **{key: vars(self)[key] for key in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_late" not in vars(self):
            self._late = LateLook()
            self._look_later()


_TORCH_KEYS = {
    *vars(torch.optim.SGD([nn.Parameter(torch.zeros(1, dtype=torch.float32, device="cpu"))], 0.0)),
    *("step", "_opt_called"),  # a scheduler's; the `step` that it wraps is of this very object
}


def saved_entry(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return the method's own entry of a state dict; raise ValueError where there is none."""
    state, groups = state_dict.get("state", {}), state_dict.get("param_groups", [])
    try:
        return state[ENTRY]
    except KeyError:
        entry = groups[0].get(ENTRY) if groups else None
    if entry is None:
        raise ValueError(
            f"state_dict: it has no {ENTRY!r} in its state, so it is of no method of this library; "
            "allowed is what the same method's state_dict() returned"
        )
    return entry


def _copied(node: Any, known: dict[int, Tensor]) -> Any:
    """Copy nested dicts, lists and tuples with their tensors; one that occurs twice only once."""
    if isinstance(node, Tensor):
        if id(node) not in known:
            known[id(node)] = node.detach().clone()
        return known[id(node)]
    if isinstance(node, dict):
        return {key: _copied(value, known) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return type(node)(_copied(value, known) for value in node)
    return node
