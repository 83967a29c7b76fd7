"""Dev loss of a suite's columns against forward passes: a panel for each task, a line a column.

A line is the mean over the seeds of the column's chosen setting, with their range. The panel is as
high as the zeroth-order columns need after the start, so that small differences show.
`python -m analysis.figures.curves FOLDER` draws this for the folder of a suite.
"""

import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.typing import LineStyleType

from analysis.figures.style import COLUMN_INCHES, RC, TEXT_INCHES, styles
from analysis.reading.cells import Cell, Cells, read_cells
from analysis.reading.load import ResultError, points, value
from analysis.reading.probe import write_figure
from analysis.reading.suite import Column, Suite, load_suite
from analysis.tables.table import SANITY, commits, listed

VARIANTS: tuple[LineStyleType, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)))
MARKERS = "sXP*hv<>8"  # of a method's columns beyond its own marker's four lines, four to each
Curve = dict[tuple[int, int], list[float]]  # (step, forwards) -> dev loss of each seed


def draw(folder: Path, stem: Path) -> list[Path]:
    """Draw a suite's folder, a figure for each model; return the PNGs, PDFs and captions."""
    suite = load_suite(folder)
    written = []
    for model in suite.models:
        cells = read_cells(suite, model)
        trained = {at: cell for at, cell in cells.items() if cell.column.kind != "untrained"}
        whole = {at: cell for at, cell in trained.items() if cell.complete}
        if not whole:
            raise ResultError(f"{folder}: no column of {model} has all its seeds; nothing to draw")
        own = stem if len(suite.models) == 1 else stem.with_name(f"{stem.name}_{model}")
        with mpl.rc_context(RC):
            figure = _figure(suite, whole)
            written += write_figure(figure, own, _caption(whole, _missing(suite, trained)))
    return written


def curve(cell: Cell) -> Curve:
    """Return the dev losses of a cell's runs at each look, by step and forwards."""
    at: Curve = defaultdict(list)
    for run in cell.runs.values():
        for point in points(value(run.record, "metrics", (list,), run.path), run.path):
            if point["dev_loss"] is not None:
                at[point["step"], point["forwards"]].append(point["dev_loss"])
    return {look: at[look] for look in sorted(at)}


def _figure(suite: Suite, cells: Cells) -> Figure:
    tasks = [task for task in suite.tasks if any(at == task for at, _ in cells)]
    columns = [c for c in suite.columns if any((task, c.name) in cells for task in tasks)]
    looks = _looks(columns)
    width = COLUMN_INCHES if len(tasks) == 1 else TEXT_INCHES
    figure = Figure(figsize=(width, 3.1), layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    for axes, task in zip(panels, tasks, strict=True):
        shown: list[float] = []
        for column in columns:
            if (task, column.name) not in cells:
                continue
            found = curve(cells[task, column.name])
            _line(axes, found, looks[column.name])
            if column.kind == "zo":
                shown += [loss for (step, _), seeds in found.items() if step for loss in seeds]
        if shown:
            room = 0.05 * (max(shown) - min(shown)) or 0.1
            axes.set_ylim(min(shown) - room, max(shown) + room)
        axes.set_title(task)
        axes.set_xlabel("forward passes")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    panels[0].set_ylabel("loss on dev")
    handles = [Line2D([], [], label=column.label, **looks[column.name]) for column in columns]
    figure.legend(
        handles=handles, loc="outside upper center", ncols=3 if len(tasks) == 1 else 5,
        frameon=False, handlelength=2.8,
    )  # fmt: skip
    return figure


def _line(axes: Axes, found: Curve, look: dict[str, Any]) -> None:
    """Draw the mean over seeds and their range."""
    at, losses = [forwards for _, forwards in found], list(found.values())
    axes.fill_between(
        at, list(map(min, losses)), list(map(max, losses)), color=look["color"], alpha=0.12,
        linewidth=0,
    )  # fmt: skip
    axes.plot(at, list(map(statistics.fmean, losses)), **look)


def _looks(columns: list[Column]) -> dict[str, dict[str, Any]]:
    """Give a column its method's colour; columns of one method differ in line, then in marker."""
    methods = styles(column.method for column in columns)
    seen: dict[str, int] = defaultdict(int)
    looks = {}
    for column in columns:
        style, nth = methods[column.method], seen[column.method]
        markers = [style.marker, *MARKERS.replace(style.marker, "")]
        looks[column.name] = {
            "color": style.colour,
            "marker": markers[nth // len(VARIANTS) % len(markers)],
            "markerfacecolor": style.colour if nth == 0 else "white",
            "linestyle": VARIANTS[nth % len(VARIANTS)],
        }
        seen[column.method] += 1
    return looks


def _missing(suite: Suite, cells: Cells) -> list[str]:
    """Name the columns of each task that have not all their seeds, or the task if none has."""
    told = []
    for task in suite.tasks:
        own = [cell for (at, _), cell in cells.items() if at == task]
        lacking = [cell.column.label for cell in own if not cell.complete]
        if lacking:
            told.append(task if len(lacking) == len(own) else f"{task} ({'; '.join(lacking)})")
    return told


def _caption(cells: Cells, missing: list[str]) -> list[str]:
    runs = [run.row for cell in cells.values() for run in cell.runs.values()]
    lines = [
        "Loss on dev against forward passes of a training batch (a backward counts two, evaluation "
        "none), each column at its chosen setting. Lines: mean over the seeds "
        f"({listed(runs, 'seed')}); bands: their range. All begin at the same loss, above the "
        "panel, which fits the zeroth-order columns: first order may leave it.",
        f"Model: {listed(runs, 'model')}. Data: {listed(runs, 'data')}, tasks "
        f"{listed(runs, 'task')}, batch {listed(runs, 'batch_size')}, {listed(runs, 'dev_n')} dev "
        f"examples. Device: {listed(runs, 'device')}. Code: {commits(runs)}.",
    ]
    if missing:
        lines.append(f"Not drawn, since unfinished: {', '.join(missing)}.")
    return [*lines, SANITY] if any(row["pocket"] for row in runs) else lines
