"""What a tensor is: which of its rows are real tokens, whether it was seen before, where it is."""

from __future__ import annotations

import weakref
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def fits(x: Tensor, mask: Tensor | None) -> bool:
    """Tell whether a token mask (batch, sequence) is about the rows of this input.

    It is for inputs (batch, sequence, width) and (batch * sequence, width). Others, such as a
    head's label positions, are taken whole.
    """
    return mask is not None and x.shape[:-1] in (mask.shape, (mask.numel(),))


def is_transformed(x: Tensor) -> bool:
    """Tell whether `torch.func` stands around a tensor (vmap, grad): it has no memory of its own.

    torch has no public name for this.
    """
    return torch._C._functorch.is_functorch_wrapped_tensor(x)  # pyright: ignore


def is_low_precision(dtype: torch.dtype) -> bool:
    """Tell whether updates of this dtype need a rounding policy."""
    return dtype in (torch.float16, torch.bfloat16)


def version(x: Tensor) -> int:
    """Return a number that a change in place changes; inference tensors keep no count."""
    while is_transformed(x):  # what is inside keeps the count
        x = torch._C._functorch.get_unwrapped(x)  # pyright: ignore
    return -1 if x.is_inference() else x._version


def tensors(value: Any) -> list[Tensor]:
    """List the tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for item in value for t in tensors(item)] if isinstance(value, list | tuple) else []


def storage(x: Tensor) -> int | None:
    """Return where a tensor's memory begins, None of one without."""
    plain = x.layout is torch.strided and not is_transformed(x)
    return x.untyped_storage().data_ptr() if plain else None


class BySameTensor(Generic[T]):
    """Remembers a value for a tensor, for as long as that object lives and is not changed."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], int, T]] = {}

    def get(self, x: Tensor) -> T | None:
        """Return what was put for this very tensor as it is now."""
        known = self._known.get(id(x))
        same = known is not None and known[0]() is x and known[1] == version(x)
        return known[2] if known is not None and same else None

    def put(self, x: Tensor, value: T) -> None:
        """Remember a value; the tensor is only referenced weakly.

        Of an inference tensor nothing is remembered: nothing would tell that it was changed.
        """
        if version(x) >= 0:
            self._known[id(x)] = (weakref.ref(x), version(x), value)

    def clear(self) -> None:
        """Forget all."""
        self._known.clear()


class Leaders:
    """Which layers share an input: of those that one tensor feeds, the first is the leader."""

    def __init__(self) -> None:
        self.of: dict[str, str] = {}
        self._recent: BySameTensor[str] = BySameTensor()

    def leads(self, x: Tensor, name: str) -> bool:
        """Take in that x enters a layer, and tell whether it leads; settled when first seen."""
        if name not in self.of:
            self.of[name] = self._recent.get(x) or name
        if self.of[name] == name:
            self._recent.put(x, name)
        return self.of[name] == name

    def next_pass(self) -> None:
        """Forget tensors, not leaders."""
        self._recent.clear()
