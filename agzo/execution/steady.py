"""Is the model the same in every evaluation of a step? Noise and state inside it, named.

A finite difference compares evaluations, so what else changes between them drowns it: noise (active
dropout, a gate that draws), and buffers that a forward writes (the statistics of BatchNorm in
training mode, the vectors of spectral norm), where a perturbed evaluation leaves its mark besides.
Seen is

    noise      torch's generators end each evaluation of a step where the others end: nothing was
               drawn, or the closure seeds them
    buffers    are left by each evaluation of a step with the same sum (a cache may be filled)
    modes      where a module was switched between training and evaluation, the loss is checked
               again as before the first step: that sees noise of any other generator too

Memory: the states of torch's generators, 5 kB each. Time: no wait for the device, but in a check
and where an evaluation changed a buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from agzo.torch_calls.inputs import tensors, version
from agzo.tuned.select import Tuned

Held = tuple[Tensor, int]  # a buffer's tensor and its version
Buffers = dict[tuple[int, str], Held]  # by module and name


class Call(NamedTuple):
    """A call of a module: a sum over what it got and over what it returned; whether it drew."""

    module: nn.Module
    given: float
    returned: float
    drew: bool


class Steady:
    """Watches what the evaluations of a step leave behind.

        steady.begin()
        ...                     # evaluations, `steady.evaluated()` at the end of each
        steady.check(closure)   # raises ValueError, before anything is made of them

    Args:
        model: the module that the loss is of.
        devices: on which it may draw random numbers.
    """

    def __init__(self, model: nn.Module, devices: Sequence[torch.device]) -> None:
        self._modules = list(model.named_modules())
        self._with_buffers = [i for i, (_, module) in enumerate(self._modules) if module._buffers]
        self._cuda = [device for device in devices if device.type == "cuda"]
        self._modes: bytes | None = None  # of all modules, when the loss was checked last
        self._ends: list[list[Tensor]] | None = None  # None outside of a step
        self._buffers: Buffers = {}
        self._left: dict[tuple[int, str], list[Tensor]] = {}  # of those that were changed

    def switched(self) -> bool:
        """Tell whether a module was switched to training or evaluation since `checked`.

        Of an optimizer that goes on: since this was asked first.
        """
        if self._modes is None:
            self.checked()
        return self._modes != self._modes_now()

    def checked(self) -> None:
        """Note the modes of all modules: the loss was checked in them."""
        self._modes = self._modes_now()

    def begin(self, checking: bool = False) -> None:
        """Begin a step, or the check of a loss, where every buffer is compared.

        In a step those are whose count of changes moves. Batch norm's own kernel does not count.
        """
        if checking:
            self._modes = b""  # a check that fails has learnt of a batch that is no step's
        self._ends = []
        self._buffers = self._buffers_now()
        self._left = {key: [] for key in self._buffers} if checking else {}

    def evaluated(self) -> None:
        """Note what an evaluation of the step left."""
        if self._ends is None:
            return
        self._ends.append(self._generators())
        now = self._buffers_now()
        for key in now | self._buffers:
            if key not in self._left and not _same(now.get(key), self._buffers.get(key)):
                self._left[key] = []
        for key, left in self._left.items():
            if key in now and not now[key][0].is_meta:
                left.append(now[key][0].detach().double().sum())
        self._buffers = now

    def check(self, closure: Callable[[], Tensor]) -> None:
        """Raise ValueError where the evaluations since `begin` were not of the same model."""
        self._refuse_moving()
        first, *others = (torch.cat(end) for end in self._ends or [])
        self._ends = None
        if all(torch.equal(first, other) for other in others):
            return
        (one, calls), two = self._trace(closure), closure()
        drew = next((call.module for call in calls if call.drew), None)
        raise ValueError(_noise(f"{self._named(drew)} draws random numbers,", one, two))

    def refuse_noise(self, closure: Callable[[], Tensor]) -> None:
        """Raise ValueError for a loss that differs for the same weights, naming the module."""
        self.check(closure)
        (one, before), (two, after) = self._trace(closure), self._trace(closure)
        pairs = zip(before, after, strict=False)
        noisy = (a.module for a, b in pairs if a.given == b.given and a.returned != b.returned)
        raise ValueError(
            _noise(f"{self._named(next(noisy, None))} is not deterministic,", one, two)
        )

    def _named(self, module: nn.Module | None) -> str:
        if module is None:
            return "the closure, outside of the model's modules,"
        name = next((name for name, each in self._modules if each is module), "")
        return f"module {name or '(the outermost)'} ({type(module).__name__})"

    def _refuse_moving(self) -> None:
        """Raise ValueError for a buffer that evaluations left with other sums each."""
        for (index, name), left in self._left.items():
            if any(not torch.equal(left[0], other) for other in left[1:] if not left[0].isnan()):
                path, module = self._modules[index]
                raise ValueError(
                    f"module {path or '(the model itself)'}: a {type(module).__name__} whose "
                    f"buffer {name} each evaluation of the loss changes, and those of a step are "
                    "of perturbed weights; allowed are modules that leave their buffers as they "
                    "are: call model.eval() (or that module's eval())"
                )

    def _modes_now(self) -> bytes:
        return bytes(module.training for _, module in self._modules)

    def _buffers_now(self) -> Buffers:
        return {
            (index, name): (buffer, version(buffer))
            for index in self._with_buffers
            for name, buffer in self._modules[index][1]._buffers.items()
            if buffer is not None
        }

    def _generators(self) -> list[Tensor]:
        """Return the states of torch's generators, each on the host."""
        cuda = [torch.cuda.default_generators[device.index or 0] for device in self._cuda]
        return [each.get_state() for each in (torch.default_generator, *cuda)]

    def _trace(self, closure: Callable[[], Tensor]) -> tuple[Tensor, list[Call]]:
        """Return the loss, and the calls of modules as they end: inner ones before outer ones."""
        calls: list[Call] = []
        states: list[Tensor] = []

        def enter(*_: Any) -> None:
            states.append(torch.cat(self._generators()))

        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            drew = not torch.equal(states.pop(), torch.cat(self._generators()))
            calls.append(Call(module, _sum((args, kwargs)), _sum(output), drew))

        handles: list[Any] = []
        for _, module in self._modules:
            handles.append(module.register_forward_pre_hook(enter))
            handles.append(module.register_forward_hook(leave, with_kwargs=True))
        try:
            return closure(), calls
        finally:
            for handle in handles:
                handle.remove()


def _noise(what: str, one: Tensor, two: Tensor) -> str:
    return (
        f"{what} and the loss is {one.item():.9g} and then {two.item():.9g} for the same weights; "
        "allowed is a deterministic loss (one fixed batch, model.eval(), or dropout and layer drop "
        "with p=0): its noise would drown a finite difference"
    )


def _same(one: Held | None, other: Held | None) -> bool:
    """Tell whether a buffer is the same object as before, and unchanged."""
    return one is not None and other is not None and one[0] is other[0] and one[1] == other[1]


def _sum(value: Any) -> float:
    """Return a sum over all tensors in a value, by which it is told from another one."""
    return float(sum(torch.nan_to_num(each).double().sum() for each in tensors(value)))


@contextmanager
def backward_refused(tuned: Sequence[Tuned]) -> Iterator[None]:
    """Raise ValueError where what runs meanwhile is made for a backward pass.

    It leaves gradients in tuned parameters, or wants to where none is recorded.
    """
    before = [_gradient(each.parameter) for each in tuned]
    try:
        yield
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
        raise ValueError(_BACKWARD.format("no gradient is recorded in a step")) from error
    touched = [
        each for each, old in zip(tuned, before, strict=True) if _gradient(each.parameter) != old
    ]
    if not touched:
        return
    for each in touched:
        each.parameter.grad = None
    said = f"it left gradients in {len(touched)} tuned parameter(s), {touched[0].name} among them"
    raise ValueError(_BACKWARD.format(said))


_BACKWARD = (
    "the closure ran a backward pass: {}. Allowed is a closure that returns the loss and no more "
    "(in Lightning agzo.integrations.lightning.ZOModuleMixin before the module, or "
    "automatic_optimization=False, with optimizer.step(closure) in training_step)"
)


def _gradient(parameter: nn.Parameter) -> tuple[int, int]:
    """Return what tells a parameter's gradient from another one, or from itself changed."""
    with torch._C.DisableTorchFunction():  # no mode that is active takes this for a use
        gradient = parameter.grad
        return (0, 0) if gradient is None else (id(gradient), version(gradient))
