"""What a step should cost: the project's targets, beside which the table prints met or missed.

Unit: two plain forwards of the same mode with label-position logits on ordinary weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experiments.bench.methods import METHODS
from experiments.bench.rows import Case


@dataclass(frozen=True)
class Target:
    """At batch 16: a family's ratio at most, and its speed over the textbook's at least."""

    machine: str  # the device, or a part of its name
    shapes: tuple[str, ...]
    dtypes: tuple[str, ...]
    lengths: tuple[int, ...]
    ratio: Mapping[str, float]  # method, or else its family -> at most
    speedup: float | None = None  # of every judged family
    mix: str | None = None


BATCH = 16
BIG = (("0.6b", "1.7b"), ("bfloat16", "float32"))  # shapes, dtypes
TARGETS = (
    Target(
        *("cpu", ("smollm2-135m",), ("float32",), (38,)),
        {"agzo": 1.10, "agzo_frozen": 1.08, "agzo_seen": 1.08, "lozo": 1.07, "mezo": 1.20},
        mix="short",
    ),
    Target(
        *("cpu", ("smollm2-135m",), ("bfloat16",), (38,)),
        {"agzo": 1.15, "lozo": 1.12, "mezo": 1.40},
        mix="short",
    ),
    Target("cpu", ("60m",), ("float32",), (64,), {"agzo": 1.06, "lozo": 1.05, "mezo": 1.10}),
    Target("H200", *BIG, (256, 1024), {"agzo": 1.10, "lozo": 1.08, "mezo": 1.15}),
    Target("H200", *BIG, (64,), {"agzo": 1.25}, speedup=4.0),
)


def target(case: Case, machine: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Return (ratio at most, speed over the textbook's at least) of a case; None: no target.

    Args:
        machine: what `experiments.records.machine.about` says of the machine.
    """
    method = METHODS[case.method]
    if not method.judged or case.rank != method.rank or case.batch != BATCH:
        return None, None
    for each in TARGETS:
        here = each.machine == machine["device"] or each.machine in machine["device_name"]
        fits = case.shape in each.shapes and case.dtype in each.dtypes and case.mix == each.mix
        if here and fits and case.length in each.lengths:
            ratio = each.ratio.get(case.method, each.ratio.get(method.family))
            return ratio, each.speedup
    return None, None
