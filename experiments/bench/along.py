"""Textbook steps along this library's directions, at the textbook's cost.

A textbook draws from torch's global generator, this library from its own, so the two would take
other paths, and luck would decide which of them comes to a loss in fewer steps. `Along` takes the
luck out and leaves the cost in: the textbook draws each direction as published, on the clock; then
the clock stops while the numbers are replaced by those of the same step of this library; then it
goes on. Both walk one path up to rounding, and the seconds are those of published practice.

For AGZO the textbook takes its bases by its own hooks, on the clock as well. Those are of other
rows (each prompt once for every option, padding too), and with R they are replaced by R A^T of
this library's batch.

This is for a CPU: a GPU would have to be waited for at each stop of the clock.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from agzo import AGZO, ZeroOrderOptimizer
from agzo.directions.direction import Direction
from agzo.execution.perturbed import Directions
from baselines import LOZO, MeZO
from experiments.bench.textbook import TextbookAGZO, TextbookLOZO, TextbookMeZO

PUBLISHED = {"queries": 1, "noise": "gaussian", "embeddings": "tuned", "update": "sgd"}
OWN: dict[type, dict[str, Any]] = {
    MeZO: {"estimator": "two_sided"},
    LOZO: {"estimator": "two_sided", "published_refresh": False},
    AGZO: {
        "estimator": "one_sided", "basis": "power", "refresh_every": 1, "warm_start": False,
        "include_padding": False,
    },
}  # fmt: skip
Textbook = TextbookMeZO | TextbookAGZO  # LOZO's is one of MeZO's


class Stopwatch:
    """Adds up wall-clock seconds of work on the CPU: `running`, but for what is `paused` inside."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the seconds of the block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the seconds of the block out; for use inside `running`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds -= time.perf_counter() - start


class Along:
    """Replaces what a textbook draws while `directions` are given; off the clock."""

    def __init__(self, textbook: Textbook, watch: Stopwatch) -> None:
        self.directions: Directions | None = None
        self._draw, self._watch = textbook.noise, watch
        textbook.noise = self._noise

    def _noise(self, p: nn.Parameter) -> Tensor:
        z = self._draw(p)
        if self.directions is not None:
            with self._watch.paused():
                fill(z, self.directions[p])
        return z


def fill(z: Tensor, direction: Direction) -> None:
    """Write a direction into a tensor of its shape, block by block: no second tensor of it."""
    for start, stop, values in direction.rows():
        (z if z.dim() == 0 else z[start:stop]).copy_(values)


def textbook_of(optimizer: ZeroOrderOptimizer) -> Textbook:
    """Return the textbook of a method, MeZO, LOZO or AGZO, on the same model with its settings.

    Raises:
        ValueError: the method has a setting that published practice has not.
    """
    kind = type(optimizer)
    published: dict[str, Any] = PUBLISHED | OWN[kind]
    for key, value in published.items():
        if (found := getattr(optimizer, key)) != value:
            raise ValueError(f"method.{key}={found}: the textbook's is {value}, and no other")
    (group,) = optimizer.param_groups
    if group["weight_decay"]:
        raise ValueError(f"method.weight_decay={group['weight_decay']}: the textbook has 0 alone")
    model, rates = optimizer.model, (group["lr"], optimizer.eps)
    if isinstance(optimizer, LOZO):
        return TextbookLOZO(model, *rates, optimizer.rank, optimizer.refresh_every)
    if isinstance(optimizer, AGZO):
        return TextbookAGZO(model, *rates, optimizer.rank, optimizer.power_steps)
    return TextbookMeZO(model, *rates)
