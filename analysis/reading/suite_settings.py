"""What the search chose, and the dev loss of every grid cell it chose from."""

from typing import Any

from analysis.reading.cells import Cell, Cells
from analysis.reading.choice import Tried
from analysis.reading.suite import GridCell, Suite
from analysis.reading.suite_run import short
from analysis.tables.tabular import Table


def chosen_table(suite: Suite, cells: Cells, title: str) -> Table:
    """Show the chosen settings of every cell that trains, with their dev scores."""
    rows = []
    for cell in _trained(suite, cells):
        name = [cell.task, cell.column.label]
        if cell.chosen is None:
            rows.append([*name, *["-"] * 6])
            continue
        dev = _dev(cell)
        rows.append(
            [
                *name, cell.chosen.name, _setting(cell, "lr"), _setting(cell, "eps"),
                *_scores(dev), ", ".join(edges(cell)) or "-",
            ]
        )  # fmt: skip
    header = [
        "task",
        "method",
        "cell",
        "lr",
        "eps",
        "dev loss",
        "dev score %",
        "at the grid's edge",
    ]
    seeds = sorted({column.search_seed for column in suite.columns if column.searched})
    notes = [
        "Chosen: the grid cell with the lowest dev loss, searched with seed "
        f"{', '.join(map(str, seeds)) or '-'}; the other seeds ran with that cell only. Dev scores "
        "are those of the search seed.",
        "At the grid's edge: settings whose chosen value is the smallest or largest tried, so that "
        "a better one may lie outside. A cell that diverged was tried.",
    ]
    return Table(title, header, rows, notes)


def grid_table(suite: Suite, cells: Cells, title: str) -> Table:
    """Show the dev scores of every grid cell, and what became of those that have none."""
    rows, notes = [], []
    for cell in _trained(suite, cells):
        for tried in cell.tried:
            is_chosen = cell.chosen is not None and tried.cell.variant == cell.chosen.variant
            rows.append(
                [
                    cell.task, cell.column.label, tried.cell.name, _settings(tried.cell),
                    tried.status, *_scores(tried.dev), "chosen" if is_chosen else "",
                ]
            )  # fmt: skip
            if tried.error:
                where = f"{cell.task}, {cell.column.label}, {tried.cell.name}"
                notes.append(f"{where} {tried.status}: {short(tried.error)}")
    borrowed = sum(cell.borrowed for cell in cells.values())
    if borrowed:
        notes.append(
            f"The dev scores of {borrowed} grid cell(s) are those noted in choice.json: their "
            "results are not in this folder."
        )
    header = ["task", "method", "cell", "settings", "status", "dev loss", "dev score %", "choice"]
    return Table(title, header, rows, notes)


def edges(cell: Cell) -> list[str]:
    """Name the settings whose chosen value is the smallest or largest that was tried."""
    if cell.chosen is None:
        return []
    found = []
    points = [one.cell for one in cell.tried] or cell.column.cells
    for key, number in cell.chosen.settings.items():
        tried = [point.settings.get(key) for point in points]
        numbers = [one for one in tried if isinstance(one, int | float)]
        if len(set(numbers)) > 1 and number in (min(numbers), max(numbers)):
            found.append(_last(key))
    return found


def _trained(suite: Suite, cells: Cells) -> list[Cell]:
    return [
        cells[task, column.name]
        for task in suite.tasks
        for column in suite.columns
        if column.kind != "untrained" or column.searched
    ]


def _dev(cell: Cell) -> dict[str, Any] | None:
    tried: list[Tried] = [
        one for one in cell.tried if cell.chosen and one.cell.variant == cell.chosen.variant
    ]
    if tried and tried[0].dev is not None:
        return tried[0].dev
    run = cell.runs.get(cell.column.search_seed)
    return run.record["dev"] if run is not None else None


def _scores(dev: dict[str, Any] | None) -> tuple[str, str]:
    """Return dev loss and dev score as shown."""
    if dev is None:
        return "-", "-"
    score = dev.get("accuracy", dev.get("f1"))
    return f"{dev['loss']:.4f}", "-" if score is None else f"{100 * score:.1f}"


def _setting(cell: Cell, key: str) -> str:
    """Return lr or eps of the chosen cell: planned, or the default that its runs resolved to."""
    assert cell.chosen is not None
    number = cell.chosen.settings.get(f"method.{key}")
    if number is None and cell.runs:
        number = next(iter(cell.runs.values())).row[key]
    return "-" if number is None else f"{number:g}"


def _settings(point: GridCell) -> str:
    words = [
        f"{_last(key)}={number:g}" if isinstance(number, float) else f"{_last(key)}={number}"
        for key, number in point.settings.items()
    ]
    return ", ".join(words) or "-"


def _last(key: str) -> str:
    return key.rpartition(".")[2]
