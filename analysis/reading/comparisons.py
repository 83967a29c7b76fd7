"""The comparisons that a plan fixed before their runs, as a table.

Each is made twice: over all pairs of task and seed, and with one pair per task (the mean over its
seeds), which is the cautious reading since the seeds of one task share its evaluation examples.
"""

import statistics

from analysis.reading.cells import Cell, Cells
from analysis.reading.significance import EXACT_UP_TO, FLIPS, Comparison, compare, holm
from analysis.reading.suite import Suite
from analysis.tables.tabular import Table


def seed_pairs(one: Cell, other: Cell) -> list[float]:
    """Return the differences over the seeds that both cells have."""
    ours, theirs = one.scores, other.scores
    return [ours[seed] - theirs[seed] for seed in ours if seed in theirs]


def task_pair(one: Cell, other: Cell) -> list[float]:
    """Return the difference of the means if both cells are complete, else nothing."""
    if not (one.complete and other.complete):
        return []
    return [statistics.fmean(one.scores.values()) - statistics.fmean(other.scores.values())]


def comparison_table(suite: Suite, cells: Cells, title: str) -> Table | None:
    """Compare the planned pairs of columns; None if the plan has none of them."""
    pairs = [
        (name, one, other)
        for name, better, worse in suite.comparisons
        if (one := suite.column(better)) is not None and (other := suite.column(worse)) is not None
    ]
    if not pairs:
        return None
    rows = []
    for unit, differences in (("task and seed", seed_pairs), ("task", task_pair)):
        found = [
            compare(
                [d for t in suite.tasks for d in differences(cells[t, a.name], cells[t, b.name])]
            )
            for _, a, b in pairs
        ]
        corrected = holm([None if result is None else result.p for result in found])
        for (name, a, b), result, p in zip(pairs, found, corrected, strict=True):
            each = len(set(a.seeds) & set(b.seeds)) if unit == "task and seed" else 1
            shown = _row(result, p, len(suite.tasks) * each)
            hypothesis = f"{name}: " if name else ""
            rows.append([f"{hypothesis}{a.label} - {b.label}", unit, *shown])
    header = ["comparison", "pair", "n", "mean difference", "95 % interval", "p", "p (Holm)"]
    return Table(title, [*header, "test"], rows, _notes(len(pairs), rows))


def _row(result: Comparison | None, corrected: float | None, planned: int) -> list[str]:
    """Show a comparison: n (of the pairs planned), difference, interval, p-values, kind of test."""
    if result is None or corrected is None:
        return [f"0/{planned} †", *["-"] * 5]
    between = "-" if result.interval is None else "{:+.2f} to {:+.2f}".format(*result.interval)
    return [
        str(planned) if result.n == planned else f"{result.n}/{planned} †",
        f"{result.difference:+.2f}",
        between,
        _p(result.p),
        _p(corrected),
        "exact" if result.exact else "sampled",
    ]


def _notes(comparisons: int, rows: list[list[str]]) -> list[str]:
    notes = [
        "Mean difference in points of the score (positive: the first is better), with a t interval "
        "over the pairs.",
        "p: two-sided sign-flip permutation test of the paired differences, exact by enumeration "
        f"up to {EXACT_UP_TO} pairs, else {FLIPS:,} seeded random flips (with the +1 correction); "
        f"Holm: corrected over the {comparisons} comparison(s) of the plan, fixed before "
        "their runs.",
        "Pair 'task and seed' uses every seed that both methods have finished; pair 'task' has one "
        "difference of means for each task complete in both, the cautious reading: the seeds of a "
        "task share its evaluation examples. n pairs allow no p below 2 / 2^n.",
    ]
    if any("†" in row[2] for row in rows):
        notes.append(
            "† Fewer pairs than planned. If the missing runs diverged, what is left favours the "
            "method that lost them."
        )
    return notes


def _p(p: float) -> str:
    return f"{p:.4f}" if p >= 0.0001 else f"{p:.0e}"
