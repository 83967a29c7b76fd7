"""The processes that torch.distributed runs, as the group of a step.

A zeroth-order step needs two things of the others: the losses, a number for each evaluation, and
for AGZO sums of the small products of its power iteration, (r, d_in) each. Every process then
applies the same update to its own replica, so weights are never sent.

    bytes of a step    8 (evaluations + 1) + 4 (1 + K) * sum over distinct inputs of r d_in

`reduced_bytes` counts what a process has handed to sums; a ring sends 2 (W - 1) / W times that.
Nothing else in this repository calls torch.distributed, but for the question whether it runs.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from agzo.distributed.group import Group

T = TypeVar("T")

PEER_TIMEOUT = 1800.0
"""Seconds without a word from another process until it is given up."""

BUSY = -1  # the length of nothing: process 0 is still at what the others wait for


class ProcessLost(RuntimeError):
    """Another process of the group failed or is gone."""


class Drifted(RuntimeError):
    """Replicas that should be equal are not."""


class Processes(Group):
    """The processes that torchrun (or anything that sets torch's environment variables) started.

    Where torch.distributed is initialised already, its processes; `leave` leaves it as it is then.

    Args:
        cuda: reduce CUDA tensors too; each process has the device of its LOCAL_RANK.
        peer_timeout: seconds to wait for the others, at the start and in each exchange. One that
            has ended is noticed at once by those on a machine that still answers for it.

    Raises:
        ProcessLost: here and in every exchange, where another process does not take part.
        ValueError: torch.distributed is initialised without a backend for the CPU.
    """

    def __init__(self, cuda: bool = False, peer_timeout: float = PEER_TIMEOUT) -> None:
        self.reduced_bytes = 0
        self._timeout = peer_timeout
        self._guest = dist.is_initialized()
        if self._guest:
            self.rank, self.size = dist.get_rank(), dist.get_world_size()
            self._check_backend()
        else:
            self.rank = int(os.environ.get("RANK", "0"))  # torch says which of them is missing
            self.size = int(os.environ.get("WORLD_SIZE", "1"))
            backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
            with self._together():
                dist.init_process_group(backend, timeout=timedelta(seconds=peer_timeout))
        self._heard = time.monotonic()  # when process 0 last told the others anything

    def _check_backend(self) -> None:
        """Refuse a backend of others that cannot send what lies on the CPU."""
        backend = dist.get_backend_config()
        if "cpu:" not in backend:
            raise ValueError(
                f"torch.distributed is initialised with backend {backend!r}; allowed is one for "
                "the CPU too, 'cpu:gloo,cuda:nccl'"
            )

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over processes, the same bits on each."""
        total = values.detach().clone(memory_format=torch.contiguous_format)
        self.reduced_bytes += total.numel() * total.element_size()
        with self._together():
            dist.all_reduce(total)
        return total

    def mean(self, values: Tensor, weight: float) -> Tensor:
        """Return the weighted mean over processes, (n,) float64."""
        own = torch.cat([values.double(), values.new_ones(1, dtype=torch.float64)]) * weight
        total = self.sum(own)
        return total[:-1] / total[-1]

    def share(self, weight: float) -> float:
        """Return this process's weight as a share of all weights."""
        return weight / self.sum(_here(weight, torch.float64)).item()

    def any(self, flag: bool) -> bool:
        """Tell whether the flag is up on some process."""
        up = _here(int(flag))
        with self._together():
            dist.all_reduce(up, dist.ReduceOp.MAX)
        return bool(up)

    def first(self, make: Callable[[], T]) -> T:
        """Let process 0 alone make something, and return it on every process."""
        if self.rank == 0:
            self._heard = time.monotonic()
            try:
                made = make()
            except BaseException as error:
                interrupt = isinstance(error, KeyboardInterrupt)
                self._tell({"error": f"{type(error).__name__}: {error}", "interrupt": interrupt})
                raise
            self._tell({"made": made})
            return made
        told = self._tell(None)
        if told.get("interrupt"):
            raise KeyboardInterrupt("stopped with process 0")
        if "error" in told:
            raise ProcessLost(f"process {self.rank} of {self.size}: process 0: {told['error']}")
        return told["made"]

    def _tell(self, value: Any) -> Any:
        """Send a JSON value from process 0 to all; return it there as it is."""
        text = json.dumps(value).encode() if self.rank == 0 else b""
        while (length := self._from_0(_here(len(text))).item()) == BUSY:
            pass
        content = torch.zeros(int(length), dtype=torch.uint8, device="cpu")
        if self.rank == 0:
            content.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        return json.loads(bytes(self._from_0(content).tolist()))

    def still_busy(self) -> None:
        """Let the others know, ten times within the time-out, that process 0 is at work."""
        if self.rank == 0 and time.monotonic() > self._heard + self._timeout / 10:
            self._heard = time.monotonic()
            self._from_0(_here(BUSY))

    def _from_0(self, values: Tensor) -> Tensor:
        """Fill values in place with those of process 0."""
        with self._together():
            dist.broadcast(values, 0)
        return values

    def check_same(self, values: Tensor, what: str) -> None:
        """Raise `Drifted` unless values (n,) float64 have the same bits on every process."""
        bits = values.detach().double().cpu().view(torch.int64)
        ends = torch.cat([bits, ~bits])  # the largest of ~x is that of the smallest x
        with self._together():
            dist.all_reduce(ends, dist.ReduceOp.MAX)
        largest, smallest = ends.chunk(2)
        if not torch.equal(largest, ~smallest):
            raise Drifted(
                f"process {self.rank} of {self.size}: {what} differs between the processes (here "
                f"{values.tolist()}); allowed are the same bits: the same data, code, "
                "versions and kind of device on every process"
            )

    def leave(self) -> None:
        """Part from the others."""
        if not self._guest:
            dist.destroy_process_group()

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Do something that all processes must take part in; say so where one does not."""
        begin = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            silent = time.monotonic() - begin > 0.9 * self._timeout
            what = f"did not answer within peer_timeout={self._timeout:g} seconds: it hangs, is "
            what += "slower than that, or its machine is lost"
            reason = " ".join(str(error).split())[:200]
            raise ProcessLost(
                f"process {self.rank} of {self.size}: another process "
                f"{what if silent else 'is gone'} ({reason})"
            ) from error


def _here(number: float, dtype: torch.dtype = torch.int64) -> Tensor:
    """Return a number as a 0-dim tensor on the host."""
    return torch.tensor(number, dtype=dtype, device="cpu")


def checksum(tensors: Iterable[Tensor]) -> Tensor:
    """Return the sum of all values, (1,) float64 on the CPU: equal replicas give equal bits."""
    return torch.stack([t.detach().sum(dtype=torch.float64).cpu() for t in tensors]).sum()[None]
