"""The comparisons fixed beforehand, AGZO with MeZO and AGZO with LOZO, as a table.

Each is made twice: over all pairs of task and seed, and with one pair per task (the mean over its
seeds), which is the cautious reading since the seeds of one task share its evaluation examples.
"""

import statistics
from collections.abc import Callable

from analysis.cells import Cell, Cells
from analysis.significance import EXACT_UP_TO, FLIPS, compare, holm
from analysis.suite import Suite
from analysis.tabular import Table

PLANNED = (("agzo", "mezo"), ("agzo", "lozo"))  # names of columns


def seed_pairs(one: Cell, other: Cell) -> list[float]:
    """Return the differences over the seeds that both cells have."""
    ours, theirs = one.scores, other.scores
    return [ours[seed] - theirs[seed] for seed in ours if seed in theirs]


def task_pair(one: Cell, other: Cell) -> list[float]:
    """Return the difference of the means if both cells are complete, else nothing."""
    if not (one.complete and other.complete):
        return []
    return [statistics.fmean(one.scores.values()) - statistics.fmean(other.scores.values())]


UNITS: tuple[tuple[str, Callable[[Cell, Cell], list[float]]], ...] = (
    ("task and seed", seed_pairs),
    ("task", task_pair),
)


def comparison_table(suite: Suite, cells: Cells, title: str) -> Table | None:
    """Compare the planned pairs of columns; None if the plan has none of them."""
    pairs = [
        (one, other)
        for one, other in PLANNED
        if suite.column(one) is not None and suite.column(other) is not None
    ]
    if not pairs:
        return None
    rows: list[list[str]] = []
    for unit, differences in UNITS:
        found = [
            compare([d for t in suite.tasks for d in differences(cells[t, one], cells[t, other])])
            for one, other in pairs
        ]
        corrected = holm([None if one is None else one.p for one in found])
        for (one, other), result, p_holm in zip(pairs, found, corrected, strict=True):
            name = f"{_label(suite, one)} - {_label(suite, other)}"
            if result is None or p_holm is None:
                rows.append([name, unit, "0", *["-"] * 5])
                continue
            between = (
                "-" if result.interval is None else "{:+.2f} to {:+.2f}".format(*result.interval)
            )
            rows.append(
                [
                    name, unit, str(result.n), f"{result.difference:+.2f}", between,
                    _p(result.p), _p(p_holm), "exact" if result.exact else "sampled",
                ]
            )  # fmt: skip
    header = [
        "comparison",
        "pair",
        "n",
        "mean difference",
        "95 % interval",
        "p",
        "p (Holm)",
        "test",
    ]
    notes = [
        "Mean difference in points of the score (positive: the first is better), with a t interval "
        "over the pairs.",
        "p: two-sided sign-flip permutation test of the paired differences, exact by enumeration "
        f"up to {EXACT_UP_TO} pairs, else {FLIPS:,} seeded random flips (with the +1 correction); "
        f"Holm: corrected over the {len(pairs)} comparison(s), which were fixed before any run.",
        "Pair 'task and seed' uses every seed that both methods have finished; pair 'task' has one "
        "difference of means for each task complete in both, the cautious reading: the seeds of a "
        "task share its evaluation examples. n pairs allow no p below 2 / 2^n.",
    ]  # fmt: skip
    return Table(title, header, rows, notes)


def _label(suite: Suite, name: str) -> str:
    column = suite.column(name)
    assert column is not None
    return column.label


def _p(p: float) -> str:
    return f"{p:.4f}" if p >= 0.0001 else f"{p:.0e}"
