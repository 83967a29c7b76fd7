"""A table of strings (`tables.tabular`) as the page shows it: what is a number, and its key.

A column in which every cell is a number or empty is aligned to the right and sorted by that number,
so that "1,234", "71.3 ± 0.4" and "1e-05" fall into place. "512 KiB" counts in bytes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.reading.suite_costs import UNITS
from analysis.tables.tabular import Table

NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?(?!\w)", re.IGNORECASE)
UNIT = re.compile(rf" ({'|'.join(unit for unit, _ in UNITS)})\b")
EMPTY = re.compile(r"(-( †)?)?")
BESIDE = re.compile(r"(?P<ours>.*) \[(?P<theirs>[-\d.]+), (?P<difference>[-+][\d.]+)\]")


@dataclass(frozen=True)
class Shown:
    """One cell: its text, what it is sorted by, and what stands small beneath it."""

    text: str
    key: str | None  # a number as text; empty: no number; None: sorted as text
    strong: bool = False
    beside: str = ""


@dataclass(frozen=True)
class Grid:
    """A table for the page. `opens` names the run that each row opens, where it does."""

    title: str
    header: Sequence[str]
    numeric: Sequence[bool]
    rows: Sequence[Sequence[Shown]]
    foot: Sequence[Shown]  # a last row that stays last
    notes: Sequence[str]
    opens: Sequence[str] = ()


def grid(table: Table, title: str, *, foot: bool = False, opens: Sequence[str] = ()) -> Grid:
    """Prepare a table; `foot`: its last row is no row of the rest, but their mean."""
    columns = range(len(table.header))
    numeric = [
        bool(table.rows) and all(_is_number(_plain(row[i])[0]) for row in table.rows)
        for i in columns
    ]
    rows = [[_shown(row[i], numeric[i]) for i in columns] for row in table.rows]
    last = rows.pop() if foot and rows else ()
    return Grid(title, table.header, numeric, rows, last, table.notes, opens)


def _shown(text: str, numeric: bool) -> Shown:
    words, strong = _plain(text)
    pair = BESIDE.fullmatch(words)
    beside = f"paper {pair['theirs']}, {pair['difference']}" if pair else ""
    words = pair["ours"] if pair else words
    return Shown(words, _key(words) if numeric else None, strong, beside)


def _plain(text: str) -> tuple[str, bool]:
    """Take the asterisks of a bold cell off; say whether it had them."""
    strong = len(text) > 4 and text.startswith("**") and text.endswith("**")
    return (text[2:-2] if strong else text), strong


def _is_number(text: str) -> bool:
    return EMPTY.fullmatch(text) is not None or NUMBER.match(text) is not None


def _key(text: str) -> str:
    found = NUMBER.match(text)
    if found is None:
        return ""
    number = found[0].replace(",", "").lstrip("+")
    unit = UNIT.match(text, found.end())
    return f"{float(number) * dict(UNITS)[unit[1]]:.12g}" if unit else number
