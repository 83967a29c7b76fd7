"""The window of usable eps: is the measured slope the true slope? As the slope probe measured it.

Top: correlation of the projected gradient with the exact directional derivative; bottom: the root
mean square of their difference, in units of the exact one. One column per dtype, solid lines for
two-sided differences and dashed ones for one-sided.

    python -m analysis.figures.eps_window FOLDER --out STEM
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from analysis.figures.style import COLUMN_INCHES, RC, TEXT_INCHES, MethodStyle, ordered, styles
from analysis.reading.load import ResultError
from analysis.reading.probe import (
    Probe,
    code,
    command_line,
    device,
    load_probe,
    of_pocket,
    write_figure,
)
from analysis.tables.table import SANITY, Run, records

KEYS = ("method", "dtype", "estimator", "eps")
COLUMNS = {
    "windows": (*KEYS, "n", "finite", "zero", "correlation", "relative_error", "usable"),
    "recommended": (*KEYS, "lowest", "highest", "best", "relative_error"),
}
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
LINES = {"two_sided": "-", "one_sided": (0, (3, 1.5))}
PAPER = {"fp32": 1e-7, "bf16": 1e-4}  # its eps for Qwen3 (a summary of its v4) and for Pangu
CEILING = 1e3  # a relative error above it is drawn at the edge


def draw(folder: Path, stem: Path) -> list[Path]:
    """Draw the figure; return the paths of the PNG, the PDF and the caption."""
    probe = load_probe(folder, "slope", COLUMNS)
    table = records(probe.tables["windows"])
    dtypes = known(table, "dtype", DTYPES)
    known(table, "estimator", LINES)
    looks = styles(row["method"] for row in table)
    limit = probe.get("limit", float)
    with mpl.rc_context(RC):
        width = COLUMN_INCHES if len(dtypes) == 1 else TEXT_INCHES
        figure = Figure(figsize=(width, 3.4), layout="constrained")
        panels = figure.subplots(2, len(dtypes), squeeze=False, sharex=True, sharey="row")
        for column, dtype in zip(panels.T, dtypes, strict=True):
            own = [row for row in table if row["dtype"] == dtype]
            _panel(column[0], own, "correlation", looks)
            _panel(column[1], own, "relative_error", looks)
            column[0].set_title(DTYPES[dtype])
            column[1].axhline(limit, color="black", linewidth=0.6, zorder=1)
            column[1].set_xlabel("eps")
            for axes in column:
                if (at := PAPER.get(dtype)) in [row["eps"] for row in own]:
                    axes.axvline(at or 0, color="#777777", linewidth=0.8, linestyle=":", zorder=1)
        top, bottom = panels[0][0], panels[1][0]
        top.set_ylabel("correlation with\nthe exact slope")
        top.set_ylim(min([-0.1, *(low - 0.05 for low in _values(table, "correlation"))]), 1.05)
        bottom.set_ylabel("relative error")
        bottom.set_yscale("log")
        bottom.set_ylim(top=2 * min(CEILING, max(_values(table, "relative_error"))))
        bottom.text(
            0.5, limit * 1.15, f"{limit:g}", transform=bottom.get_yaxis_transform(),
            ha="center", va="bottom", fontsize=5.5,
        )  # fmt: skip
        figure.legend(
            handles=_handles(looks),
            loc="outside upper center",
            ncols=3 if len(dtypes) == 1 else 5,
            frameon=False,
            handlelength=2.8,
        )
        return write_figure(figure, stem, caption(probe))


def _panel(axes: Axes, rows: list[Run], column: str, looks: dict[str, MethodStyle]) -> None:
    """Draw one measure of one dtype over eps."""
    for method, look in looks.items():
        for estimator, line in LINES.items():
            own = [r for r in rows if (r["method"], r["estimator"]) == (method, estimator)]
            points = sorted((r["eps"], r[column]) for r in own if r[column] is not None)
            axes.plot(
                [x for x, _ in points], [min(y, CEILING) for _, y in points],
                color=look.colour, linestyle=line, marker=look.marker,
                markerfacecolor=look.colour if estimator == "two_sided" else "white",
                markeredgewidth=0.6, markersize=2.8, linewidth=0.9,
            )  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(numticks=99, subs=(1.0,)))
    axes.xaxis.set_major_formatter(lambda x, _: power(x))
    axes.xaxis.set_minor_locator(NullLocator())


def power(value: float) -> str:
    """Write every second power of ten."""
    exponent = round(math.log10(value))
    return f"$10^{{{exponent}}}$" if exponent % 2 else ""


def _handles(looks: dict[str, MethodStyle]) -> list[Line2D]:
    methods = [
        Line2D([], [], color=x.colour, marker=x.marker, linestyle="none", label=x.label)
        for x in looks.values()
    ]
    return [
        *methods,
        Line2D([], [], color="black", linestyle=LINES["two_sided"], label="two-sided"),
        Line2D([], [], color="black", linestyle=LINES["one_sided"], label="one-sided (open)"),
    ]


def known(table: Iterable[Run], column: str, allowed: Iterable[str]) -> list[str]:
    """Return the values of a column in the order of `allowed`; an unknown one is an error."""
    found, order = {row[column] for row in table}, list(allowed)
    if unknown := sorted(found - set(order)):
        raise ResultError(f"{column} {unknown[0]!r}: expected one of {', '.join(order)}")
    return [value for value in order if value in found]


def _values(table: Iterable[Run], column: str) -> list[float]:
    """Return a column without its empty cells."""
    return [row[column] for row in table if row[column] is not None]


def caption(probe: Probe) -> list[str]:
    """Say what is shown, from what, and the recommended eps."""
    table, advice = records(probe.tables["windows"]), records(probe.tables["recommended"])
    measured = sum(row["n"] for row in table)
    lost = measured - sum(row["finite"] for row in table)
    nothing = sum(row["zero"] for row in table)
    counts = sorted({row["n"] for row in table})
    limit = probe.get("limit", float)
    own = probe.get("method_options", dict)
    options = "; ".join(
        f"{method} {', '.join(f'{key}={value}' for key, value in own[method].items())}"
        for method in ordered(own)
    )
    lines = [
        "Is the measured slope the true slope? The projected gradient that a method measures along "
        "a direction, against the exact directional derivative: the gradient, by backpropagation "
        "in float32 at the weights as rounded to the dtype, times that direction.",
        "Top: Pearson's correlation. Bottom: relative error, rms(measured - exact) / rms(exact), "
        f"drawn at {CEILING:g} where larger; the line at {limit:g} bounds the usable eps. A "
        "one-sided difference also carries eps/2 times the curvature along the direction, nearly "
        "the same for all: it can correlate well and be far off. Dotted: the paper's eps, 1e-7 in "
        "float32 (Qwen3) and 1e-4 in bfloat16 (Pangu).",
        f"Each point: n = {' to '.join(map(str, counts))} directions, "
        f"{probe.get('directions', int)} for each of {probe.get('batches', int)} training batches "
        f"of {probe.get('batch_size', int)}; the same directions at each eps. Of {measured:,} "
        f"values {lost} were not finite and {nothing:,} exactly zero. "
        f"Execution: {probe.get('execution', str)}. Methods: {options}.",
        "Recommended eps (one-sided, two-sided): "
        + "; ".join(_advice(advice, dtype) for dtype in known(table, "dtype", DTYPES))
        + ". none: no eps of the grid is usable.",
        f"Model: {probe.get('model.name', str)} ({probe.get('model.parameters', int):,} "
        "parameters), at the start of a run. "
        f"Data: {probe.get('data.source', str)}, task {probe.get('task', str)}. "
        f"Seed: {probe.get('seed', int)}. Device: {device(probe.about)}. "
        f"Code: {code(probe.about)}.",
    ]
    return [*lines, SANITY] if of_pocket(probe) else lines


def _advice(rows: list[Run], dtype: str) -> str:
    parts = []
    for method, look in styles(row["method"] for row in rows).items():
        own = {
            r["estimator"]: r["eps"] for r in rows if (r["method"], r["dtype"]) == (method, dtype)
        }
        both = [own.get(estimator) for estimator in ("one_sided", "two_sided")]
        parts.append(
            f"{look.label} {', '.join('none' if eps is None else f'{eps:g}' for eps in both)}"
        )
    return f"{DTYPES[dtype]}: {', '.join(f'({part})' for part in parts)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the figure of a folder and print the paths of what was written."""
    return command_line(draw, "eps_window", __doc__, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
