"""Products of an input x with a matrix W among torch's calls: y = x W^T, and y = x W.

| role of W    | call                        | dimension of W that x comes in by | who calls it    |
|--------------|-----------------------------|-----------------------------------|-----------------|
| `linear`     | F.linear(x, W), W (out, in) | 1                                 | nn.Linear       |
| `transposed` | x @ W, addmm, W (in, out)   | 0                                 | Conv1D of GPT-2 |

A product with W.T is one with W, the other way round: x @ W.T, as Falcon has it, is x W^T.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Role = Literal["linear", "transposed", "embedding", "other"]  # of a weight, see `agzo.tuned.roles`
INPUTS: dict[Role, int] = {"linear": 1, "transposed": 0}  # the dimension that an input comes in by
TURNED: dict[Role, Role] = {"linear": "transposed", "transposed": "linear"}

# Functions that return x W, with the place of x among their arguments and the names of x and W.
TIMES: dict[Any, tuple[int, str, str]] = {
    torch.matmul: (0, "input", "other"),
    Tensor.matmul: (0, "self", "other"),  # also x @ W
    torch.linalg.matmul: (0, "input", "other"),
    torch.mm: (0, "input", "mat2"),
    Tensor.mm: (0, "self", "mat2"),
    torch.addmm: (1, "mat1", "mat2"),
    Tensor.addmm: (1, "mat1", "mat2"),
}

TURNS = frozenset(
    [
        *(getattr(Tensor, name).__get__ for name in ("T", "mT")),
        *(getattr(where, name) for where in (torch, Tensor) for name in ("t", "transpose")),
        *(getattr(where, name) for where in (torch, Tensor) for name in ("permute", "swapaxes")),
    ]
)
"""Functions that may return a matrix transposed, as a view."""


class Product(NamedTuple):
    """A call that multiplies an input x with a matrix, and how."""

    x: Tensor
    weight: Tensor
    role: Role


def product(func: Any, args: Any, kwargs: Any) -> Product | None:
    """Return the product x W^T or x W that a torch call is, None of any other call."""
    if func is F.linear:
        place, x, weight = 0, "input", "weight"
    elif func in TIMES:
        place, x, weight = TIMES[func]
    else:
        return None
    given, matrix = _at(args, kwargs, place, x), _at(args, kwargs, place + 1, weight)
    if not isinstance(given, Tensor) or not isinstance(matrix, Tensor) or matrix.dim() != 2:
        return None
    return Product(given, matrix, "linear" if func is F.linear else "transposed")


def _at(args: Any, kwargs: Any, place: int, name: str) -> Any:
    return args[place] if len(args) > place else kwargs.get(name)


def is_turned(view: Any, matrix: Tensor) -> bool:
    """Tell whether a tensor is the transposed view of a matrix."""
    return (
        isinstance(view, Tensor)
        and matrix.dim() == 2
        and view.shape == matrix.shape[::-1]
        and view.stride() == matrix.stride()[::-1]
    )


class Matrices:
    """Parameters and their transposes, as calls of a forward name them."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._known = {id(each): (each, False) for each in parameters}
        self._views: list[Tensor] = []  # kept, for an id is of an object that lives

    def times(self, func: Any, args: Any, kwargs: Any) -> Product | None:
        """Return the product with one of the parameters that a torch call is, None of any other."""
        found = product(func, args, kwargs)
        return None if found is None else self.known(found)

    def known(self, found: Product) -> Product | None:
        """Return a product as one with a parameter, None if it is none."""
        if id(found.weight) not in self._known:
            return None
        parameter, turned = self._known[id(found.weight)]
        return Product(found.x, parameter, TURNED[found.role] if turned else found.role)

    def follow(self, func: Any, args: Any, result: Any) -> None:
        """Take in what a call returned: it may be a parameter's transpose."""
        known = self._known.get(id(args[0])) if args and func in TURNS else None
        if known is not None and is_turned(result, args[0]):
            self._known[id(result)] = known[0], not known[1]
            self._views.append(result)
