"""The window of usable eps: how well measured slopes match exact ones, and which eps to take.

Pure functions of a table of slopes; see `experiments.probe.slope`, which measures them, and
`agzo.window` for what is usable.
"""

from collections.abc import Sequence

from agzo.estimator import ESTIMATORS
from agzo.window import LIMIT, choose, judged
from experiments.records.tidy import Row


def windows(rows: Sequence[Row]) -> list[Row]:
    """Return the quality of every (method, dtype, estimator, eps), all batches together.

    See `agzo.window.judged`.
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
        row |= judged(groups[key])
        found.append(row)
    return found


def recommend(table: Sequence[Row]) -> list[Row]:
    """Return `agzo.window.choose` of each method, dtype and estimator of a table of `windows`."""
    found: list[Row] = []
    keys = ("method", "dtype", "estimator")
    for group in dict.fromkeys(tuple(row[key] for key in keys) for row in table):
        grid = sorted(
            (row for row in table if tuple(row[key] for key in keys) == group),
            key=lambda row: row["eps"],
        )
        what = f"method={group[0]}, {group[1]}, {group[2]}"
        found.append(dict(zip(keys, group, strict=True)) | choose(grid, what))
    return found


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
