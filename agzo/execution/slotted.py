"""Linear layers with slots, and the check that compiled layers perturb each use of a parameter.

Compiled code runs without the torch modes that perturb and look, so what those do is set up in the
layer's modules beforehand: factors in the slots of a linear layer, copies in place of any other
parameter. A use that goes by neither would be measured as if nothing were perturbed there, and is
an error: of a linear weight behind the back of its module, of a parameter that is given to the
layer, held by a module it only refers to, or added to it later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from agzo.directions.direction import at_least_float32
from agzo.directions.low_rank import LowRank
from agzo.kernels import thin
from agzo.torch_calls.uses import TorchCalls, among, used


class Slotted(nn.Linear):
    """A linear layer with slots: factors of a low-rank branch in, its input out."""

    number: int  # among those of its decoder layer
    right: Tensor | None = None  # (r, d_in) in the dtype of the input
    left: Tensor | None = None  # (r, d_out), times the scale, in the dtype of the output
    inputs: list[tuple[int, Tensor]] | None = None  # where its input is wanted: all, as they come

    def forward(self, input: Tensor) -> Tensor:
        """Return x W^T + b, and with a branch + (x right^T) left."""
        if self.inputs is not None:
            self.inputs.append((self.number, input))
        y = F.linear(input, self.weight, self.bias)
        if self.right is None or self.left is None:
            return y
        return y + F.linear(input, self.right) @ self.left

    def branch(self, direction: LowRank, scale: float) -> None:
        """Put in the branch of scale * direction."""
        exact = at_least_float32(self.weight.dtype)
        left = thin.rows(direction.left).to(exact) * scale
        self.right = thin.rows(direction.right).to(self.weight.dtype)
        self.left = left.to(self.weight.dtype)

    def clear(self) -> None:
        """Empty the slots."""
        self.right = self.left = self.inputs = None


def give_slots(layer: nn.Module) -> list[Slotted]:
    """Give the linear layers in a decoder layer slots, in place, and return them."""
    plain = [module for module in layer.modules() if type(module) is nn.Linear]
    slotted = []
    for number, module in enumerate(plain):
        module.__class__ = Slotted
        slotted.append(cast(Slotted, module))
        slotted[-1].number = number
    return slotted


def take_slots(slotted: Sequence[Slotted]) -> None:
    """Make them the linear layers they were."""
    for module in slotted:
        for name in ("number", "right", "left", "inputs"):
            vars(module).pop(name, None)
        module.__class__ = nn.Linear  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def every_use_checked(
    modules: Sequence[tuple[str, nn.Module]], slotted: Sequence[Slotted], tuned: Mapping[int, str]
) -> Iterator[None]:
    """Raise ValueError meanwhile where a layer uses a parameter as compiled code could not.

    Args:
        modules: of the decoder layer that runs, those whose parameters are perturbed.
        slotted: those of them with slots.
        tuned: ids and names of the parameters that may be perturbed.
    """
    entered: Any = deque(maxlen=1)
    for module in slotted:
        module.inputs = entered
    try:
        with _EveryUse(modules, slotted, tuned, entered):
            yield
    finally:
        for module in slotted:
            module.clear()


class _EveryUse(TorchCalls):
    def __init__(
        self,
        modules: Sequence[tuple[str, nn.Module]],
        slotted: Sequence[Slotted],
        tuned: Mapping[int, str],
        entered: deque[tuple[int, Tensor]],
    ) -> None:
        super().__init__()
        own = {id(p) for _, module in modules for p in module._parameters.values()}
        self._tuned = tuned
        self._foreign = set(tuned.keys() - own)
        self._weights: dict[int, set[int]] = {}  # weight -> numbers of the modules that have it
        for module in slotted:
            if id(module.weight) in tuned:
                self._weights.setdefault(id(module.weight), set()).add(module.number)
        self._watched = self._foreign | self._weights.keys()
        self._entered = entered

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        for key in among(self._watched, used(func, args, kwargs)):
            if key in self._foreign:
                raise ValueError(
                    f"{self._tuned[key]}: a compiled layer uses it, and none of the modules that "
                    "the layer had when it was compiled has it; allowed are parameters of its own"
                )
            if not self._forward(func, args):
                raise ValueError(
                    f"{self._tuned[key]}: a compiled layer uses this weight of an nn.Linear "
                    "without calling the module, or the module's forward was replaced; allowed is "
                    "nn.Linear's own"
                )
        return result

    def _forward(self, func: Any, args: Any) -> bool:
        """Tell whether this is the one call that `Slotted.forward` makes with its weight."""
        if func is not F.linear or not self._entered or len(args) < 2:
            return False
        number, x = self._entered[-1]
        return args[0] is x and number in self._weights.get(id(args[1]), ())
