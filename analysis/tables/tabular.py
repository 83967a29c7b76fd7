"""A table of strings and its three forms: aligned text, markdown, LaTeX (`latex`)."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    """Cells as they will be shown; the first column is flush left, the others flush right.

    A cell wrapped in ** is bold in markdown and LaTeX, and keeps its asterisks as text.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default_factory=tuple)

    def markdown(self) -> str:
        """Write the table as GitHub markdown, notes under it."""
        lines = [f"### {self.title}", "", _pipes(self.header)]
        lines.append(_pipes([":--"] + ["--:"] * (len(self.header) - 1)))
        lines += [_pipes(row) for row in self.rows]
        return "\n".join([*lines, "", *(f"{note}  " for note in self.notes)]).rstrip() + "\n"

    def text(self) -> str:
        """Write the table in aligned columns for a terminal, notes under it."""
        widths = [max(len(row[i]) for row in (self.header, *self.rows)) for i in _columns(self)]
        body = [_aligned(row, widths) for row in (self.header, *self.rows)]
        rule = "-" * max(len(line) for line in body)
        return "\n".join([self.title, rule, body[0], rule, *body[1:], rule, *self.notes]) + "\n"


def _columns(table: Table) -> range:
    return range(len(table.header))


def _pipes(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    first = cells[0].ljust(widths[0])
    rest = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
    return "  ".join([first, *rest])


def spread(values: list[float], digits: int) -> str:
    """Write the mean, and of several values the sample standard deviation (n - 1)."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"
