"""What a suite's folder holds for each cell of its table, and what is missing there.

A cell is one task and column of one model: the runs of the chosen setting over the planned seeds.
Whatever it lacks (an unfinished grid, a seed not run or failed) becomes a gap, a sentence with the
path; nothing is filled in. Contradictions between files are errors.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.reading.agreement import DATA, MODEL, PROTOCOL, check_column, check_shared
from analysis.reading.choice import Grid, Tried
from analysis.reading.load import RESULT, read_json
from analysis.reading.suite import CHOICE, Column, GridCell, Suite
from analysis.reading.suite_run import Run, find_run, why_missing


@dataclass(frozen=True)
class Cell:
    """One task and column: the runs of the chosen setting by seed, the grid, and the gaps."""

    model: str
    task: str
    column: Column
    chosen: GridCell | None
    runs: dict[int, Run]
    tried: tuple[Tried, ...]
    gaps: tuple[str, ...]
    borrowed: int  # grid points whose dev scores stand in choice.json alone

    @property
    def complete(self) -> bool:
        """Say whether every planned seed of the chosen setting has finished."""
        return self.chosen is not None and set(self.runs) == set(self.column.seeds)

    @property
    def scores(self) -> dict[int, float]:
        """Return the evaluation score in per cent by seed."""
        return {seed: 100 * self.runs[seed].row["eval_score"] for seed in sorted(self.runs)}

    @property
    def mean(self) -> float:
        """Return the mean over the seeds there are."""
        return statistics.fmean(self.scores.values())


Cells = dict[tuple[str, str], Cell]  # (task, column) of one model


def read_cells(suite: Suite, model: str) -> Cells:
    """Read all cells of one model and check that they fit the plan and each other."""
    path = suite.folder / CHOICE
    choice = read_json(path) if path.is_file() else {}
    settings = {f"config.{key}" for c in suite.columns for one in c.cells for key in one.settings}
    protocol = tuple(key for key in PROTOCOL if key not in settings)  # what no column is about
    cells: Cells = {}
    in_table: list[Run] = []
    for task in suite.tasks:
        in_row: list[Run] = []
        for column in suite.columns:
            cell, read = _read_cell(suite, model, task, column, choice)
            check_column([(run.path, run.record) for run in read], column)
            cells[task, column.name] = cell
            in_row += read
        check_shared(
            [(run.path, run.record | {"metric": run.row["metric"]}) for run in in_row],
            DATA + protocol,
            "columns of a task",
        )
        in_table += in_row
    check_shared([(run.path, run.record) for run in in_table], MODEL, "runs of a model")
    return cells


def strays(suite: Suite, grids: list[Cells]) -> list[Path]:
    """List results in the folder that belong to no cell of the plan: no table uses them."""
    planned: set[Path] = set()
    for cell in (cell for cells in grids for cell in cells.values()):
        column = cell.column
        points = [one.cell for one in cell.tried] or column.cells
        runs = [(point, column.search_seed) for point in points]
        if cell.chosen is not None:
            runs += [(cell.chosen, seed) for seed in column.seeds]
        for point, seed in runs:
            planned.add(suite.run_folder(cell.model, cell.task, column, point, seed) / RESULT)
    return sorted(set(suite.folder.rglob(RESULT)) - planned)


def _read_cell(
    suite: Suite, model: str, task: str, column: Column, choice: Mapping[str, Any]
) -> tuple[Cell, list[Run]]:
    """Read one cell; return it and every run that was read for it, the grid's among them."""
    gaps: list[str] = []
    grid = Grid(suite, model, task, column, choice)
    chosen = grid.chosen(gaps)
    read = dict(grid.found)
    runs: dict[int, Run] = {}
    for seed in column.seeds if chosen is not None else ():
        assert chosen is not None
        folder = suite.run_folder(model, task, column, chosen, seed)
        run = read.get(folder) or find_run(suite, model, task, column, chosen, seed)
        if run is None:
            gaps.append(f"seed {seed} {why_missing(folder)}: {suite.relative(folder)}")
        else:
            read[folder] = runs[seed] = run
    cell = Cell(model, task, column, chosen, runs, grid.tried, tuple(gaps), grid.borrowed)
    return cell, list(read.values())
