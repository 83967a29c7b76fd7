"""One part of the page for each suite below a folder, and one for each set of single runs.

A part has tables, charts and what they lack. Files that contradict each other make the tables of
their part impossible; the page then says so in the place of these tables.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis import paper
from analysis.figures.style import ordered
from analysis.reading.agreement import flatten, varied
from analysis.reading.cells import Cells, read_cells
from analysis.reading.load import RESULT, ResultError, load_results
from analysis.reading.suite import LABELS, PLAN, Suite, load_suite
from analysis.report.curves import Chart, Line, chart
from analysis.report.runs import RunFolder
from analysis.report.tables import Grid, grid
from analysis.tables.table import SANITY, seeds_table
from analysis.tables.table1 import documents
from analysis.tables.tabular import Table

UNEQUAL = "NOT at equal"  # how the tables say that a comparison is none


@dataclass(frozen=True)
class Part:
    """One comparison.

    `tables` are its main ones, `more` what stands behind them, `printed` the paper's own, and
    `gaps` what they lack.
    """

    title: str
    place: str
    runs: Sequence[RunFolder]
    error: str = ""
    tables: Sequence[Grid] = ()
    more: Sequence[Grid] = ()
    printed: Sequence[Grid] = ()
    charts: Sequence[Chart] = ()
    gaps: Sequence[tuple[str, str, str, str]] = ()  # model, task, column, what

    @property
    def warnings(self) -> list[str]:
        """List the notes that must be seen before any number is used, each once."""
        notes = dict.fromkeys(note for table in self.tables for note in table.notes)
        return [note for note in notes if note == SANITY or UNEQUAL in note]


def find_parts(root: Path, runs: Sequence[RunFolder]) -> list[Part]:
    """Give each run to the innermost suite around it; the others follow by their suite's name."""
    suites = sorted((path.parent for path in root.rglob(PLAN)), key=lambda path: path.parts)
    homes: dict[Path | None, list[RunFolder]] = {folder: [] for folder in suites}
    for run in runs:
        around = [folder for folder in suites if folder in run.folder.parents]
        homes.setdefault(max(around, key=lambda path: len(path.parts), default=None), []).append(
            run
        )
    alone = homes.pop(None, [])
    parts = [_suite(root, folder, found) for folder, found in homes.items() if folder is not None]
    return parts + _singles(root, alone)


def _suite(root: Path, folder: Path, runs: list[RunFolder]) -> Part:
    place = relative(folder, root)
    try:
        suite = load_suite(folder)
        cells = {model: read_cells(suite, model) for model in suite.models}
        tables = [document.tables for document in documents(folder)]
    except ResultError as error:
        lines = _lines(runs)
        return Part(place, place, runs, str(error), charts=_some(chart(place, lines)))
    title = f"{suite.title}, {suite.scale} scale, equal {suite.budget}"
    by_folder = {run.folder: run for run in runs}
    charts = [
        chart(f"{title}, {model}", _planned(suite, model, found, by_folder))
        for model, found in cells.items()
    ]
    return Part(
        title,
        place,
        runs,
        tables=[grid(main, main.title, foot=_has_mean(main)) for main, *_ in tables],
        more=[grid(one, one.title) for _, *others in tables for one in others],
        printed=_printed(suite),
        charts=_some(*charts),
        gaps=[
            (model, cell.task, cell.column.label, gap)
            for model, found in cells.items()
            for cell in found.values()
            for gap in cell.gaps
        ],
    )


def _planned(suite: Suite, model: str, cells: Cells, runs: Mapping[Path, RunFolder]) -> list[Line]:
    """List the runs of a table; of a column without a choice, the grid as far as it has come."""
    lines = []
    for cell in cells.values():
        column = cell.column
        points = [cell.chosen] if cell.chosen is not None else column.cells
        seeds = column.seeds if cell.chosen is not None else (column.search_seed,)
        for point in points:
            name = column.label if cell.chosen is not None else f"{column.label}, {point.name}"
            for seed in seeds:
                run = runs.get(suite.run_folder(model, cell.task, column, point, seed))
                if run is not None:
                    lines.append(Line(run, cell.task, name, column.method))
    return lines


def _singles(root: Path, runs: list[RunFolder]) -> list[Part]:
    """Make a part of each suite name that single runs carry; what did not finish has none."""
    named: dict[str, list[RunFolder]] = {}
    for run in runs:
        if run.finished:
            named.setdefault(run.row["suite"], []).append(run)
    parts = []
    for name, found in named.items():
        error, tables = "", []
        try:
            tables = seeds_table(load_results([run.folder / RESULT for run in found]))
        except ResultError as wrong:
            error = str(wrong)
        grids = [grid(table, table.title) for table in tables]
        charts = _some(chart(name, _lines(found)))
        place = relative(_common(found), root)
        parts.append(Part(name, place, found, error, tables=grids, charts=charts))
    return parts


def _lines(runs: Sequence[RunFolder]) -> list[Line]:
    """Name each finished run by its method and variant, and by its model if there are several.

    Where runs of one name and task differ in more than their seed, the name says in what.
    """
    finished = [run for run in runs if run.finished]
    models = {run.row["model"] for run in finished}
    named: dict[str, list[RunFolder]] = defaultdict(list)
    for run in finished:
        named[run.method + (f", {run.row['model']}" if len(models) > 1 else "")].append(run)
    series: dict[Path, str] = {}
    for name, same in named.items():
        keys = _differences(same)
        series |= {run.folder: ", ".join([name, *_told_apart(run, keys)]) for run in same}
    lines = []
    for method in ordered(run.row["method"] for run in finished):
        for run in (run for run in finished if run.row["method"] == method):
            lines.append(Line(run, run.row["task"], series[run.folder], method))
    return lines


def _differences(runs: Sequence[RunFolder]) -> list[str]:
    """List the keys of the configuration in which runs of one task differ, over all tasks."""
    tasks: dict[str, list[RunFolder]] = defaultdict(list)
    for run in runs:
        tasks[run.row["task"]].append(run)
    return sorted({key for same in tasks.values() for key in varied([r.record for r in same])})


def _told_apart(run: RunFolder, keys: Sequence[str]) -> list[str]:
    settings = flatten(run.record["config"])
    return [f"{key.removeprefix('method.')} {settings.get(key, '-')}" for key in keys]


def _printed(suite: Suite) -> list[Grid]:
    """Show the paper's own table, as printed, for a suite that reproduces one."""
    if suite.paper is None:
        return []
    table = paper.load(suite.paper)
    header = ["task", *(LABELS.get(column, column) for column in table.columns)]
    rows = []
    for task in table.scores:
        scores = [table.percent(task, column) for column in table.columns]
        rows.append([task, *("-" if one is None else f"{one:.1f}" for one in scores)])
    title = f"As printed in arXiv {table.source['arxiv']}: {table.title} ({table.dtype})"
    return [grid(Table(title, header, rows, table.notes), title)]


def _has_mean(table: Table) -> bool:
    return table.header[0] == "task" and bool(table.rows) and table.rows[-1][0] == "mean"


def _common(runs: Sequence[RunFolder]) -> Path:
    """Return the innermost folder with all of some runs; of one run its own."""
    around = [[run.folder, *run.folder.parents] for run in runs]
    return next(path for path in around[0] if all(path in parents for parents in around))


def _some(*charts: Chart | None) -> list[Chart]:
    return [one for one in charts if one is not None]


def relative(path: Path, root: Path) -> str:
    """Write a path as seen from the page's folder; the folder itself by its name."""
    return root.resolve().name if path == root else path.relative_to(root).as_posix()
