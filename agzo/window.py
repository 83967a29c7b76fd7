"""The window of usable eps, from slopes that are known: how well others agree with them.

Pure functions of numbers; `agzo.find_eps` and the probe `slope` of the experiments measure them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
Pairs = Sequence[tuple[float, float | None]]  # (exact, measured); None is not finite

# An eps is usable while the root mean square of measured - exact is at most a quarter of that of
# exact. An error that is independent of the slope then adds at most 6 % to the mean square of g,
# and so of the step, and any error leaves the (uncentred) correlation above .968: no limit on the
# correlation is needed beside this one.
LIMIT = 0.25
# Errors below this one do not tell values of eps apart: g's own spread over directions is 100 %.
NEGLIGIBLE = 0.02


def quality(pairs: Pairs) -> Row:
    """Compare measured values with exact ones, given as (exact, measured).

    With m measured and e exact, over the pairs whose m is finite:

        correlation     Pearson's; None where m does not vary
        gain            <m, e> / <e, e>
        relative_error  rms(m - e) / rms(e)
        offset          mean(m - e) / rms(e)

    `finite` counts those pairs, `zero` those with m = 0: a difference below the loss's resolution.
    """
    kept = [(e, m) for e, m in pairs if m is not None]
    row: Row = {"n": len(pairs), "finite": len(kept), "zero": sum(m == 0 for _, m in kept)}
    names = ("correlation", "gain", "relative_error", "offset")
    size = math.sqrt(sum(e * e for e, _ in kept) / len(kept)) if kept else 0.0
    if size == 0.0:
        return row | dict.fromkeys(names)
    exact, measured = [e for e, _ in kept], [m for _, m in kept]
    errors = [m - e for e, m in kept]
    varies = len(set(exact)) > 1 and len(set(measured)) > 1
    values = (
        statistics.correlation(exact, measured) if varies else None,
        sum(e * m for e, m in kept) / (size * size * len(kept)),
        math.sqrt(statistics.fmean(d * d for d in errors)) / size,
        statistics.fmean(errors) / size,
    )
    return row | dict(zip(names, values, strict=True))


def judged(pairs: Pairs) -> Row:
    """Return the `quality` of an eps, and whether it is `usable` (1, else 0).

    It is if every value is finite and relative_error is at most `LIMIT`.
    """
    row = quality(pairs)
    error = row["relative_error"]
    row["usable"] = int(row["finite"] == row["n"] and error is not None and error <= LIMIT)
    return row


def choose(grid: Sequence[Row], what: str) -> Row:
    """Return the window and the eps to take of a grid: rows of `judged` with an "eps", ascending.

    `lowest` and `highest` bound the window: the usable eps next to each other in the grid around
    the one with the smallest error. `eps` is recommended: of the window's values whose error is at
    most `NEGLIGIBLE` or 1.1 times the smallest, again next to each other around the best, the one
    nearest to the geometric middle (the smaller of two), as far from both cliffs as it can be. The
    three are None where no eps of the grid is usable; `best` has the smallest error in any case.
    The measures are those of `eps`, or of `best`.

    Raises:
        ValueError: no eps gave finite values; the message begins with `what`.
    """
    whole = [i for i, row in enumerate(grid) if row["finite"] == row["n"]]
    known = [i for i in whole if grid[i]["relative_error"] is not None]
    if not known:
        raise ValueError(
            f"{what}: no eps of the grid gave finite values; allowed is a model whose loss and "
            "gradient are finite"
        )
    best = min(known, key=lambda i: grid[i]["relative_error"])
    least = grid[best]["relative_error"]
    row: Row = dict.fromkeys(("eps", "lowest", "highest"))
    chosen = best
    if least <= LIMIT:
        window = _around(best, [bool(each["usable"]) for each in grid])
        level = max(NEGLIGIBLE, 1.1 * least)
        good = [i in known and grid[i]["relative_error"] <= level for i in range(len(grid))]
        tied = _around(best, good)
        middle = math.sqrt(grid[tied[0]]["eps"] * grid[tied[-1]]["eps"])
        chosen = min(tied, key=lambda i: round(abs(math.log(grid[i]["eps"] / middle)), 9))
        ends = {"lowest": grid[window[0]]["eps"], "highest": grid[window[-1]]["eps"]}
        row |= {"eps": grid[chosen]["eps"], **ends}
    row["best"] = grid[best]["eps"]
    measures = ("relative_error", "correlation", "gain", "offset")
    return row | {key: grid[chosen][key] for key in measures}


def _around(index: int, wanted: Sequence[bool]) -> range:
    """Return the unbroken stretch of `wanted` that holds `index`."""
    first = last = index
    while first > 0 and wanted[first - 1]:
        first -= 1
    while last + 1 < len(wanted) and wanted[last + 1]:
        last += 1
    return range(first, last + 1)
