"""Many probes or many steps: what the columns of the suite `probes_or_steps` came to.

Over the probes of a step, left the score on the evaluation split, right the loss on dev (which
chose the learning rate and the checkpoint). A line for each method goes through the means over
seeds; a dot is one seed. Every column passed equal numbers of examples through the model, so to the
right there are fewer steps.

    python -m analysis.figures.probes_or_steps FOLDER --out STEM
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter

from analysis.figures.style import RC, TEXT_INCHES, MethodStyle, ordered, styles
from analysis.reading.cells import Cell, Cells, read_cells
from analysis.reading.load import ResultError, value
from analysis.reading.probe import command_line, write_figure
from analysis.reading.significance import t_interval
from analysis.reading.suite import Suite, load_suite
from analysis.tables.table import SANITY, commits

MEASURES = {"eval_score": "score, %", "dev_loss": "dev loss"}
Points = dict[int, list[float]]  # probes -> a number for each seed


def draw(folder: Path, stem: Path) -> list[Path]:
    """Draw the figure; return the paths of the PNG, the PDF and the caption."""
    suite = load_suite(folder)
    if suite.budget != "examples" or len(suite.models) != 1 or len(suite.tasks) != 1:
        raise ResultError(
            f"{folder}: budget {suite.budget}, {len(suite.models)} model(s), {len(suite.tasks)} "
            "task(s); expected a suite of equal examples, one model and one task"
        )
    cells = read_cells(suite, suite.models[0])
    lacking = [cell.column.label for cell in cells.values() if not cell.complete]
    if lacking:
        raise ResultError(f"{folder}: not complete: {', '.join(lacking)}; run the suite again")
    looks = styles(cell.column.method for cell in cells.values())
    with mpl.rc_context(RC):
        figure = Figure(figsize=(TEXT_INCHES, 2.3), layout="constrained")
        for axes, (key, words) in zip(figure.subplots(1, 2), MEASURES.items(), strict=True):
            for method, look in looks.items():
                _line(axes, points(cells, method, key), look)
            axes.set_xscale("log")
            ticks = sorted({probes(cell) for cell in cells.values()})
            axes.set_xticks(ticks)
            axes.xaxis.set_major_formatter(ScalarFormatter())
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xlabel("probes per step")
            axes.set_ylabel(words)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
        return write_figure(figure, stem, caption(suite, cells))


def probes(cell: Cell) -> int:
    """Return how many directions the runs of a cell measure in a step."""
    run = next(iter(cell.runs.values()))
    return value(run.record, "config.method.queries", (int,), run.path)


def points(cells: Cells, method: str, key: str) -> Points:
    """Return a method's numbers over its probes, the seeds in their order."""
    factor = 100.0 if key == "eval_score" else 1.0
    own = [cell for cell in cells.values() if cell.column.method == method]
    return {
        probes(cell): [factor * cell.runs[seed].row[key] for seed in sorted(cell.runs)]
        for cell in sorted(own, key=probes)
    }


def _line(axes: Axes, found: Points, look: MethodStyle) -> None:
    axes.plot(
        list(found), [fmean(numbers) for numbers in found.values()], color=look.colour,
        linestyle=look.line, marker=look.marker, label=look.label, markeredgecolor="white",
        markeredgewidth=0.4,
    )  # fmt: skip
    for at, numbers in found.items():
        axes.plot([at] * len(numbers), numbers, ".", color=look.colour, markersize=2.5, alpha=0.7)


def differences(cells: Cells, most: bool) -> list[float]:
    """Return the score of many probes minus that of a method's fewest, for each method and seed.

    `most`: its most probes, else those next to the fewest.
    """
    found = []
    for method in ordered(cell.column.method for cell in cells.values()):
        scores = list(points(cells, method, "eval_score").values())
        found += [
            many - few for few, many in zip(scores[0], scores[-1 if most else 1], strict=True)
        ]
    return found


def caption(suite: Suite, cells: Cells) -> list[str]:
    """Say what is shown, what was equal, and the answer with its interval."""
    rows = [run.row for cell in cells.values() for run in cell.runs.values()]
    columns = "; ".join(
        f"{cell.column.label}: batch {row['batch_size']}, {row['steps']:,} steps"
        for cell in cells.values()
        for row in [next(iter(cell.runs.values())).row]
    )
    examples = sorted(row["examples"] for row in rows)
    answers = []
    for most, words in ((False, "the next"), (True, "the most")):
        found = differences(cells, most)
        low, high = t_interval(found)
        answers.append(
            f"{words} probes minus the fewest: {fmean(found):+.1f} points, 95 % t interval "
            f"{low:+.1f} to {high:+.1f} over {len(found)} pairs of method and seed"
        )
    sanity = [SANITY] if any(row["pocket"] for row in rows) else []
    return [
        f"Many probes or many steps: {suite.tasks[0]}, model {suite.models[0]}, each column's "
        "learning rate chosen on dev.",
        f"Examples passed through the model in training: {examples[0]:,} to {examples[-1]:,}.",
        f"{columns}.",
        f"Score on the evaluation split, {'; '.join(answers)}.",
        f"Lines: means over {len(suite.seeds)} seeds; dots: seeds. Code: {commits(rows)}.",
        *sanity,
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the figure of a suite's folder."""
    return command_line(draw, "probes_or_steps", __doc__, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
