"""What a weight is to its model: above all by which of its dimensions a layer's input comes in.

| role         | used as                | who has such weights                                   |
|--------------|------------------------|--------------------------------------------------------|
| `linear`     | y = x W^T, W (out, in) | nn.Linear; whoever calls F.linear                      |
| `transposed` | y = x W, W (in, out)   | Conv1D of GPT-2; whoever writes x @ W                  |
| `embedding`  | rows of W              | nn.Embedding; a head tied to it                        |
| `other`      | anything else          | norms, biases, convolutions, experts in one tensor ... |

The rows of the gradient of x W^T, and the columns of that of x W, lie in the span of the inputs x,
so only the first two have a basis. What a weight is follows from how the model uses it, which a
forward shows (`Usage`). Before there was one its module is asked (`roles`), which may be wrong:
some models read the weight of an `nn.Linear` without calling the layer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from agzo.torch_calls.products import INPUTS, Matrices, Role
from agzo.torch_calls.uses import ADDRESSES, TorchCalls, among, used
from agzo.tuned.linears import weight_inputs


def roles(model: nn.Module) -> dict[nn.Parameter, Role]:
    """Map each parameter of the model to its role, as far as its modules tell.

    It is decided by every module that holds it: a head tied to the embedding is an embedding.
    """
    words: dict[int | None, Role] = {dimension: role for role, dimension in INPUTS.items()}
    found: dict[nn.Parameter, Role] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            role = words.get(weight_inputs(module) if name == "weight" else None, "other")
            if isinstance(module, nn.Embedding):
                role = "embedding"
            previous = found.get(parameter, role)
            if "embedding" in (role, previous):
                found[parameter] = "embedding"
            else:
                found[parameter] = role if role == previous else "other"
    return found


class Usage(TorchCalls):
    """Notes how parameters are used in the torch calls of a forward."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        parameters = list(parameters)
        self._matrices = Matrices(parameters)
        self._as: dict[int, set[Role]] = {id(parameter): set() for parameter in parameters}
        self._unseen = set(self._as)
        self._outside: set[int] = set()

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Answer a call of torch."""
        if func not in ADDRESSES:
            self._unseen.difference_update([*among(self._unseen, used(func, args, kwargs))])
        times = self._matrices.times(func, args, kwargs)
        if times is not None:
            self._as[id(times.weight)].add(times.role)
        result = func(*args, **kwargs)
        self._matrices.follow(func, args, result)
        return result

    def reached(self, parameter: nn.Parameter) -> bool:
        """Tell whether any call used this parameter."""
        return id(parameter) in self._as and id(parameter) not in self._unseen

    def no_basis(self, parameters: Iterable[nn.Parameter]) -> None:
        """Take these for weights of no linear layer: what enters it cannot be looked at."""
        self._outside |= {id(parameter) for parameter in parameters}

    def role(self, parameter: nn.Parameter, guess: Role) -> Role:
        """Return what a parameter is, `guess` where no call was seen to use it.

        Multiplied in one way and used otherwise too it is a linear layer's weight: a basis of the
        inputs is a good place to look all the same.
        """
        if guess == "embedding" or not self.reached(parameter):
            return guess
        ways = set() if id(parameter) in self._outside else self._as[id(parameter)]
        if guess in ways:
            return guess
        return next(iter(ways)) if len(ways) == 1 else "other"
