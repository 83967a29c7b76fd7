"""Does the update arrive? What rounding leaves of an update, as the arrival probe measured it.

One column per method, over lr. Top: the share (gain) of one update that reaches the weights;
middle: of many accumulated ones; bottom: what is written beside those, in units of the intended
change. One line per dtype and rounding policy.

    python -m analysis.figures.update_arrival FOLDER --out STEM
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from analysis.figures.eps_window import DTYPES, known, power
from analysis.figures.style import COLUMN_INCHES, RC, TEXT_INCHES, label, ordered
from analysis.reading.command import place, report
from analysis.reading.load import ResultError
from analysis.reading.probe import Probe, code, device, load_probe, of_pocket, write_figure
from analysis.tables.table import SANITY, Run, records

COLUMNS = {
    "arrival": (
        "dtype", "rounding", "method", "scope", "lr", "update", "relative", "singles", "gain",
        "noise", "updates", "gain_sum", "noise_sum",
    ),
}  # fmt: skip
SCOPES = {"linear": "the weights of linear layers", "all": "all tuned parameters"}
ROWS = {"gain": "share arriving,\none update", "gain_sum": "share arriving,\n{n} updates",
        "noise_sum": "noise / intended,\n{n} updates"}  # fmt: skip
# rounding -> colour and marker; dtype -> line, and whether markers are filled
POLICIES = {"nearest": ("#D55E00", "o"), "stochastic": ("#56B4E9", "v"), "master": ("#332288", "s")}
LINES = {"fp32": ":", "bf16": "-", "fp16": (0, (3, 1.5))}
EXACT = "#000000"  # float32 weights have one policy: their own precision
# A share is drawn inside these bounds: where the noise exceeds the update by far, an estimate of
# the share of a stochastic rounding scatters around 1.
BOUNDS = (-0.1, 1.3)


def draw(folder: Path, stem: Path, scope: str = "linear") -> list[Path]:
    """Draw the figure over the parameters of a scope; return the paths of PNG, PDF, caption."""
    probe = load_probe(folder, "arrival", COLUMNS)
    table = [row for row in records(probe.tables["arrival"]) if row["scope"] == scope]
    if not table:
        raise ResultError(
            f"{folder / 'arrival.csv'}: scope {scope!r} has no rows; expected {', '.join(SCOPES)}"
        )
    known(table, "rounding", POLICIES)
    known(table, "dtype", LINES)
    methods = ordered({row["method"] for row in table})
    updates = {row["updates"] for row in table}
    with mpl.rc_context(RC):
        width = COLUMN_INCHES if len(methods) == 1 else TEXT_INCHES
        figure = Figure(figsize=(width, 4.4), layout="constrained")
        panels = figure.subplots(3, len(methods), squeeze=False, sharex=True, sharey="row")
        for column, method in zip(panels.T, methods, strict=True):
            own = [row for row in table if row["method"] == method]
            for axes, measure in zip(column, ROWS, strict=True):
                _panel(axes, own, measure)
            column[0].set_title(label(method))
            column[2].set_xlabel("learning rate")
        for axes, words in zip(panels[:, 0], ROWS.values(), strict=True):
            axes.set_ylabel(words.format(n=" to ".join(map(str, sorted(updates)))))
        for axes in panels[:2].flat:
            axes.set_ylim(*BOUNDS)
        panels[2][0].set_yscale("log")
        panels[2][0].set_ylim(bottom=1e-3)
        figure.legend(
            handles=_handles(table), loc="outside upper center", frameon=False, handlelength=2.8,
            ncols=2 if len(methods) == 1 else 4,
        )  # fmt: skip
        return write_figure(figure, stem, caption(probe, table, scope))


def _panel(axes: Axes, rows: list[Run], measure: str) -> None:
    """Draw one measure of one method over lr."""
    for dtype, rounding in _policies(rows):
        if measure == "gain" and rounding == "master":
            continue  # one update from its own rounding: the same as nearest
        own = [row for row in rows if (row["dtype"], row["rounding"]) == (dtype, rounding)]
        points = sorted((row["lr"], row[measure]) for row in own)
        low, high = BOUNDS if measure != "noise_sum" else (0.0, float("inf"))
        axes.plot(
            [x for x, _ in points], [min(max(y, low), high) for _, y in points],
            **_look(dtype, rounding),
        )  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(numticks=99, subs=(1.0,)))
    axes.xaxis.set_major_formatter(lambda x, _: power(x))
    axes.xaxis.set_minor_locator(NullLocator())


def _policies(rows: list[Run]) -> list[tuple[str, str]]:
    """Return the (dtype, rounding) pairs in the order of the legend."""
    found = {(row["dtype"], row["rounding"]) for row in rows}
    return [(d, r) for d in LINES for r in POLICIES if (d, r) in found]


def _look(dtype: str, rounding: str) -> dict[str, Any]:
    colour, marker = (EXACT, "") if dtype == "fp32" else POLICIES[rounding]
    return {
        "color": colour, "linestyle": LINES[dtype], "marker": marker, "markersize": 2.6,
        "markerfacecolor": "white" if dtype == "fp16" else colour, "markeredgewidth": 0.6,
        "linewidth": 0.9,
    }  # fmt: skip


def _handles(rows: list[Run]) -> list[Line2D]:
    return [
        Line2D(
            [], [], label=dtype if dtype == "fp32" else f"{dtype} {rounding}",
            **_look(dtype, rounding),
        )
        for dtype, rounding in _policies(rows)
    ]  # fmt: skip


def caption(probe: Probe, table: list[Run], scope: str) -> list[str]:
    """Say what is shown and from what."""
    singles = sorted({row["singles"] for row in table})
    updates = sorted({row["updates"] for row in table})
    many = " to ".join(map(str, updates))
    sizes = "; ".join(
        f"{label(method)} {_ratio(table, method, 'update'):.3g}, "
        f"{_ratio(table, method, 'relative'):.3g}"
        for method in ordered({row["method"] for row in table})
    )
    own = probe.get("method_options", dict)
    options = "; ".join(
        f"{label(method)} {', '.join(f'{key}={value}' for key, value in own[method].items())}"
        for method in ordered(own)
    )
    lines = [
        "Does the update arrive? With i the intended change of the weights and a the actual one, "
        "written by the library's own update: share arriving <a, i> / |i|^2, noise "
        f"|a - share i| / |i|, over {SCOPES[scope]}.",
        f"Top: one update, n = {' to '.join(map(str, singles))} of them together. Middle and "
        f"bottom: the sum of {many} updates, n = 1 sum. Updates have the method's own directions "
        "and the exact slope along them, all at the start of a run. Shares are drawn within "
        f"{BOUNDS[0]:g} and {BOUNDS[1]:g}.",
        "A master copy is float32 and keeps each update (as the fp32 line); shown is what the "
        "rounded weights, which the model runs with, have followed of it. One update arrives as "
        "with nearest, so it has no line at the top. Stochastic rounding is right on average: its "
        "price is the noise below.",
        f"At learning rate 1, |g| and the update's length relative to the weights' (rms): {sizes}; "
        "times the learning rate they carry over to other models.",
        f"Methods: {options}.",
        f"Model: {probe.get('model.name', str)} ({probe.get('model.parameters', int):,} "
        f"parameters). Data: {probe.get('data.source', str)}, task {probe.get('task', str)}, "
        f"{probe.get('batches', int)} training batches of {probe.get('batch_size', int)}. Seed: "
        f"{probe.get('seed', int)}. Device: {device(probe.about)}. Code: {code(probe.about)}.",
        f"Dtypes: {', '.join(f'{d} is {DTYPES[d]}' for d in known(table, 'dtype', DTYPES))}.",
    ]
    return [*lines, SANITY] if of_pocket(probe) else lines


def _ratio(table: list[Run], method: str, column: str) -> float:
    """Return a column that is proportional to lr, at lr = 1."""
    row = next(row for row in table if row["method"] == method)
    return row[column] / row["lr"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the figure of a folder and print the paths of what was written."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.figures.update_arrival", description=__doc__
    )
    parser.add_argument("folder", type=place, help="what `experiments.probe arrival` has written")
    parser.add_argument("--out", type=place, required=True, help="path of the figure, no suffix")
    parser.add_argument("--scope", choices=list(SCOPES), default="linear", help="which parameters")
    options = parser.parse_args(arguments)
    return report(lambda: draw(options.folder, options.out, options.scope))


if __name__ == "__main__":
    raise SystemExit(main())
