"""A search direction for one parameter: dense noise made in chunks, or a low-rank product.

`Dense` is Z ~ N(0, 1) of the parameter's shape, never stored: it holds its address and makes its
rows anew each time (4 MiB at a time); `Signs` is that with -1 and 1. `LowRank` is
``left @ right.T`` (AGZO Eq. 10: R A^T; LOZO: U V^T) and holds its two thin factors. `Sum` is
several queries' directions, added.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from agzo import kernels
from agzo.rng import STREAM, Noise, chunks


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

    def perturbed(self, weight: Tensor, scale: float) -> Iterator[tuple[int, int, Tensor]]:
        """Yield ``(start, stop, rows)``: blocks of rows of weight + scale * direction.

        In the weight's dtype, computed in at least float32. A block holds until the next is made.
        """
        ...

    def take(self, ids: Tensor) -> Tensor:
        """Return the rows `ids` (n,) of the direction, (n, width) float32."""
        ...

    def gather(self, weight: Tensor, ids: Tensor, scale: float) -> Tensor:
        """Return the rows `ids` (n,) of weight + scale * direction, (n, width), as `perturbed`."""
        ...

    def add_to(
        self, weight: Tensor, keep: Tensor | None, scale: Tensor, rounding: kernels.Key | None
    ) -> None:
        """Set weight to ``keep * weight + scale * direction``, in place.

        Args:
            weight: of the direction's shape, any float dtype; the sum is at least float32.
            keep: 0-dim, on the weight's device; None for 1.
            scale: 0-dim, on the weight's device.
            rounding: key of the stochastic rounding of float16 and bfloat16; None: to nearest.
        """
        ...


class ByRows:
    """What any direction that can yield its rows can do; the reference of what others do faster."""

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

    def perturbed(
        self: Direction, weight: Tensor, scale: float
    ) -> Iterator[tuple[int, int, Tensor]]:
        """Yield blocks of rows of the perturbed weight; see `Direction.perturbed`."""
        for start, stop, values in self.rows():
            own = weight if weight.dim() == 0 else weight[start:stop]
            yield start, stop, perturbed_rows(own, values.view(own.shape), scale)
            del values, own  # before the next block is made

    def take(self: Direction, ids: Tensor) -> Tensor:
        """Return some rows of the direction; see `Direction.take`.

        Goes over the direction's blocks without a host synchronisation.
        """
        size = (ids.shape[0], self.shape[1])
        gathered = torch.zeros(size, dtype=torch.float32, device=ids.device)
        for start, stop, values in self.rows():
            inside = (ids >= start) & (ids < stop)
            local = (ids - start).clamp_(0, stop - start - 1)
            gathered = torch.where(inside[:, None], values[local], gathered)
            del values  # before the next block is made
        return gathered

    def gather(self: Direction, weight: Tensor, ids: Tensor, scale: float) -> Tensor:
        """Return some rows of the perturbed weight; see `Direction.gather`."""
        return perturbed_rows(weight[ids], self.take(ids), scale)

    def add_to(
        self: Direction,
        weight: Tensor,
        keep: Tensor | None,
        scale: Tensor,
        rounding: kernels.Key | None,
    ) -> None:
        """Set weight to ``keep * weight + scale * direction``; see `Direction.add_to`."""
        width = math.prod(weight.shape[1:])
        for start, stop, values in self.rows():
            own = weight if weight.dim() == 0 else weight[start:stop]
            change = values.view(own.shape).to(at_least_float32(weight.dtype)).mul_(scale)
            del values  # before the next block is made
            if change.dtype == own.dtype:
                if keep is not None:
                    own.mul_(keep)
                own.add_(change)
                continue
            change += own if keep is None else own.float() * keep
            if rounding is not None:
                bits = kernels.sixteen_bits(rounding, start * width, own.shape, own.device)
                change = kernels.round_stochastically(change, bits, own.dtype)
            own.copy_(change)
            del change, own


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Return the precision in which sums with a weight of this dtype are made."""
    return torch.promote_types(dtype, torch.float32)


def perturbed_rows(weight: Tensor, values: Tensor, scale: float) -> Tensor:
    """Return weight + scale * values in the weight's dtype, computed in at least float32.

    `values` (same shape, float32) may be overwritten.
    """
    if weight.dtype == torch.float64:
        return values.double().mul_(scale).add_(weight)
    return values.mul_(scale).add_(weight).to(weight.dtype)


@dataclass(frozen=True)
class Dense(ByRows):
    """Standard normal noise of a parameter's shape, regenerated on each use.

    `agzo.kernels` adds it to the weight as it is made, and makes of an embedding the rows in use.
    """

    noise: Noise
    name: str
    shape: torch.Size  # pyright: ignore[reportIncompatibleMethodOverride]
    device: torch.device
    role: ClassVar[str] = "dense"
    signs: ClassVar[bool] = False
    stream: ClassVar[str] = STREAM

    def rows(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yield the noise in blocks of whole rows, float32, free to be overwritten."""
        return self.noise.rows(self.shape, self.device, self.name, self.role, self.signs)

    def perturbed(self, weight: Tensor, scale: float) -> Iterator[tuple[int, int, Tensor]]:
        """Yield blocks of rows of the perturbed weight, each in the memory of the one before."""
        key, width = self._key, math.prod(self.shape[1:])
        buffer = None
        for start, stop in chunks(self.shape):
            own = weight if weight.dim() == 0 else weight[start:stop]
            if buffer is None:
                buffer = torch.empty(own.shape, dtype=own.dtype, device=own.device)
            block = buffer if own.dim() == 0 else buffer[: stop - start]
            kernels.normal_(block, key, start * width, own, scale=scale, signs=self.signs)
            yield start, stop, block

    def take(self, ids: Tensor) -> Tensor:
        """Return some rows of the noise; see `Direction.take`."""
        return kernels.normal_rows(self._key, ids, self.shape[1], signs=self.signs)

    def gather(self, weight: Tensor, ids: Tensor, scale: float) -> Tensor:
        """Return some rows of the perturbed weight; see `Direction.gather`."""
        own = weight.contiguous()
        return kernels.normal_rows(self._key, ids, self.shape[1], own, scale, self.signs)

    def add_to(
        self, weight: Tensor, keep: Tensor | None, scale: Tensor, rounding: kernels.Key | None
    ) -> None:
        """Set weight to ``keep * weight + scale * direction`` in one pass; see `Direction`."""
        if weight.is_contiguous():
            decay = 1.0 if keep is None else keep
            kernels.normal_(weight, self._key, 0, weight, decay, scale, rounding, self.signs)
        else:
            super().add_to(weight, keep, scale, rounding)

    @functools.cached_property
    def _key(self) -> kernels.Key:
        return self.noise.key(self.name, self.role)


class Signs(Dense):
    """Independent signs, -1 or 1, of a parameter's shape: of covariance I as Gaussian noise is."""

    role = "signs"
    signs = True
    stream = f"{STREAM}, signs 2"


@dataclass(frozen=True)
class Sum(ByRows):
    """``sum(c * direction)`` of directions of one shape: several queries to be rounded once."""

    parts: Sequence[tuple[Direction, Tensor]]

    @property
    def shape(self) -> torch.Size:
        """Shape of each."""
        return self.parts[0][0].shape

    def rows(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yield the sum in the blocks of its parts, float32."""
        (first, scale), *others = self.parts
        rest = [(direction.rows(), c) for direction, c in others]
        for start, stop, total in first.rows():
            total.mul_(scale)
            for blocks, c in rest:
                total += next(blocks)[2].mul_(c)
            yield start, stop, total
            del total  # before the next block is made
