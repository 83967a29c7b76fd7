"""Measure each case in a process of its own: its resident peak, and its heap, are then its own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

import torch

from experiments.bench.measure import Effort, measure, row_of
from experiments.bench.rows import Case, Row
from experiments.records import machine

ENDED = "its process was ended from outside, for its memory most likely"
Found = TypeVar("Found")


def measure_apart(case: Case, device: torch.device, effort: Effort) -> Row:
    """Measure a case as `measure` does, in a new process with as many threads as this one."""
    try:
        return apart(measure, case, device, effort)
    except BrokenProcessPool:
        return row_of(case, device, {"status": "out_of_memory", "message": ENDED})


def apart(work: Callable[..., Found], *arguments: Any) -> Found:
    """Return ``work(*arguments)``, done in a new process with as many threads as this one."""
    threads = torch.get_num_threads()
    with ProcessPoolExecutor(1, get_context("spawn"), _begin, (threads,)) as pool:
        return pool.submit(work, *arguments).result()


def _begin(threads: int) -> None:
    torch.set_num_threads(threads)
    machine.keep_freed_memory()
