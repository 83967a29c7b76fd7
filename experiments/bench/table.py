"""The benchmark's rows as text: a line each, and what became of the targets."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.bench.profile import PROFILED
from experiments.bench.prompts import LENGTHS
from experiments.bench.rows import Case, Row
from experiments.models.shapes import LLAMA

HEADER = (
    f"{'method':17} {'rank':>4} {'step':>6} {'steps/s':>8} {'textbook':>8} {'forwards':>8} "
    f"{'basis':>6} {'perturb':>7} {'update':>6} {'peak GiB':>8} {'/forward':>8}  target"
)
UNITS = (
    "step and its parts: in units of two plain forwards; textbook: times its steps/s; "
    "/forward: peak memory of a step over that of a plain forward"
)


def title(case: Case) -> str:
    """Return the line above a table."""
    rows = f"batch {case.batch} x {case.length}"
    if case.mix is not None:
        rows = f"{case.batch} {case.mix} prompts, {sum(LENGTHS[case.mix])} tokens"
    return f"{'' if case.shape in LLAMA else 'Qwen3 '}{case.shape}, {case.dtype}, {rows}"


def line(row: Row, rows: Sequence[Row]) -> str:
    """Return a row's line; `rows` may hold its textbook's."""
    head = f"{row.method:17} {row.rank or '-':>4} "
    if row.status != "ok":
        return f"{head}{row.status.replace('_', ' ')}: {row.message}"
    return (
        f"{head}{_number(row.ratio):>6} {_number(row.steps_per_second):>8} "
        f"{_number(speedup(row, rows)):>8} {_number(row.forwards):>8} {_number(row.basis):>6} "
        f"{_number(row.perturb):>7} {_number(row.update):>6} {_number(row.peak_gib, 3):>8} "
        f"{_number(row.peak_of_forward):>8}  {verdict(row, rows)}"
    ).rstrip()


def parts(row: Row) -> str:
    """Return the line of a row's profile."""
    found = row.profile or {}
    return "    " + ", ".join(f"{part} {found[part]:.3f}" for part in PROFILED)


def speedup(row: Row, rows: Sequence[Row]) -> float | None:
    """Return steps per second over those of the textbook's row; None where there is none."""
    for other in rows:
        if other.method == row.textbook and other.place == row.place and other.rank == row.rank:
            rates = row.steps_per_second, other.steps_per_second
            return None if None in rates else rates[0] / rates[1]  # pyright: ignore
    return None


def verdict(row: Row, rows: Sequence[Row]) -> str:
    """Return what became of a row's targets, or nothing."""
    words = []
    if row.target_ratio is not None and row.ratio is not None:
        met = "met" if row.ratio <= row.target_ratio else "missed"
        words.append(f"<= {row.target_ratio:.2f} {met}")
    times = speedup(row, rows)
    if row.target_speedup is not None and times is not None:
        met = "met" if times >= row.target_speedup else "missed"
        words.append(f">= {row.target_speedup:g} x textbook {met}")
    return ", ".join(words)


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
