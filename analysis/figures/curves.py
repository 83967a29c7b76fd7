"""Loss against forward passes: one panel per task, one line per method, as PNG and PDF.

Lines are the training loss, smoothed by a running mean over a window of forward passes that the
caption states; markers are the loss on dev, not smoothed. Over several seeds a line or marker is
their mean. The caption goes into a text file beside the figure, because a figure without its n,
data and commit cannot be judged.

    python -m analysis.figures.curves FOLDER --out STEM

The folder of a suite becomes the figure of `suite_loss`: dev loss of each column's chosen setting.
"""

import argparse
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.figures import suite_loss
from analysis.figures.style import (
    COLUMN_INCHES,
    RC,
    TEXT_INCHES,
    MethodStyle,
    ended,
    save,
    styles,
)
from analysis.reading.agreement import check_average
from analysis.reading.command import place, report
from analysis.reading.load import ResultError, Source, load_metrics, load_results
from analysis.reading.suite import PLAN
from analysis.tables.table import SANITY, Run, commits, listed, records

WINDOW = 0.1  # width of the running mean, as a fraction of the forwards of the longest run
Points = list[tuple[float, float]]


def draw(source: Source, stem: Path, window: float = WINDOW) -> list[Path]:
    """Draw all runs of a folder; return the paths of the PNG, the PDF and the caption."""
    if isinstance(source, str | Path) and (Path(source) / PLAN).is_file():
        if window != WINDOW:
            raise ResultError(f"window={window}: the dev loss of a suite's columns is not smoothed")
        return suite_loss.draw(Path(source), stem)
    if not 0 < window <= 1:
        raise ResultError(f"window={window}: expected a fraction of the forwards in (0, 1]")
    runs = records(load_results(source))
    points = records(load_metrics(source))
    tasks = list(dict.fromkeys(run["task"] for run in runs))
    looks = styles(run["method"] for run in runs)
    with mpl.rc_context(RC):
        width = COLUMN_INCHES if len(tasks) == 1 else TEXT_INCHES
        figure = Figure(figsize=(width, 2.15), layout="constrained")
        panels = figure.subplots(1, len(tasks), squeeze=False)[0]
        for panel, task in zip(panels, tasks, strict=True):
            _panel(
                panel,
                [run for run in runs if run["task"] == task],
                [point for point in points if point["task"] == task],
                looks,
                window,
            )
        panels[0].set_ylabel("loss")
        _legend(figure, looks, columns=4 if len(tasks) == 1 else 7)
        paths = save(figure, stem)
    words = ended(stem, ".txt")
    words.write_text(caption(runs, window), encoding="utf-8")
    return [*paths, words]


def caption(runs: list[Run], window: float) -> str:
    """Say what the figure shows: model, data, seeds, n, device and commit."""
    budgets = sorted({run["forwards"] for run in runs if run["forwards"] > 0})
    widths = sorted({round(window * budget) for budget in budgets})
    seeds = {run["seed"] for run in runs if run["forwards"] > 0}
    lines = [
        "Loss against forward passes of a training batch (a backward counts two, evaluation none).",
        f"Lines: training loss, running mean over {_span(widths)} forwards, drawn where the "
        "whole window fits; markers: loss on dev, not smoothed; dotted: zero-shot loss on dev.",
        f"Model: {listed(runs, 'model')}. Data: {listed(runs, 'data')}, tasks "
        f"{listed(runs, 'task')}, batch {listed(runs, 'batch_size')}, "
        f"{listed(runs, 'dev_n')} dev examples. Embeddings: {listed(runs, 'embeddings')}.",
        f"Seeds: {listed(runs, 'seed')} (n = {len(seeds)} per line"
        + ("; their mean)." if len(seeds) > 1 else ")."),
        f"Device: {listed(runs, 'device')}. Code: {commits(runs)}.",
    ]
    if any(run["pocket"] for run in runs):
        lines.append(SANITY)
    return "\n".join(lines) + "\n"


def smooth(points: Points, width: float) -> Points:
    """Average the points within half a width of forwards on either side, where that much exists."""
    half, first, last = width / 2, points[0][0], points[-1][0]
    return [
        (here, statistics.fmean(y for x, y in points if abs(x - here) <= half))
        for here, _ in points
        if first + half <= here <= last - half
    ]


def _panel(
    axes: Axes,
    runs: list[Run],
    points: list[Run],
    looks: dict[str, MethodStyle],
    window: float,
) -> None:
    """Draw one task: zero-shot as a level, each method that trains as a line with markers."""
    budget = max((run["forwards"] for run in runs), default=0)
    shown: list[float] = []
    for method, look in looks.items():
        mine = [run for run in runs if run["method"] == method]
        if mine:
            check_average(mine, "runs of one line")
        if mine and all(run["forwards"] == 0 for run in mine):
            level = statistics.fmean(run["dev_loss"] for run in mine)
            axes.axhline(level, color=look.colour, linestyle=look.line, zorder=1)
            shown.append(level)
            continue
        own = [point for point in points if point["method"] == method]
        line = smooth(_mean(own, "loss"), window * budget) if own else []
        axes.plot(*_xy(line), color=look.colour, linestyle=look.line, alpha=0.9)
        dots = _mean(own, "dev_loss")
        axes.plot(
            *_xy(dots), color=look.colour, linestyle="none", marker=look.marker,
            markeredgecolor="white", markeredgewidth=0.4, zorder=3,
        )  # fmt: skip
        shown += [y for _, y in line + dots]
    axes.set_title(runs[0]["task"])
    axes.set_xlabel("forward passes")
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlim(0, budget * 1.02 or 1)
    if shown:
        room = 0.05 * (max(shown) - min(shown)) or 0.1
        axes.set_ylim(min(shown) - room, max(shown) + room)


def _mean(points: list[Run], key: str) -> Points:
    """Average a column over seeds at each number of forwards; steps without it are left out."""
    at: dict[float, list[float]] = defaultdict(list)
    for point in points:
        if point[key] is not None:
            at[point["forwards"]].append(point[key])
    return [(x, statistics.fmean(at[x])) for x in sorted(at)]


def _xy(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _span(numbers: list[int]) -> str:
    ends = sorted({numbers[0], numbers[-1]}) if numbers else [0]
    return " to ".join(f"{number:,}" for number in ends)


def _legend(figure: Figure, looks: dict[str, MethodStyle], columns: int) -> None:
    handles = [
        Line2D(
            [], [], color=look.colour, linestyle=look.line, marker=look.marker or "none",
            markeredgecolor="white", markeredgewidth=0.4, label=look.label,
        )
        for look in looks.values()
    ]  # fmt: skip
    figure.legend(
        handles=handles, loc="outside upper center", ncols=columns, frameon=False, handlelength=2.8
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the runs of a folder and print the paths of what was written."""
    parser = argparse.ArgumentParser(prog="python -m analysis.figures.curves", description=__doc__)
    parser.add_argument("folder", type=place, help="a folder with finished runs")
    parser.add_argument("--out", type=place, required=True, help="path of the figure, no suffix")
    parser.add_argument("--window", type=float, default=WINDOW, help="fraction of the forwards")
    options = parser.parse_args(arguments)
    return report(lambda: draw(options.folder, options.out, options.window))


if __name__ == "__main__":
    raise SystemExit(main())
