"""How a perturbation is executed: the loss at W + scale * direction, weights left as they were.

`SideBranch` (default) never writes a weight. While the closure runs it watches torch's function
calls and answers those that take a perturbed parameter:

    linear, low rank     y = x W^T + scale * (x right) left^T       two thin products
    linear, dense        y = x (W + scale Z)^T                      Z made in row chunks
    embedding            rows of W plus scale times the same rows of the direction
    anything else        called with a perturbed copy (vectors; convolutions, fused modules)

Calls are matched by the parameter object, so a tied weight is perturbed consistently at each use,
however the model reaches it. Memory: one 4 MiB chunk and thin products; for "anything else" one
copy of that parameter during the call.

`InPlace` is the readable reference: it writes W + scale * direction and restores from a copy
(memory: a second set of the tuned weights). The two agree to float tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from agzo.direction import Branch, Direction

Closure = Callable[[], Tensor]
Directions = Mapping[nn.Parameter, Direction]


class Execution(Protocol):
    """Evaluates a closure at perturbed weights."""

    points: int
    """At how many weights at once the closure that is running is evaluated."""

    def unperturbed(self, closure: Closure) -> Tensor:
        """Return ``closure()`` at W itself."""
        ...

    def evaluate(self, closure: Closure, directions: Directions, scale: float) -> Tensor:
        """Return ``closure()`` at W + scale * direction for every parameter in `directions`."""
        ...


def perturbed_copy(parameter: Tensor, direction: Direction, scale: float) -> Tensor:
    """Return parameter + scale * direction as a new tensor of the parameter's dtype."""
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


class InPlace:
    """Reference execution: write the perturbed weights, evaluate, restore from a copy."""

    points = 1

    def unperturbed(self, closure: Closure) -> Tensor:
        """Return ``closure()``."""
        return closure()

    @torch.no_grad()
    def evaluate(self, closure: Closure, directions: Directions, scale: float) -> Tensor:
        """Return the loss at the perturbed weights; see `Execution.evaluate`."""
        originals = {p: p.detach().clone() for p in directions}
        try:
            for parameter, direction in directions.items():
                parameter.copy_(perturbed_copy(parameter.detach(), direction, scale))
            return closure()
        finally:
            for parameter, original in originals.items():
                parameter.copy_(original)


class SideBranch:
    """Default execution: add the perturbation behind each use of a weight, write nothing."""

    points = 1

    def unperturbed(self, closure: Closure) -> Tensor:
        """Return ``closure()``."""
        return closure()

    @torch.no_grad()
    def evaluate(self, closure: Closure, directions: Directions, scale: float) -> Tensor:
        """Return the loss at the perturbed weights; see `Execution.evaluate`."""
        with Perturbed(directions, scale):
            return closure()


class Perturbed(TorchFunctionMode):
    """Answers torch calls as if each parameter in `directions` were perturbed."""

    def __init__(self, directions: Directions, scale: float) -> None:
        super().__init__()
        self._directions = directions
        self._parameters = {id(parameter): parameter for parameter in directions}
        self.scale = scale

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not uses(self._parameters, args, kwargs):
            return func(*args, **kwargs)
        if func is F.linear:
            return self._linear(*args, **kwargs)
        if func is F.embedding:
            return self._embedding(*args, **kwargs)
        if getattr(func, "__name__", "") == "__get__":
            plain = func(*args, **kwargs)
            if only_reads(func, plain):
                return plain
        return func(*self._substitute(args), **self._substitute(kwargs))

    def direction(self, value: Tensor) -> Direction | None:
        """Return the direction of a parameter, None of any other tensor."""
        parameter = self._parameters.get(id(value))
        return None if parameter is None else self._directions[parameter]

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if bias is not None:
            bias = self._substitute(bias)
        direction = self.direction(weight)
        x = input.reshape(-1, input.shape[-1])  # (tokens, d_in)
        if direction is None:
            y = F.linear(x, weight, bias)
        elif isinstance(direction, Branch):
            y = F.linear(x, weight, bias)
            direction.add_linear(y, x, self.scale)
        else:
            y = self._dense_linear(x, weight, direction)
            if bias is not None:
                y += bias
        return y.view(*input.shape[:-1], weight.shape[0])

    def _dense_linear(self, x: Tensor, weight: Tensor, direction: Direction) -> Tensor:
        y = None
        for start, stop, rows in direction.perturbed(weight, self.scale):
            part = F.linear(x, rows)
            del rows  # before the next block is made
            if stop - start == weight.shape[0]:
                return part
            if y is None:
                y = part.new_empty(x.shape[0], weight.shape[0])
            y[:, start:stop] = part
        assert y is not None
        return y

    def _embedding(self, input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if len(args) > 1 or kwargs.get("max_norm") is not None:  # max_norm rewrites the weight
            return F.embedding(input, self._substitute(weight), *args, **kwargs)
        direction = self.direction(weight)
        assert direction is not None  # the call uses it, and the ids are no parameter
        rows = direction.gather(weight, input.reshape(-1), self.scale)
        return rows.view(*input.shape, weight.shape[1])

    def _substitute(self, value: Any) -> Any:
        """Replace perturbed parameters inside an argument (lists, tuples, dicts) by copies."""
        if isinstance(value, Tensor):
            direction = self.direction(value)
            return value if direction is None else self._copy(value, direction)
        if isinstance(value, dict):
            return {key: self._substitute(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            items = [self._substitute(item) for item in value]
            return items if isinstance(value, list) else tuple(items)
        return value

    def _copy(self, parameter: Tensor, direction: Direction) -> Tensor:
        return perturbed_copy(parameter, direction, self.scale)


def only_reads(func: Any, result: Any) -> bool:
    """Tell whether a call read .dtype, .shape, .device or the like: no use of a weight."""
    return getattr(func, "__name__", "") == "__get__" and not isinstance(result, Tensor)


def uses(wanted: Mapping[int, Any] | set[int], *arguments: Any) -> bool:
    """Tell whether call arguments hold a tensor whose id is in `wanted` (nested ones included)."""
    for value in arguments:
        if isinstance(value, (list, tuple)):
            if uses(wanted, *value):
                return True
        elif isinstance(value, dict):
            if value and uses(wanted, *value.values()):
                return True
        elif id(value) in wanted:
            return True
    return False
