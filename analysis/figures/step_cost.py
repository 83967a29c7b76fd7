"""What a step costs in units of two plain forwards, and its memory: bars, one figure a model.

Left: the time of a step, told apart into its forwards, basis, perturbation and update, the textbook
implementation of the same algorithm beside it, and the target where there is one. Right: its peak
memory over that of a plain forward. Where the files hold several lengths, batches, ranks or sizes,
`STEM_scaling` shows the cost over each of them.

    python -m analysis.figures.step_cost FILE.json [FILE.json ...] --out STEM
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from analysis.figures import step_cost_scaling
from analysis.figures.step_cost_rows import (
    PARTS,
    Bench,
    Row,
    batch_name,
    distinct,
    is_textbook,
    load,
    name,
    shape_name,
)
from analysis.figures.style import RC, TEXT_INCHES
from analysis.reading.command import place, report
from analysis.reading.load import ResultError
from analysis.reading.probe import write_figure

COLOURS = dict(zip(PARTS, ("#BBBBBB", "#009E73", "#56B4E9", "#E69F00"), strict=True))
TEXTBOOK = {"facecolor": "#FFFFFF", "edgecolor": "#777777", "hatch": "//////", "linewidth": 0.5}
WHOLE = {"facecolor": "#EEEEEE", "edgecolor": "#999999", "linewidth": 0.5}  # a step not told apart
TARGET = "#CC0000"
BAR, GAP = 0.145, 0.62  # inches of a bar, and of what is around a panel's bars


def draw(paths: Sequence[Path], stem: Path) -> list[Path]:
    """Draw what the files hold; return the paths of the PNGs, PDFs and captions."""
    bench = load(paths)
    written = []
    models = distinct(bench.tables, "shape", "dtype")
    for shape, dtype in models:
        rows = [row for row in bench.tables if (row["shape"], row["dtype"]) == (shape, dtype)]
        own = stem if len(models) == 1 else stem.with_name(f"{stem.name}_{shape}_{dtype}")
        with mpl.rc_context(RC):
            written += write_figure(_bars(rows), own, _caption(bench, shape, dtype))
    scaling = stem.with_name(f"{stem.name}_scaling")
    written += step_cost_scaling.draw(bench, scaling)
    if not written:
        names = ", ".join(map(str, paths))
        raise ResultError(f"{names}: no axis has two values; expected a table or a sweep")
    return written


def _bars(rows: list[Row]) -> Figure:
    """Draw one model in one precision: a row of panels for each batch."""
    places = distinct(rows, "batch", "length", "mix")
    groups = [
        [row for row in rows if (row["batch"], row["length"], row["mix"]) == at] for at in places
    ]
    heights = [BAR * len(group) + GAP for group in groups]
    figure = Figure(figsize=(TEXT_INCHES, sum(heights) + 0.35), layout="constrained")
    panels = figure.subplots(
        len(groups), 2, squeeze=False, sharey="row", sharex="col",
        gridspec_kw={"height_ratios": heights, "width_ratios": (2, 1)},
    )  # fmt: skip
    for group, (left, right) in zip(groups, panels, strict=True):
        several = len({row["rank"] for row in group if row["method"] == group[0]["method"]}) > 1
        left.set_yticks(range(len(group)), [name(row, several) for row in group])
        left.invert_yaxis()
        left.tick_params(axis="y", length=0)
        for height, row in enumerate(group):
            _time(left, height, row)
            _memory(right, height, row)
        for axes in (left, right):
            axes.grid(False)
            axes.tick_params(axis="x", labelbottom=True)
        left.grid(True, axis="x")
        right.tick_params(axis="y", length=0, labelleft=False)
        left.set_title(f"{batch_name(group[0])}: time of a step", loc="left")
        right.set_title("peak memory", loc="left")
    panels[-1][0].set_xlabel("in units of two plain forwards")
    panels[-1][1].set_xlabel("in units of a plain forward's")
    _room(panels[0][0], [row["ratio_largest"] for row in rows], 1.14)
    _room(panels[0][1], [row["peak_of_forward"] for row in rows], 2.0)
    panels[0][1].xaxis.set_major_locator(MaxNLocator(3, steps=[1, 5, 10]))
    figure.legend(
        handles=_legend(rows), loc="outside upper center", ncols=4, frameon=False,
        handlelength=1.6, columnspacing=1.4,
    )  # fmt: skip
    return figure


def _time(axes: Axes, height: int, row: Row) -> None:
    """Draw a step's bar: its parts, the median with the range of the rounds, the target."""
    if row["status"] != "ok":
        axes.text(0.02, height, "out of memory", va="center", fontsize=6, style="italic")
        return
    start = 0.0
    if row["update"] is None:
        axes.barh(height, row["ratio"], 0.72, **TEXTBOOK if is_textbook(row) else WHOLE)
    else:
        for part in PARTS:
            width = max(0.0, row[part])
            axes.barh(height, width, 0.72, left=start, color=COLOURS[part], linewidth=0)
            start += width
    axes.plot(
        [row["ratio_least"], row["ratio_largest"]], [height] * 2, color="black", linewidth=0.6
    )
    axes.plot([row["ratio"]] * 2, [height - 0.36, height + 0.36], color="black", linewidth=1.1)
    if row["target_ratio"] is not None:
        axes.plot(
            [row["target_ratio"]] * 2, [height - 0.48, height + 0.48], color=TARGET,
            linewidth=1.0, linestyle=(0, (1.5, 0.8)),
        )  # fmt: skip
    end = max(start, row["ratio_largest"], row["target_ratio"] or 0.0)
    axes.annotate(
        f"{row['ratio']:.2f}", (end, height), xytext=(3, 0), textcoords="offset points",
        va="center", fontsize=6,
    )  # fmt: skip


def _memory(axes: Axes, height: int, row: Row) -> None:
    """Draw a step's peak memory."""
    if row["status"] != "ok":
        return
    look = TEXTBOOK if is_textbook(row) else WHOLE
    axes.barh(height, row["peak_of_forward"], 0.72, **look)
    axes.annotate(
        f"{row['peak_of_forward']:.2f} ({row['peak_gib']:.3g} GiB)",
        (row["peak_of_forward"], height), xytext=(3, 0), textcoords="offset points",
        va="center", fontsize=6,
    )  # fmt: skip


def _room(axes: Axes, values: Sequence[float | None], factor: float) -> None:
    """Leave room behind the longest bar for its number."""
    largest = max((value for value in values if value is not None), default=1.0)
    axes.set_xlim(0, largest * factor)


def _legend(rows: list[Row]) -> list[Patch | Line2D]:
    handles: list[Patch | Line2D] = [
        Patch(color=COLOURS[part], linewidth=0, label=part) for part in PARTS
    ]
    if any(is_textbook(row) for row in rows):
        handles.append(Patch(**TEXTBOOK, label="textbook"))
    handles.append(Patch(**WHOLE, label="not told apart"))
    handles.append(Line2D([], [], color="black", linewidth=1.1, label="median, range of rounds"))
    if any(row["target_ratio"] is not None for row in rows):
        handles.append(
            Line2D([], [], color=TARGET, linewidth=1, linestyle=(0, (1.5, 0.8)), label="target")
        )
    return handles


def _caption(bench: Bench, shape: str, dtype: str) -> list[str]:
    mixed = any(row["mix"] for row in bench.rows if row["shape"] == shape)
    return [
        f"Cost of a step, random weights of the {shape_name(shape)} shape, {dtype}. The unit is "
        "two plain forwards of the same run: the same batch, logits at the label positions, "
        "ordinary weights. A part is timed by itself and may, by noise, be below 0, which is drawn "
        "as 0: parts need not add up to the step, whose median over rounds is the black line and "
        "the number. Textbook: the same algorithm in eager PyTorch, in place, with logits of the "
        "whole vocabulary at every position"
        + (", a row for each of two options, padded to the longest." if mixed else "."),
        *bench.origin,
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw, and print the paths of what was written."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.figures.step_cost", description=__doc__
    )
    parser.add_argument("file", type=place, nargs="+", help="JSON of python -m experiments.bench")
    parser.add_argument("--out", type=place, required=True, help="path of the figure, no suffix")
    options = parser.parse_args(arguments)
    return report(lambda: draw(options.file, options.out))


if __name__ == "__main__":
    raise SystemExit(main())
