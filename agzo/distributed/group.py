"""Who shares the work of a step: one process alone; of several see `agzo.distributed.processes`.

A method asks its group for the mean of losses and for sums, whether or not there are others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


class Group:
    """One process alone: there is nothing to add up, and nobody to agree with."""

    rank: int = 0
    size: int = 1
    reduced_bytes: int = 0

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over processes, the same bits on each."""
        return values

    def mean(self, values: Tensor, weight: float) -> Tensor:
        """Return the mean over processes of values (n,), each process with its weight.

        Float64 where there are several processes.
        """
        return values

    def share(self, weight: float) -> float:
        """Return this process's weight as a share of all weights."""
        return 1.0

    def any(self, flag: bool) -> bool:
        """Tell whether the flag is up on some process."""
        return flag

    def first(self, make: Callable[[], T]) -> T:
        """Let process 0 alone make something of JSON values, and return it on every process.

        Where it raises, every process raises: process 0 the error itself, the others
        `KeyboardInterrupt` for an interrupt and `ProcessLost` for the rest. What takes long calls
        `still_busy` now and then, or the others give process 0 up.
        """
        return make()

    def still_busy(self) -> None:
        """Let the others know, within what `first` makes, that it is still being made."""

    def check_same(self, values: Tensor, what: str) -> None:
        """Raise `Drifted` unless values (n,) float64 have the same bits on every process."""

    def check(self) -> None:
        """Raise ValueError where a step cannot be taken with this group; called before each."""

    def leave(self) -> None:
        """Part from the others."""


ALONE = Group()


class _Unsaid(Group):
    """One process, which nobody said is alone."""

    def check(self) -> None:
        """Refuse a step beside other processes: each would move its replica elsewhere."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise ValueError(
                f"group=None: torch.distributed runs {dist.get_world_size()} processes, and "
                "replicas that are measured apart drift apart; allowed are "
                "group=agzo.distributed.Processes(), each step with a list of one Piece, the "
                "process's share of the batch, or group=agzo.distributed.ALONE for a process that "
                "has nothing to do with the others"
            )


UNSAID = _Unsaid()
"""The group of an optimizer that was given none."""
