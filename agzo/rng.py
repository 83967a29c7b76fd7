"""Random numbers as a pure function of an address; the global generator is never read or moved.

An address is ``(stream version, seed, step, query, parameter, role, chunk)``. It is hashed to the
state of a private generator, so every chunk of every tensor can be made alone, in any order, again
after a restart, and adding a layer or a query changes no other number.

Memory: one chunk (`CHUNK` float32 values, 4 MiB) at a time.

Two generators serve two sizes:

* `Noise.rows`: tensors of any size, in chunks of whole rows, by torch's vectorised normal sampler
  (2.4 ns a value on one CPU core). Its numbers depend on the device type, which is therefore part
  of the stream version.
* `Noise.table`: small tables of which each row has its own address (the test matrix of the power
  iteration, addressed by input and example), by a counter-based integer hash and Box-Muller,
  all rows in one vectorised call.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

STREAM = 1
"""Version of the mapping from address to number; a change of any number needs a new version."""

CHUNK = 1 << 20
"""Values in one chunk. A chunk holds whole rows: ``max(1, CHUNK // row_length)`` of them."""

_MT_WORDS = 624  # 32-bit words of a Mersenne-Twister state
_MT_OFFSET = 24  # bytes before them in torch's CPU generator state; each word is stored as 64 bits


def stream_version(device: torch.device) -> str:
    """Name the stream used on `device`, for results: for instance ``"1-cpu"``."""
    return f"{STREAM}-{device.type}"


def rows_per_chunk(row_length: int) -> int:
    """Count the whole rows of `row_length` values that one chunk holds (at least one)."""
    return max(1, CHUNK // max(1, row_length))


@dataclass(frozen=True)
class Noise:
    """Gaussian numbers of one (seed, step, query).

    `parameter` and `role` below complete the address: a parameter's name, and what the numbers are
    for ("dense", "left", "right", "omega", "rounding").
    """

    seed: int
    step: int
    query: int = 0

    def _key(self, device: torch.device, *address: str | int) -> bytes:
        fields = (stream_version(device), self.seed, self.step, self.query, *address)
        return "\x1f".join(str(field) for field in fields).encode()

    def _generator(self, device: torch.device, *address: str | int) -> torch.Generator | None:
        if device.type == "meta":
            return None  # tensors without values: only their sizes are asked for
        key = self._key(device, *address)
        generator = torch.Generator(device=device)
        if device.type == "cpu":
            # manual_seed would keep only 32 bits of the seed: write the whole state instead.
            words = hashlib.shake_128(key).digest(4 * _MT_WORDS)
            state = generator.manual_seed(0).get_state()
            end = _MT_OFFSET + 8 * _MT_WORDS
            table = torch.frombuffer(bytearray(words), dtype=torch.int32).to(torch.int64)
            state[_MT_OFFSET:end] = (table & 0xFFFFFFFF).view(torch.uint8)
            generator.set_state(state)
        else:
            digest = hashlib.shake_128(key).digest(8)
            generator.manual_seed(int.from_bytes(digest, "little") >> 1)  # a 64-bit Philox key
        return generator

    def rows(
        self, shape: torch.Size | tuple[int, ...], device: torch.device, parameter: str, role: str
    ) -> Iterator[tuple[int, int, Tensor]]:
        """Yield ``(start, stop, values)`` over the first dimension of a tensor of `shape`.

        `values` is float32 of shape (stop - start, *shape[1:]), standard normal, and may be
        overwritten by the caller. A scalar shape yields one chunk of shape ().
        """
        for chunk in range(self.chunks(shape)):
            yield self.chunk(shape, device, parameter, role, chunk)

    @staticmethod
    def chunks(shape: torch.Size | tuple[int, ...]) -> int:
        """Count the chunks of a tensor of `shape`."""
        if not shape:
            return 1
        return math.ceil(shape[0] / rows_per_chunk(math.prod(shape[1:])))

    def chunk(
        self,
        shape: torch.Size | tuple[int, ...],
        device: torch.device,
        parameter: str,
        role: str,
        chunk: int,
    ) -> tuple[int, int, Tensor]:
        """Make one chunk alone: ``(start, stop, values)`` as in `rows`."""
        if not 0 <= chunk < self.chunks(shape):
            raise IndexError(f"chunk={chunk}: allowed are 0 to {self.chunks(shape) - 1}")
        generator = self._generator(device, parameter, role, chunk)
        if not shape:
            return 0, 1, torch.empty((), device=device).normal_(generator=generator)
        size = rows_per_chunk(math.prod(shape[1:]))
        start, stop = chunk * size, min(shape[0], (chunk + 1) * size)
        values = torch.empty((stop - start, *shape[1:]), device=device)
        return start, stop, values.normal_(generator=generator)

    def tensor(
        self, shape: torch.Size | tuple[int, ...], device: torch.device, parameter: str, role: str
    ) -> Tensor:
        """Make a whole tensor of `shape` (float32): the chunks of `rows` put together."""
        blocks = [values for _, _, values in self.rows(shape, device, parameter, role)]
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks)

    def bits(self, shape: torch.Size, device: torch.device, parameter: str, start: int) -> Tensor:
        """Make int32 values of `shape`, uniform in [0, 2^16), for the rows from `start` on."""
        generator = self._generator(device, parameter, "rounding", start)
        return torch.randint(1 << 16, shape, generator=generator, device=device, dtype=torch.int32)

    def table(
        self, examples: int, positions: int, rank: int, device: torch.device, parameter: str
    ) -> Tensor:
        """Make a (examples, positions, rank) float32 table addressed by (parameter, example).

        A value depends on its example, position and column only, so a batch cut into parts, or
        padded on the right, gives each example the numbers it has in the whole batch.
        """
        digest = hashlib.shake_128(self._key(device, parameter, "table")).digest(8)
        key = int.from_bytes(digest, "little", signed=True)
        example = torch.arange(examples, device=device, dtype=torch.int64).view(-1, 1, 1)
        position = torch.arange(positions, device=device, dtype=torch.int64).view(1, -1, 1)
        column = torch.arange(rank, device=device, dtype=torch.int64).view(1, 1, -1)
        counter = _mix(_mix(example ^ key) + (position << 16) + column)
        # Box-Muller from the upper and the lower 32 bits.
        first = ((counter >> 32 & 0xFFFFFFFF).double() + 1.0) * 2.0**-32  # in (0, 1]
        second = (counter & 0xFFFFFFFF).double() * (2.0 * math.pi * 2.0**-32)
        return (torch.sqrt(-2.0 * torch.log(first)) * torch.cos(second)).float()


def _mix(x: Tensor) -> Tensor:
    """Mix the 64 bits of each value (the finaliser of SplitMix64, Steele et al. 2014)."""
    x = x + -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed number; int64 wraps around
    x = (x ^ (x >> 30 & 0x3FFFFFFFF)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27 & 0x1FFFFFFFFF)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ (x >> 31 & 0x1FFFFFFFF)
