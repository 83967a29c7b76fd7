"""Figures 3 and 4: peak memory against sequence length and batch size, as the memory probe left it.

One row of panels for each folder: over lengths at one batch, over batches at one length. Colour and
marker tell the method; the line tells the series: solid is this library, dashed the published code.
The paper's own points are open markers. Also prints each point, and how far AGZO is above MeZO and
above inference.

    python -m analysis.figures.peak_memory FOLDER [FOLDER ...] --out STEM
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, ScalarFormatter
from matplotlib.typing import LineStyleType

from analysis.figures.memory_caption import caption
from analysis.figures.style import RC, TEXT_INCHES, ordered, styles
from analysis.reading.command import place, report
from analysis.reading.memory_points import LIMIT, SERIES, Sweep, load_sweep, table
from analysis.reading.probe import write_figure

LINES: dict[str, tuple[LineStyleType, float]] = {
    "ours": ("-", 1.0),
    "published": ((0, (3, 1.5)), 0.75),
}
OUT = 1.42 * LIMIT  # height of the paper's points that ran out of memory
# Three methods lie on one another: their points stand a little apart, in octaves.
ASIDE = {"mezo": -0.075, "lozo": 0.0, "agzo": 0.075}


def draw(folders: Sequence[Path], stem: Path) -> list[Path]:
    """Draw the folders; return the paths of the PNG, the PDF and the caption."""
    sweeps = [load_sweep(folder) for folder in folders]
    methods = ordered({method for sweep in sweeps for method in sweep.methods})
    with mpl.rc_context(RC):
        figure = Figure(figsize=(TEXT_INCHES, 0.6 + 2.3 * len(sweeps)), layout="constrained")
        rows = figure.subplots(len(sweeps), 2, squeeze=False, sharey="row")
        for number, (sweep, (left, right)) in enumerate(zip(sweeps, rows, strict=True)):
            letters = "abcdefgh"[2 * number :]
            _panel(left, sweep, [(sweep.batch, length) for length in sweep.lengths], 1)
            _panel(right, sweep, [(batch, sweep.length) for batch in sweep.batches], 0)
            left.set_title(f"({letters[0]}) batch {sweep.batch}", loc="left")
            left.set_xlabel("sequence length")
            right.set_title(f"({letters[1]}) length {sweep.length}", loc="left")
            right.set_xlabel("batch size")
            left.set_ylabel("peak memory (GiB)")
            _scale(left, sweep)
        _legend(figure, sweeps, methods)
        return write_figure(figure, stem, caption(sweeps))


def _panel(axes: Axes, sweep: Sweep, points: list[tuple[int, int]], along: int) -> None:
    """Draw one panel; `along` is the number in (batch, length) that its axis shows."""
    looks = styles(sweep.methods)
    for series in reversed(sweep.series):
        line, alpha = LINES[series]
        for depth, (method, look) in enumerate(looks.items()):
            found = [(pair[along], sweep.peaks.get((series, method, *pair))) for pair in points]
            drawn = [(x, peak) for x, peak in found if peak is not None]
            band = method == "inference"  # a broad band under the zeroth-order methods
            axes.plot(
                [_aside(method, x) for x, _ in drawn], [peak for _, peak in drawn],
                color=look.colour, linestyle="-" if band else line, alpha=alpha,
                marker=look.marker or "none", linewidth=4 if band else 1.0, markersize=3.8,
                markeredgecolor="white", markeredgewidth=0.3, zorder=2 if band else 3 + depth / 9,
                solid_capstyle="butt",
            )  # fmt: skip
            if sweep.limited:
                for x in crossings(drawn):
                    axes.plot(
                        [x], [LIMIT], color=look.colour, marker="x", markersize=6,
                        markeredgewidth=1.3, zorder=6, clip_on=False,
                    )  # fmt: skip
    for point in sweep.printed:
        if (point.batch, point.length) in points:
            look = looks.get(point.method)
            if look is not None:
                x = _aside(point.method, (point.batch, point.length)[along])
                axes.plot(
                    [x],
                    [OUT if point.peak is None else point.peak],
                    linestyle="none", marker=look.marker, markerfacecolor="none", markersize=6.5,
                    markeredgecolor=look.colour, markeredgewidth=0.9, zorder=7,
                )  # fmt: skip
                if point.peak is None:
                    axes.annotate(
                        "OOM", (x, OUT), fontsize=5.5,
                        xytext=(0, 5.5), textcoords="offset points", ha="center",
                    )  # fmt: skip
    if sweep.limited:
        axes.axhline(LIMIT, color="black", linewidth=0.7, zorder=1.5)
        axes.annotate(
            f"{LIMIT:g} GiB", (0.01, LIMIT), xycoords=("axes fraction", "data"), fontsize=6,
            xytext=(0, 2), textcoords="offset points",
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    ticks = [pair[along] for pair in points]
    named = [x for x in ticks if x & (x - 1) == 0] or ticks  # powers of two: room for the words
    axes.xaxis.set_major_locator(FixedLocator(named))
    axes.xaxis.set_minor_locator(FixedLocator([x for x in ticks if x not in named]))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(ScalarFormatter())


def _aside(method: str, x: float) -> float:
    return x * 2 ** ASIDE.get(method, 0.0)


def _scale(axes: Axes, sweep: Sweep) -> None:
    """Give the row a logarithmic axis with plain numbers."""
    peaks = [peak for peak in sweep.peaks.values() if peak is not None]
    peaks += [OUT * 1.2] if sweep.limited else []
    axes.set_yscale("log", base=2)
    axes.set_ylim(min(peaks) / 1.15, max(peaks) * 1.12)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def crossings(line: Sequence[tuple[int, float]]) -> Iterator[float]:
    """Yield where a line goes over the limit, as it is drawn (both axes logarithmic)."""
    for (x0, y0), (x1, y1) in pairwise(line):
        if y0 <= LIMIT < y1:
            share = math.log(LIMIT / y0) / math.log(y1 / y0)
            yield math.exp(math.log(x0) + share * math.log(x1 / x0))


def _legend(figure: Figure, sweeps: list[Sweep], methods: list[str]) -> None:
    handles = [
        Line2D(
            [], [], color=look.colour, linestyle="-", marker=look.marker or "none",
            linewidth=1.1 if look.marker else 4, markeredgecolor="white", markeredgewidth=0.4,
            label=look.label,
        )
        for look in styles(methods).values()
    ]  # fmt: skip
    series = [name for name in SERIES if any(name in sweep.series for sweep in sweeps)]
    for name in series:
        line = LINES[name][0]
        handles.append(Line2D([], [], color="#555555", linestyle=line, label=SERIES[name]))
    if any(sweep.printed for sweep in sweeps):
        handles.append(
            Line2D(
                [],
                [],
                color="#555555",
                linestyle="none",
                marker="o",
                markerfacecolor="none",
                markersize=6,
                label="the paper",
            )
        )
    if any(sweep.limited for sweep in sweeps):
        handles.append(
            Line2D(
                [], [], color="#555555", linestyle="none", marker="x", label=f"passes {LIMIT:g} GiB"
            )
        )
    figure.legend(
        handles=handles, loc="outside upper center", ncols=5, frameon=False, handlelength=2.6
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw, print the points and the paths of what was written."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.figures.peak_memory", description=__doc__
    )
    parser.add_argument("folder", type=place, nargs="+", help="what the memory probe has written")
    parser.add_argument("--out", type=place, required=True, help="path of the figure, no suffix")
    options = parser.parse_args(arguments)

    def make() -> list[object]:
        paths = draw(options.folder, options.out)
        return [*(table(load_sweep(folder)).text() for folder in options.folder), *paths]

    return report(make)


if __name__ == "__main__":
    raise SystemExit(main())
