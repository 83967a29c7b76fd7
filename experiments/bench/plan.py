"""Which cases are measured: the default table of a device, prompts of real lengths, sweeps.

A sweep varies one axis (length, batch, rank or size) about a base point and keeps the others.
Sized, by estimate, for less than 10 minutes each (the table, all four sweeps) on two quiet CPU
cores and for one call of 9 minutes on an H200, where a run stops by itself before that and goes on
when asked again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from experiments.bench.methods import CHIEF, METHODS, ON_CPU, ON_CUDA, REAL
from experiments.bench.prompts import LENGTHS
from experiments.bench.rows import Case

AXES = ("length", "batch", "rank", "size")


@dataclass(frozen=True)
class Grid:
    """Every method at every shape, precision, batch, length and rank.

    `ranks` are for the methods that have one; empty: each method's own.
    """

    shapes: tuple[str, ...]
    dtypes: tuple[str, ...]
    batches: tuple[int, ...]
    lengths: tuple[int, ...]
    methods: tuple[str, ...]
    ranks: tuple[int, ...] = ()
    mix: str | None = None

    def cases(self) -> list[Case]:
        """Return the cases, those of one table together."""
        places = product(self.shapes, self.dtypes, self.batches, self.lengths)
        return [
            Case(*place, method, rank, mix=self.mix)
            for place in places
            for method in self.methods
            for rank in self._ranks(method)
        ]

    def _ranks(self, method: str) -> Sequence[int | None]:
        own = METHODS[method].rank
        return [own] if own is None or not self.ranks else self.ranks


TABLES: Mapping[str, Grid] = {
    "cpu": Grid(("60m",), ("float32",), (16,), (64,), ON_CPU),
    "cuda": Grid(("0.6b", "1.7b"), ("bfloat16", "float32"), (16,), (64, 256, 1024), ON_CUDA),
}
MIXES: Mapping[str, Grid] = {
    mix: Grid(
        shapes=("smollm2-135m",),
        dtypes=("float32", "bfloat16"),
        batches=(len(lengths),),
        lengths=(lengths[-1],),
        methods=REAL,
        mix=mix,
    )
    for mix, lengths in LENGTHS.items()
}
BASES: Mapping[str, Grid] = {
    "cpu": Grid(("60m",), ("float32",), (4,), (64,), CHIEF),
    "cuda": Grid(("0.6b",), ("bfloat16",), (16,), (256,), CHIEF),
}
SWEEPS: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "cpu": {
        "length": (32, 64, 128, 256),
        "batch": (1, 4, 16),
        "rank": (1, 4, 16),
        "size": ("pocket", "5m", "20m", "60m"),
    },
    "cuda": {
        "length": (64, 128, 256, 512, 1024),
        "batch": (1, 4, 16, 64),
        "rank": (1, 4, 16, 64),
        "size": ("60m", "0.6b", "1.7b", "4b"),
    },
}
FIELDS = {"length": "lengths", "batch": "batches", "rank": "ranks", "size": "shapes"}


def swept(base: Grid, axes: Mapping[str, Sequence[Any]]) -> list[Case]:
    """Return the cases of sweeps (axis -> its values) about a base point, each case once."""
    cases: dict[Case, None] = {}
    for axis, values in axes.items():
        grid = replace(base, **{FIELDS[axis]: tuple(values)})
        if axis == "rank":
            ranked = tuple(name for name in base.methods if METHODS[name].rank is not None)
            grid = replace(grid, methods=ranked)
        cases |= dict.fromkeys(grid.cases())
    return list(cases)
