"""A search direction for one parameter: dense noise made in chunks, or a low-rank product.

`Dense` is Z ~ N(0, 1) of the parameter's shape, never stored: it holds its address and makes its
rows anew each time (4 MiB at a time). `LowRank` is ``left @ right.T`` (AGZO Eq. 10: R A^T; LOZO:
U V^T) and holds its two thin factors. `Mixed` is one of each, added.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from agzo.rng import CHUNK, Noise


class Direction(Protocol):
    """What an execution and an update need to know of a direction."""

    @property
    def shape(self) -> torch.Size:
        """Shape of the parameter."""
        ...

    def rows(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yield ``(start, stop, values)`` along the first dimension, float32; values are fresh."""
        ...

    def dense(self) -> Tensor:
        """Return the whole direction as one float32 tensor of `shape`."""
        ...

    def inner(self, gradient: Tensor) -> Tensor:
        """Return <gradient, direction> in the gradient's dtype (0-dim)."""
        ...

    def norm(self) -> Tensor:
        """Return the Frobenius norm (0-dim float64)."""
        ...


class ByRows:
    """`dense`, `inner` and `norm` of any direction that can yield its rows."""

    def dense(self: Direction) -> Tensor:
        """Return the whole direction; see `Direction.dense`."""
        return torch.cat([v.reshape(-1) for _, _, v in self.rows()]).view(self.shape)

    def inner(self: Direction, gradient: Tensor) -> Tensor:
        """Return <gradient, direction>; see `Direction.inner`."""
        flat = gradient.reshape(1) if gradient.dim() == 0 else gradient
        parts = [(flat[a:b] * v.to(gradient.dtype)).sum() for a, b, v in self.rows()]
        return torch.stack(parts).sum()

    def norm(self: Direction) -> Tensor:
        """Return the Frobenius norm; see `Direction.norm`."""
        return torch.stack([v.double().square().sum() for _, _, v in self.rows()]).sum().sqrt()


@dataclass(frozen=True)
class Dense(ByRows):
    """Standard normal noise of a parameter's shape, regenerated on each use."""

    noise: Noise
    name: str
    shape: torch.Size  # pyright: ignore[reportIncompatibleMethodOverride]
    device: torch.device

    def rows(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yield the noise in chunks of whole rows, float32, free to be overwritten."""
        return self.noise.rows(self.shape, self.device, self.name, "dense")


@dataclass(frozen=True)
class LowRank(ByRows):
    """``left @ right.T`` with left (d_out, r) and right (d_in, r), both float32."""

    left: Tensor
    right: Tensor

    @property
    def shape(self) -> torch.Size:
        """Shape (d_out, d_in) of the product."""
        return torch.Size((self.left.shape[0], self.right.shape[0]))

    def rows(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yield the product in blocks of rows of at most `CHUNK` values."""
        step = max(1, CHUNK // self.shape[1])
        for start in range(0, self.shape[0], step):
            stop = min(self.shape[0], start + step)
            yield start, stop, self.left[start:stop] @ self.right.T


@dataclass(frozen=True)
class Mixed(ByRows):
    """``low + share * noise``: a low-rank direction with isotropic noise in it."""

    low: LowRank
    noise: Dense
    share: float

    @property
    def shape(self) -> torch.Size:
        """Shape (d_out, d_in) of the sum."""
        return self.low.shape

    def rows(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yield the sum in the chunks of its noise."""
        left, right = self.low.left, self.low.right
        for start, stop, values in self.noise.rows():
            yield start, stop, values.mul_(self.share).addmm_(left[start:stop], right.T)
