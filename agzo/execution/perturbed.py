"""A closure's torch calls, answered as if parameters were perturbed.

While the closure runs `Perturbed` watches torch's function calls and answers those that use the
values of a perturbed parameter, in whatever argument it is:

    linear, low rank     y = x W^T + scale * (x right) left^T       two thin products
    x W, low rank        y = x W + scale * (x left) right^T         two thin products
    linear, dense        y = x (W + scale Z)^T                      Z made in row chunks
    embedding            rows of W plus scale times the same rows of the direction
    anything else        called with a perturbed copy (vectors; convolutions, fused modules)

All but the last stand for the plain call of their function: a 2-D weight, plain tensors, and no
gradient recorded. A transpose W.T that is only multiplied with needs no copy. Calls are matched by
the parameter object, so a tied weight is perturbed consistently at each use, however the model
reaches it. Memory: one 4 MiB chunk and thin products; for "anything else" one copy of that
parameter during the call. A copy that the call has written to, or has handed out the address of,
stands for its parameter until the evaluation ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agzo.directions.direction import Direction
from agzo.directions.low_rank import Branch, LowRank
from agzo.rng import CHUNK
from agzo.torch_calls.inputs import is_transformed, storage, version
from agzo.torch_calls.products import TIMES, TURNS, is_turned, product
from agzo.torch_calls.uses import ADDRESSES, TorchCalls, holds, used

Directions = Mapping[nn.Parameter, Direction]


def perturbed_copy(parameter: Tensor, direction: Direction, scale: float) -> Tensor:
    """Return parameter + scale * direction as a new tensor of the parameter's dtype."""
    if parameter.numel() <= CHUNK and parameter.is_contiguous():
        _, _, rows = next(direction.perturbed(parameter, scale))
        if rows.shape == parameter.shape:
            return rows  # there is one block, and it is whole
    copy = torch.empty_like(parameter)
    perturbed_into(copy, parameter, direction, scale)
    return copy


def perturbed_into(out: Tensor, parameter: Tensor, direction: Direction, scale: float) -> None:
    """Write parameter + scale * direction to `out`, of the parameter's shape and dtype."""
    for start, stop, rows in direction.perturbed(parameter, scale):
        if parameter.dim() == 0:
            out.copy_(rows)
        else:
            out[start:stop] = rows
        del rows  # before the next block is made


class Perturbed(TorchCalls):
    """Answers torch calls as if each parameter in `directions` were perturbed."""

    def __init__(self, directions: Directions, scale: float) -> None:
        super().__init__()
        self._directions = directions
        self._parameters: dict[int, Tensor] = {id(each): each for each in directions}
        self._turned: dict[int, LowRank] = {}  # of transposes, which count as parameters here
        self.scale = scale
        self._standing: dict[int, Tensor] = {}  # parameter -> the copy that stands for it
        self._memory: set[int | None] = set()  # where copies lie, or lay
        self._kept: list[Tensor] = []  # tensors in such memory whose address was asked for

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Answer a call of torch."""
        if not holds(self._parameters, args) and not (
            kwargs and holds(self._parameters, kwargs.values())
        ):
            if func in ADDRESSES and storage(args[0]) in self._memory:
                self._kept.append(args[0])
            return func(*args, **kwargs)
        fast = _FAST.get(func)
        if fast is not None:
            answer = fast(self, func, *args, **kwargs)
            if answer is not NotImplemented:
                return answer
        elif not holds(self._parameters, used(func, args, kwargs)):
            return func(*args, **kwargs)
        return self._with_copies(func, args, kwargs)

    def direction(self, value: Tensor) -> Direction | None:
        """Return the direction of a parameter, None of any other tensor."""
        if id(value) not in self._parameters:
            return None
        turned = self._turned.get(id(value))
        return self._directions[value] if turned is None else turned  # pyright: ignore

    def linear(self, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
        """Answer x W^T of any direction."""
        if not self._is_plain(input, weight, bias):
            return NotImplemented
        return self._product(self._substitute(input, {}), weight, self._substitute(bias, {}))

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return x (W + scale Delta)^T + bias, of a W that is perturbed and no copy yet."""
        direction = self.direction(weight)
        if isinstance(direction, Branch):
            return self._with_branch(F.linear(x, weight, bias), x, direction)
        assert direction is not None
        y = None
        for start, stop, rows in direction.perturbed(weight, self.scale):
            part = F.linear(x, rows, None if bias is None else bias[start:stop])
            del rows  # before the next block is made
            if stop - start == weight.shape[0]:
                return part
            if y is None:
                y = part.new_empty(*part.shape[:-1], weight.shape[0])
            y[..., start:stop] = part
        assert y is not None
        return y

    def _with_branch(self, y: Tensor, x: Tensor, direction: Branch, times: float = 1.0) -> Tensor:
        """Return ``y + times * scale * x direction^T``."""
        y = y.contiguous()
        flat = x.reshape(-1, x.shape[-1])  # (tokens, d_in)
        direction.add_linear(y.view(-1, y.shape[-1]), flat, self.scale * times)
        return y

    def times(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        """Answer x W of a low-rank direction: the perturbation beside it."""
        call = product(func, args, kwargs)
        if call is None or kwargs.get("out") is not None:
            return NotImplemented
        others = [each for each in (*args, *kwargs.values()) if each is not call.weight]
        direction = self.direction(call.weight)
        if (
            not isinstance(direction, LowRank)
            or len(others) < len(args) + len(kwargs) - 1  # W is x, or the bias, as well
            or not all(self._is_plain(each, call.weight) for each in others if _is_tensor(each))
        ):
            return NotImplemented
        made: dict[int, tuple[Tensor, int]] = {}
        fill = partial(self._but, call.weight, made)
        args, kwargs = tuple(map(fill, args)), {key: fill(each) for key, each in kwargs.items()}
        filled = product(func, args, kwargs)
        assert filled is not None
        y = func(*args, **kwargs)
        return self._with_branch(y, filled.x, direction.turned, kwargs.get("alpha", 1.0))

    def _but(self, weight: Tensor, made: dict[int, tuple[Tensor, int]], value: Any) -> Any:
        return value if value is weight else self._substitute(value, made)

    def turn(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        """Answer W.T of a low-rank direction: the transpose itself, perturbed where it is used."""
        if not args:
            return NotImplemented
        matrix, direction = args[0], self.direction(args[0])
        if not isinstance(direction, LowRank) or not self._is_plain(matrix, matrix):
            return NotImplemented
        view = func(*args, **kwargs)
        if not is_turned(view, matrix):
            return NotImplemented
        self._parameters[id(view)], self._turned[id(view)] = view, direction.turned
        return view

    def embedding(
        self,
        func: Any,
        input: Tensor,
        weight: Tensor,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        *others: Any,
        **named: Any,
    ) -> Any:
        """Answer a look-up of rows."""
        if max_norm is not None or not self._is_plain(input, weight):  # max_norm writes the weight
            return NotImplemented
        ids = input.reshape(-1).long()
        _check_ids(ids, weight.shape[0])
        return self._rows(weight, ids).view(*input.shape, weight.shape[1])

    def _rows(self, weight: Tensor, ids: Tensor) -> Tensor:
        """Return rows of W + scale Delta, (n, width), of a W that is perturbed and no copy yet."""
        direction = self.direction(weight)
        assert direction is not None
        return direction.gather(weight, ids, self.scale)

    def _is_plain(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
        """Tell whether a fast form can stand for a call."""
        return (
            id(weight) in self._parameters
            and id(weight) not in self._standing
            and weight.dim() == 2
            and type(input) in (Tensor, nn.Parameter)
            and input.layout is torch.strided
            and not input.is_nested
            and not self._followed(input, bias)
        )

    def _followed(self, *inputs: Tensor | None) -> bool:
        """Tell whether torch follows what is done: to differentiate it, or to transform it."""
        return torch.is_grad_enabled() or any(is_transformed(x) for x in inputs if x is not None)

    def _with_copies(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Answer a call with perturbed copies, and keep those that must outlive it."""
        made: dict[int, tuple[Tensor, int]] = {}
        answer = func(*self._substitute(args, made), **self._substitute(kwargs, made))
        for key, (copy, before) in made.items():
            if func in ADDRESSES or version(copy) != before:
                self._standing[key] = copy
        return answer

    def _substitute(self, value: Any, made: dict[int, tuple[Tensor, int]]) -> Any:
        """Replace perturbed parameters inside an argument (lists, tuples, dicts) by copies.

        `made` has the copies of this call, and their versions before it.
        """
        key = id(value)
        if key in self._parameters:
            if key in self._standing:
                return self._standing[key]
            if key not in made:
                direction = self.direction(value)
                assert direction is not None
                copy = self._copy(value, direction)
                made[key] = copy, version(copy)
            return made[key][0]
        if isinstance(value, dict):
            return {key: self._substitute(item, made) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            items = [self._substitute(item, made) for item in value]
            return items if isinstance(value, list) else tuple(items)
        return value

    def _copy(self, parameter: Tensor, direction: Direction) -> Tensor:
        """Return a parameter like this one, perturbed: torch chooses by kind and requires_grad."""
        with torch.no_grad() if torch.is_grad_enabled() else nullcontext():
            copy = perturbed_copy(parameter, direction, self.scale)
        self._memory.add(storage(copy))
        return nn.Parameter(copy, requires_grad=parameter.requires_grad)


_FAST: dict[Any, Callable[..., Any]] = {
    F.linear: Perturbed.linear,
    F.embedding: Perturbed.embedding,
    **dict.fromkeys(TIMES, Perturbed.times),
    **dict.fromkeys(TURNS, Perturbed.turn),
}


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _check_ids(ids: Tensor, rows: int) -> None:
    """Raise IndexError, as torch does, for ids (n,) that are no rows of a table."""
    if ids.device.type == "cpu":
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < rows:
            raise IndexError(
                f"embedding: ids from {ids.min()} to {ids.max()}; allowed are 0 to {rows - 1}"
            )
    elif ids.device.type != "meta":
        inside = ((ids >= 0) & (ids < rows)).all()
        torch._assert_async(inside)  # pyright: ignore[reportPrivateImportUsage] # never waits
