"""Where runs go: dev loss, distance moved, what of it no input sees, and what is forgotten.

A line for each case of the drift probe, a method and its learning rate: colour and marker tell the
method, the line the rate.

    python -m analysis.figures.run_drift FOLDER --out STEM
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.style import RC, TEXT_INCHES, styles
from analysis.reading.load import ResultError
from analysis.reading.probe import (
    Probe,
    Table,
    command_line,
    load_probe,
    sentence_of_runs,
    write_figure,
)

COLUMNS = {
    "drift": (
        "method", "lr", "step", "dev", "accuracy", "moved", "outside", "outside_leading",
        "unrelated",
    )
}  # fmt: skip
LINES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (4, 1, 1, 1)))  # of a learning rate, largest first


class Panel(NamedTuple):
    """One column of the table over the step, and its words."""

    column: str
    title: str
    logarithmic: bool = False


PANELS = (
    Panel("dev", "(a) loss on dev"),
    Panel("moved", "(b) distance |W - W₀|", logarithmic=True),
    Panel("outside", "(c) share of it outside the inputs' span"),
    Panel("unrelated", "(d) loss on unrelated text"),
)


def draw(folder: Path, stem: Path) -> list[Path]:
    """Draw the figure of a probe's folder; return the paths of the PNG, the PDF and the caption."""
    probe = load_probe(folder, "drift", COLUMNS)
    table = probe.tables["drift"]
    rates = sorted(table["lr"].unique(), reverse=True)
    if len(rates) > len(LINES):
        raise ResultError(f"{folder}: {len(rates)} learning rates; allowed are up to {len(LINES)}")
    with mpl.rc_context(RC):
        figure = Figure(figsize=(TEXT_INCHES, 4.2), layout="constrained")
        for axes, panel in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
            if table[panel.column].isna().all():  # there was no unrelated text
                axes.set_axis_off()
            else:
                _lines(axes, table, panel, dict(zip(rates, LINES, strict=False)))
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
        return write_figure(figure, stem, caption(probe))


def _lines(axes: Axes, table: Table, panel: Panel, lines: dict[float, object]) -> None:
    looks = styles(table["method"].unique())
    for (method, lr), rows in table.groupby(["method", "lr"], sort=False):
        look = looks[method]
        shown = rows[rows["moved"] > 0] if panel.column in ("moved", "outside") else rows
        axes.plot(
            shown["step"], shown[panel.column], color=look.colour, linestyle=lines[lr],
            marker=look.marker, label=f"{look.label}, lr {lr:g}",
        )  # fmt: skip
    if panel.logarithmic:
        axes.set_yscale("log")
    if panel.column == "outside":
        axes.set_ylim(0, 1)
    axes.set_title(panel.title, loc="left")
    axes.set_xlabel("training step")


def caption(probe: Probe) -> list[str]:
    """Say what is shown, and from what."""
    table = probe.tables["drift"]
    ends = table[table["step"] == table["step"].max()]
    last = "; ".join(
        f"{styles([row.method])[row.method].label}, lr {row.lr:g}: {row.outside:.2f} and "
        f"{row.outside_leading:.2f}"
        for row in ends.itertuples()
    )
    unrelated = probe.about.get("unrelated")
    text = f"{unrelated['passages']} passages, {unrelated['tokens']:,} tokens" if unrelated else ""
    return [
        "Where a run goes: one run for each method and learning rate, with the same minibatches.",
        f"(a) On {probe.get('others', int)} dev examples. (b) Over the weights of the linear "
        "layers. (c) Of the squared distance, what no input of that step's minibatch sees: it "
        f"changes no output on them. {'(d) ' + text + ', never trained on.' if text else ''}",
        f"At the last step, shares of the squared distance outside the span of the inputs, and of "
        f"their {probe.get('leading', int)} leading directions: {last}.",
        sentence_of_runs(probe),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the figure of a folder and print the paths of what was written."""
    return command_line(draw, "run_drift", __doc__, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
