"""Singular values and leading directions of a layer's input, exact, and whose tokens cause them.

For looking, not for training: `agzo.activations.subspace` is the fast approximation that AGZO uses.
The input X (tokens, d_in) has the paper's H as its transpose, so the right singular vectors of X
are the left ones of H, and the rows of a gradient Q^T X lie in their span.

Memory: a float64 copy of X.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agzo.torch_calls.surroundings import Closure
from agzo.torch_calls.uses import TorchCalls
from agzo.tuned.select import Tuned


@dataclass(frozen=True)
class Spectrum:
    """Of X: singular values (s,) descending, right vectors (d_in, s), left vectors (tokens, s)."""

    values: Tensor
    right: Tensor
    left: Tensor

    @property
    def rank(self) -> int:
        """Numerical rank, by the usual tolerance for the float32 numbers that X was made of."""
        tolerance = self.values[0] * max(self.right.shape[0], self.left.shape[0])
        return int((self.values > tolerance * torch.finfo(torch.float32).eps).sum())

    def basis(self, rank: int) -> Tensor:
        """Return the leading right directions, (d_in, rank), float64 orthonormal columns."""
        return self.right[:, :rank]

    def energy(self) -> Tensor:
        """Return sigma_i^2 / sum of sigma^2, (s,)."""
        squares = self.values.square()
        return squares / squares.sum()


def spectrum(x: Tensor) -> Spectrum:
    """Return the singular value decomposition of x (tokens, d_in) in float64."""
    left, values, right = torch.linalg.svd(x.double(), full_matrices=False)
    return Spectrum(values, right.T, left)


class Inputs(TorchCalls):
    """Collects ``inputs[name]``, the whole input of each wanted linear weight, at its first use.

    Layers fed by one tensor get that one object. Holds every activation: for probes only.
    """

    def __init__(self, wanted: list[Tuned]) -> None:
        super().__init__()
        self._names = {id(each.parameter): each.name for each in wanted}
        self.inputs: dict[str, Tensor] = {}

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Answer a call of torch."""
        if func is F.linear:
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            name = self._names.get(id(weight))
            if name is not None and name not in self.inputs:
                self.inputs[name] = args[0] if args else kwargs["input"]
        return func(*args, **kwargs)


@torch.no_grad()
def inputs(closure: Closure, wanted: list[Tuned]) -> dict[str, Tensor]:
    """Run the closure and return the input of each wanted linear weight, as it came."""
    with Inputs(wanted) as seen:
        closure()
    return seen.inputs


def gradients(closure: Closure, wanted: list[Tuned]) -> dict[nn.Parameter, Tensor]:
    """Return the exact gradient of each wanted parameter, by backpropagation; `.grad` stays."""
    parameters = [each.parameter for each in wanted]
    with torch.enable_grad():
        found = torch.autograd.grad(closure(), parameters)
    return dict(zip(parameters, found, strict=True))
