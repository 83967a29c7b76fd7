"""The window of usable eps: how well measured slopes match exact ones, and which eps to take.

Pure functions of a table of slopes; see `experiments.probe.slope`, which measures them.
"""

import math
import statistics
from collections.abc import Sequence

from agzo.estimator import ESTIMATORS
from experiments.records.tidy import Row

# An eps is usable while the root mean square of measured - exact is at most a quarter of that of
# exact. An error that is independent of the slope then adds at most 6 % to the mean square of g,
# and so of the step, and any error leaves the (uncentred) correlation above .968: no limit on the
# correlation is needed beside this one.
LIMIT = 0.25
# Errors below this one do not tell values of eps apart: g's own spread over directions is 100 %.
NEGLIGIBLE = 0.02


def quality(pairs: Sequence[tuple[float, float | None]]) -> Row:
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


def windows(rows: Sequence[Row]) -> list[Row]:
    """Return the quality of every (method, dtype, estimator, eps), all batches together.

    An eps is `usable` (1, else 0) if every value is finite and relative_error is at most `LIMIT`.
    """
    groups: dict[tuple[str, str, str, float], list[tuple[float, float | None]]] = {}
    for row in rows:
        for estimator in ESTIMATORS:
            key = (row["method"], row["dtype"], estimator, row["eps"])
            groups.setdefault(key, []).append((row["exact"], row[estimator]))
    order = list(
        dict.fromkeys((method, dtype, estimator) for method, dtype, estimator, _ in groups)
    )
    found: list[Row] = []
    for key in sorted(groups, key=lambda key: (order.index(key[:3]), key[3])):
        row: Row = dict(zip(("method", "dtype", "estimator", "eps"), key, strict=True))
        row |= quality(groups[key])
        error = row["relative_error"]
        row["usable"] = int(row["finite"] == row["n"] and error is not None and error <= LIMIT)
        found.append(row)
    return found


def recommend(table: Sequence[Row]) -> list[Row]:
    """Return one row for each method, dtype and estimator of a table of `windows`.

    `lowest` and `highest` bound the window: the usable eps next to each other in the grid around
    the one with the smallest error. `eps` is recommended: of the window's values whose error is at
    most `NEGLIGIBLE` or 1.1 times the smallest, again next to each other around the best, the one
    nearest to the geometric middle (the smaller of two), as far from both cliffs as it can be. The
    three are None where no eps of the grid is usable; `best` has the smallest error in any case.
    """
    found: list[Row] = []
    keys = ("method", "dtype", "estimator")
    for group in dict.fromkeys(tuple(row[key] for key in keys) for row in table):
        grid = sorted(
            (row for row in table if tuple(row[key] for key in keys) == group),
            key=lambda row: row["eps"],
        )
        whole = [i for i, row in enumerate(grid) if row["finite"] == row["n"]]
        known = [i for i in whole if grid[i]["relative_error"] is not None]
        if not known:
            raise ValueError(
                f"method={group[0]}, {group[1]}, {group[2]}: no eps of the grid gave finite "
                "values; allowed is a model whose loss and gradient are finite"
            )
        best = min(known, key=lambda i: grid[i]["relative_error"])
        least = grid[best]["relative_error"]
        row: Row = dict(zip(keys, group, strict=True))
        row |= dict.fromkeys(("eps", "lowest", "highest"))
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
        found.append(row | {key: grid[chosen][key] for key in measures})
    return found


def _around(index: int, wanted: Sequence[bool]) -> range:
    """Return the unbroken stretch of `wanted` that holds `index`."""
    first = last = index
    while first > 0 and wanted[first - 1]:
        first -= 1
    while last + 1 < len(wanted) and wanted[last + 1]:
        last += 1
    return range(first, last + 1)


def text(recommended: Sequence[Row]) -> str:
    """Write the recommended values as the lines that a user reads."""
    lines = [
        f"{'dtype':6} {'method':7} {'estimator':10} {'eps':>7}  {'usable':17} {'error':>7} "
        f"{'corr.':>6} {'gain':>6} {'offset':>7}"
    ]
    for row in recommended:
        given = row["eps"] is not None
        usable = f"{row['lowest']:g} to {row['highest']:g}" if given else f"best: {row['best']:g}"
        rest = " ".join(
            f"{'-' if row[key] is None else format(row[key], '.3f'):>{width}}"
            for key, width in (("correlation", 6), ("gain", 6), ("offset", 7))
        )
        lines.append(
            f"{row['dtype']:6} {row['method']:7} {row['estimator']:10} "
            f"{format(row['eps'], 'g') if given else 'none':>7}  {usable:17} "
            f"{row['relative_error']:7.2g} {rest}"
        )
    lines.append(
        "error: rms(measured - exact) / rms(exact) of the projected gradient at the eps shown, "
        f"usable up to {LIMIT}.\nnone: no eps of the grid measures the slope that well."
    )
    return "\n".join(lines)
