"""A direction that has a few coordinates of one parameter, and is zero elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from agzo.directions.direction import at_least_float32
from agzo.directions.low_rank import Branch
from agzo.kernels import Key
from agzo.rng import chunks


@dataclass(frozen=True)
class Sparse(Branch):
    """``values[i]`` at the coordinate ``index[i]``, counted through the parameter row by row."""

    shape: torch.Size  # pyright: ignore[reportIncompatibleMethodOverride]
    index: Tensor  # (k,) int64, no two alike
    values: Tensor  # (k,) float32

    @property
    def _width(self) -> int:
        return math.prod(self.shape[1:])

    def rows(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yield the direction in blocks of rows: the readable reference of what follows."""
        for start, stop in chunks(self.shape):
            size = (stop - start) * self._width
            local = self.index - start * self._width
            own = torch.where((local >= 0) & (local < size), self.values, 0.0)
            block = torch.zeros(size, dtype=torch.float32, device=self.index.device)
            block.index_add_(0, local.clamp_(0, size - 1), own)
            yield start, stop, block.view(stop - start, *self.shape[1:]) if self.shape else block[0]

    def take(self, ids: Tensor) -> Tensor:
        """Return some rows of the direction; see `Direction.take`."""
        found = torch.zeros(len(ids), self._width, dtype=torch.float32, device=ids.device)
        here = ids[:, None] == self.index // self._width  # (n, k)
        return found.index_add_(1, self.index % self._width, here * self.values)

    def add_linear(self, y: Tensor, x: Tensor, scale: float) -> None:
        """Set y to ``y + scale * x direction^T``: k columns of x, to k columns of y."""
        exact = at_least_float32(x.dtype)
        change = x[:, self.index % self._width].to(exact) * (self.values.to(exact) * scale)
        y.index_add_(1, self.index // self._width, change.to(y.dtype))

    def add_to(
        self, weight: Tensor, keep: Tensor | None, scale: Tensor, rounding: Key | None
    ) -> None:
        """Set weight to ``keep * weight + scale * direction``; writes k numbers where it can."""
        if keep is not None or rounding is not None or not weight.is_contiguous():
            super().add_to(weight, keep, scale, rounding)
            return
        flat, exact = weight.view(-1), at_least_float32(weight.dtype)
        new = flat[self.index].to(exact) + self.values.to(exact) * scale
        flat.index_copy_(0, self.index, new.to(weight.dtype))
