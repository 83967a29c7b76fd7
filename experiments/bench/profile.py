"""What the time of a step goes to, in seconds, by watches around the functions that do the work.

    noise      Gaussian numbers, added to weights and rows as they are made
    bases      AGZO's power iterations
    branches   the thin products of low-rank directions
    update     what writes the weights, its noise apart
    forwards   as many plain forwards as the step takes, of the same round
    rest       what is left: Python, copies of small weights, and what fits the caches less well

A function that runs inside another one's watch is counted once, as its own. Wall-clock time of
work on a CPU; a device that runs beside the host would need another way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from agzo import ZeroOrderOptimizer, kernels
from agzo.activations.capture import ActivationCapture
from agzo.directions.low_rank import LowRank
from agzo.moving import Moving

# part -> where the functions are, and their names
WATCHED: dict[str, list[tuple[Any, str]]] = {
    "noise": [(kernels, "normal_"), (kernels, "normal_rows"), (kernels, "normal_table")],
    "bases": [(ActivationCapture, "_see")],
    "branches": [(LowRank, "add_linear")],
    "update": [(Moving, "_move")],
}
PROFILED = (*WATCHED, "forwards", "rest")


class Watches:
    """The seconds of each part; the time of an inner one is taken from the outer one."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(WATCHED, 0.0)
        self._inner: list[float] = []

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with a watch."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                took = time.perf_counter() - start
                self.seconds[part] += took - self._inner.pop()
                if self._inner:
                    self._inner[-1] += took

        return timed

    @contextmanager
    def set(self) -> Iterator[None]:
        """Put the watches on meanwhile."""
        places = [(part, *each) for part, own in WATCHED.items() for each in own]
        before = [getattr(owner, name) for _, owner, name in places]
        try:
            for (part, owner, name), function in zip(places, before, strict=True):
                setattr(owner, name, self.around(part, function))
            yield
        finally:
            for (_, owner, name), function in zip(places, before, strict=True):
                setattr(owner, name, function)


def profile(
    optimizer: ZeroOrderOptimizer, step: Callable[[], Any], forward: float, forwards: int
) -> dict[str, float]:
    """Take one step and return the seconds of each of `PROFILED`; `forward` is a plain one's."""
    watches = Watches()
    with watches.set():
        start = time.perf_counter()
        step()
        whole = time.perf_counter() - start
    found = watches.seconds | {"forwards": forward * forwards}
    return found | {"rest": whole - sum(found.values())}
