"""Random numbers as a pure function of an address; the global generator is never read or moved.

An address is ``(stream version, seed, step, query, parameter, role)`` and the place in the tensor.
The first part is hashed to a 64-bit key, the place is a counter (`agzo.kernels.normal` has the
formula), so any part of any tensor can be made alone, in any order, on any device, again after a
restart, and adding a layer or a query changes no other number.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agzo import kernels

STREAM = "2"
"""Version of the mapping from address to number; a change of any number needs a new version."""

CHUNK = 1 << 20
"""Values in one chunk of a large tensor (4 MiB of float32: it stays in the cache)."""


def rows_per_chunk(row_length: int) -> int:
    """Count the whole rows of `row_length` values that one chunk holds (at least one)."""
    return max(1, CHUNK // max(1, row_length))


def chunks(shape: torch.Size | tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of the blocks of whole rows that make up a tensor; (0, 1) of a scalar."""
    size = rows_per_chunk(math.prod(shape[1:])) if shape else 1
    for start in range(0, shape[0] if shape else 1, size):
        yield start, min(shape[0] if shape else 1, start + size)


@dataclass(frozen=True)
class Noise:
    """Gaussian numbers of one (seed, step, query).

    `parameter` and `role` below complete the address: a parameter's name, and what the numbers are
    for ("dense", "left", "signs", "rounding", ...); `table` has a role of its own.
    """

    seed: int
    step: int
    query: int = 0

    def key(self, parameter: str, role: str) -> kernels.Key:
        """Return the 64-bit key of one tensor's numbers."""
        fields = (STREAM, self.seed, self.step, self.query, parameter, role)
        digest = hashlib.shake_128("\x1f".join(str(field) for field in fields).encode()).digest(8)
        return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")

    def tensor(
        self, shape: torch.Size | tuple[int, ...], device: torch.device, parameter: str, role: str
    ) -> Tensor:
        """Make a whole tensor of `shape`, float32, standard normal."""
        return _normal(shape, device, self.key(parameter, role))

    def columns(
        self, height: int, count: int, device: torch.device, parameter: str, role: str
    ) -> Tensor:
        """Make a thin factor (height, count), float32, standard normal; its columns are contiguous.

        Its first columns are those of a factor with fewer.
        """
        return self.tensor((count, height), device, parameter, role).T

    def rows(
        self,
        shape: torch.Size | tuple[int, ...],
        device: torch.device,
        parameter: str,
        role: str,
        signs: bool = False,
    ) -> Iterator[tuple[int, int, Tensor]]:
        """Yield ``(start, stop, values)``: the same tensor in blocks of rows; or signs, -1 and 1.

        A sign is one bit, so it is exact and costs no logarithm. `values` is (stop - start,
        *shape[1:]) and may be overwritten by the caller. A scalar shape yields one block, ().
        """
        key, width = self.key(parameter, role), math.prod(shape[1:])
        for start, stop in chunks(shape):
            own = (stop - start, *shape[1:]) if shape else ()
            yield start, stop, _normal(own, device, key, start * width, signs)

    def table(
        self,
        examples: int,
        positions: int,
        rank: int,
        device: torch.device,
        parameter: str,
        first: tuple[int, int] = (0, 0),
    ) -> Tensor:
        """Make a (examples, positions, rank) float32 table addressed by (parameter, example).

        A value depends on its example, position and column only, so a batch cut into parts, or
        padded on the right, gives each example the numbers it has in the whole batch. `first` is
        where a part begins, (example, position); numbers before it are made as well, and dropped.
        """
        example, position = first
        key, whole = self.key(parameter, "table"), (example + examples, position + positions)
        return kernels.normal_table(key, *whole, rank, device)[example:, position:]


def _normal(
    shape: Sequence[int],
    device: torch.device,
    key: kernels.Key,
    start: int = 0,
    signs: bool = False,
) -> Tensor:
    out = torch.empty(shape, dtype=torch.float32, device=device)
    return kernels.normal_(out, key, start, signs=signs)
