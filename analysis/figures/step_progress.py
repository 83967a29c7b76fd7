"""How far one step can get: slope, curvature and best learning rate of each method.

A row for each case (what is perturbed, by which method), a colour for each step of the run, points
with their 95 % intervals. Of single roles and depths of layers the panels say which part of the
model gives most for its curvature.

    python -m analysis.figures.step_progress FOLDER --out STEM
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from analysis.figures.style import RC, label
from analysis.reading.load import ResultError
from analysis.reading.probe import Probe, Table, command_line, load_probe, sentence, write_figure

NUMBERS = ("g2", "c", "c_other", "lr_own")
COLUMNS = {
    "summary": (
        "step", "scope", "method", "rank", "embeddings", "samples", "eps",
        *(f"{key}{end}" for key in NUMBERS for end in ("", "_low", "_high")),
    ),
    "gradient": ("step", "parameter", "role", "depth", "minibatch", "mean"),
    "held": ("step", "rank", "share"),
}  # fmt: skip
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#E69F00", "#000000")  # a step of the run each
OFFSET = 0.22  # of the rows, between steps
DECADES = 1e5  # most that an axis shows


class Panel(NamedTuple):
    """One quantity: its key, its title, the axis, and whether it may be negative."""

    key: str
    title: str
    axis: str
    signed: bool = False


PANELS = (
    Panel("g2", "squared slope E g²", "of the minibatch"),
    Panel("c", "curvature E c", "of the minibatch"),
    Panel("c_other", "curvature E c'", "of dev examples", signed=True),
    Panel("lr_own", "best lr", "E g² / E[g² c]"),
)


def cases(table: Table) -> list[tuple[str, str, int, str]]:
    """List the cases in the order in which they were measured."""
    found = table[["scope", "method", "rank", "embeddings"]].drop_duplicates()
    return [tuple(row) for row in found.itertuples(index=False)]


def name(case: tuple[str, str, int, str]) -> str:
    """Name a case as its row does."""
    scope, method, rank, embeddings = case
    word = label(method)
    if method == "agzo" and scope == "linear":
        return f"{word}, r = {rank}"
    if scope == "all":
        return f"{word}, {embeddings}"
    kind, _, part = scope.partition(" ")
    if kind == "depth":
        first, last = part.split("-")
        part = f"layer {first}" if first == last else f"layers {first} to {last}"
    return f"{part}, {word}" if part else word


def draw(folder: Path, stem: Path) -> list[Path]:
    """Draw the figure of a probe's folder; return the paths of the PNG, the PDF and the caption."""
    probe = load_probe(folder, "progress", COLUMNS)
    table = probe.tables["summary"]
    rows = cases(table)
    steps = sorted(table["step"].unique())
    if len(steps) > len(COLOURS):
        raise ResultError(f"{folder}: {len(steps)} steps; allowed are up to {len(COLOURS)}")
    with mpl.rc_context(RC):
        figure = Figure(figsize=(7.4, 1.0 + 0.21 * len(rows)), layout="constrained")
        panels = figure.subplots(1, len(PANELS), sharey=True)
        for axes, panel in zip(panels, PANELS, strict=True):
            for number, step in enumerate(steps):
                shift = OFFSET * (number - (len(steps) - 1) / 2)
                _points(axes, table[table["step"] == step], rows, panel, shift, number, step)
            if panel.signed:
                axes.axvline(0.0, color="#BBBBBB", linewidth=0.5)
            else:
                _logarithmic(axes, table[panel.key])
            axes.set_title(panel.title, loc="left")
            axes.set_xlabel(panel.axis)
            axes.grid(visible=True, axis="x")
            axes.grid(visible=False, axis="y")
            for edge in _edges(rows):
                axes.axhline(edge, color="#BBBBBB", linewidth=0.5)
        panels[0].set_yticks(range(len(rows)), [name(case) for case in rows])
        panels[0].set_ylim(len(rows) - 0.4, -0.6)
        if len(steps) > 1:
            handles, labels = panels[0].get_legend_handles_labels()
            figure.legend(
                handles, labels, loc="outside upper right", ncols=len(steps), frameon=False
            )
        return write_figure(figure, stem, caption(probe, rows))


def _logarithmic(axes: Axes, values: Iterable[float]) -> None:
    """Make the axis logarithmic and show the positive values, a few decades at most."""
    axes.set_xscale("log")
    axes.xaxis.set_minor_formatter(NullFormatter())
    positive = [float(value) for value in values if value > 0]
    if positive:
        axes.set_xlim(min(positive) / 4, min(max(positive), min(positive) * DECADES) * 4)


def _points(
    axes: Axes,
    table: Table,
    rows: Sequence[Any],
    panel: Panel,
    shift: float,
    number: int,
    step: int,
) -> None:
    """Draw one step's points; what is not positive has no place on a logarithmic axis."""
    key = panel.key
    first = True
    for place, case in enumerate(rows):
        found = table[(table[["scope", "method", "rank", "embeddings"]] == list(case)).all(axis=1)]
        if found.empty:
            continue
        value, low, high = (float(found[f"{key}{end}"].iloc[0]) for end in ("", "_low", "_high"))
        if not panel.signed:
            if not value > 0:
                continue
            low = low if low > 0 else value / 1e3
            high = high if high > 0 else value * 1e3  # a rate without a bound
        y = place + shift
        axes.plot([low, high], [y, y], color=COLOURS[number], linewidth=0.8, clip_on=True)
        axes.plot(
            value, y, marker="o", markersize=3, color=COLOURS[number], linestyle="none",
            label=f"step {step}" if first else None,
        )  # fmt: skip
        first = False


def _edges(rows: Sequence[Any]) -> list[float]:
    """Return where one kind of scope ends and the next begins."""
    kinds = [row[0].partition(" ")[0] for row in rows]
    return [i - 0.5 for i in range(1, len(rows)) if kinds[i] != kinds[i - 1]]


def caption(probe: Probe, rows: Sequence[Any]) -> list[str]:
    """Return the caption, one paragraph a line."""
    table = probe.tables["summary"]
    least, most = int(table["samples"].min()), int(table["samples"].max())
    number = f"{most}" if least == most else f"{least} to {most}"
    eps = ", ".join(f"{value:g}" for value in sorted(table["eps"].unique()))
    share = probe.tables["held"].groupby("rank")["share"].mean()
    held = ", ".join(f"{100 * value:.0f} % at r = {rank}" for rank, value in share.items())
    count = probe.get("others", int)
    lines = [
        "Along each method's direction, slope g and curvature c by two forwards at W ± eps D and "
        f"one at W: g and c of a minibatch, c' of {count} dev examples. A step W - lr g D gains "
        "lr E g² - lr² E[g² c] / 2 on its minibatch; the best lr follows. Bars: 95 % bootstrap "
        f"intervals over {number} samples, each a minibatch and a direction of its own; "
        "cut where they leave the axis or have no bound. What is not positive has no point.",
        f"eps {eps}. Of the linear layers' squared gradient AGZO's bases hold {held} (mean over "
        "minibatches and steps).",
    ]
    if any(row[0] == "all" for row in rows):
        lines.append(
            "Above: the linear layers alone. Below: all weights; tuned: dense noise in the "
            "embedding; seen: on the rows of the minibatch's tokens (AGZO: and in the span of the "
            "head's inputs)."
        )
    return [*lines, sentence(probe)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the figure of a probe's folder and print the paths of what was written."""
    return command_line(draw, "step_progress", __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
