"""A grid without an edge: where the best learning rate is the last one tried, try the next.

A plan's grid lists learning rates half a decade apart, 1 or 3 times a power of ten. While the cell
with the lowest dev loss has no tried neighbour on one side, the next half decade on that side is
run too, with the cell's other settings, at most `widen` beyond the plan's on each side. A cell that
diverged has been tried: the best one beside it is at no edge. Where all diverged, the next half
decade below is tried. The rule is the same for every method, and looks at dev losses alone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LR = "method.lr"


def on_grid(lr: float) -> bool:
    """Tell whether a learning rate is 1 or 3 times a power of ten."""
    return lr > 0 and math.isclose(lr, _value(_place(lr)), rel_tol=1e-9)


def neighbours(lr: float) -> tuple[float, float]:
    """Return the learning rates half a decade below and above one of the grid."""
    place = _place(lr)
    return _value(place - 1), _value(place + 1)


def _place(lr: float) -> int:
    """Return the number of a learning rate on the grid; 0 is 1, 1 is 3, 2 is 10."""
    return round(2 * math.log10(lr))


def _value(place: int) -> float:
    decade, half = divmod(place, 2)
    return float(f"{3 if half else 1}e{decade}")


@dataclass(frozen=True)
class Beyond:
    """What lies beyond the best cell: settings to try, and the sides where no more are allowed."""

    settings: list[dict[str, Any]]
    edges: list[str]  # of "lower" and "upper"


def beyond(
    best: Mapping[str, Any] | None,
    planned: Sequence[Mapping[str, Any]],
    tried: Sequence[Mapping[str, Any]],
    most: int,
) -> Beyond:
    """Return the neighbours of the best cell's learning rate that were not tried.

    Args:
        best: settings of the cell with the lowest dev loss; None where every cell diverged.
        planned: settings of the plan's own cells.
        tried: settings of all cells that were run, the planned ones among them.
        most: how many may be added on each side; 0 adds none.
    """
    if best is None:
        lowest = min(tried, key=lambda cell: cell.get(LR, 0.0))
        found = beyond(lowest, planned, tried, most)
        lower = [cell for cell in found.settings if cell[LR] < lowest[LR]]
        return Beyond(lower, found.edges)
    if LR not in best:
        return Beyond([], [])

    def rates(cells: Sequence[Mapping[str, Any]]) -> list[float]:
        """List the learning rates of the cells that differ from the best one in nothing else."""
        return sorted(cell[LR] for cell in cells if {**cell, LR: best[LR]} == best)

    plan, known = rates(planned), rates(tried)
    if not on_grid(best[LR]):
        sides = {"lower": known[0], "upper": known[-1]}
        return Beyond([], [side for side, end in sides.items() if end == best[LR]])
    wanted, edges = [], []
    for side, lr in zip(("lower", "upper"), neighbours(best[LR]), strict=True):
        inside = known[0] < best[LR] if side == "lower" else known[-1] > best[LR]
        added = sum(rate < plan[0] if side == "lower" else rate > plan[-1] for rate in known)
        if inside:
            continue
        if added < most:
            wanted.append({**best, LR: lr})
        else:
            edges.append(side)
    return Beyond(wanted, edges)
