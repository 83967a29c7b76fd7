"""Figure 2: cosine of zeroth-order estimates with the gradient, as the alignment probe measured it.

(a) linear layers alone and (b) everything: one-query estimates along a training run, with the value
that the theory predicts; (c) the mean of as many queries as some forwards pay for; (d) linear
layers perturbed alone; (e) all of them perturbed at once.

    python -m analysis.figures.gradient_alignment FOLDER --out STEM
"""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, ScalarFormatter

from analysis.figures.layer_map import MOST_BARS, short
from analysis.figures.style import RC, TEXT_INCHES, MethodStyle, label, styles
from analysis.reading.load import ResultError
from analysis.reading.probe import Probe, Table, command_line, load_probe, sentence, write_figure
from analysis.reading.significance import t_interval, t_quantile

COLUMNS = {
    "whole": ("step", "scope", "method", "group", "estimator", "eps", "queries", "cosine",
              "wrong_sign", "expected"),
    "averaged": ("step", "scope", "method", "group", "forwards", "queries", "cosine"),
    "layers": ("step", "method", "layer", "perturbed", "n", "cosine", "deviation", "expected"),
}  # fmt: skip
PAPER = (
    "The paper's last version, by a third party's summary (Qwen3-0.6B, averaging not known): AGZO "
    ".0123, MeZO .0015, LOZO .0014. A cosine falls with the number of perturbed coordinates, so "
    "these are not on our axes."
)
CONFIDENCE = 0.95
PARTIAL = ("zo_act", "dominant_layer")  # leave some layers as they are, which then have no row


def draw(folder: Path, stem: Path) -> list[Path]:
    """Draw the figure; return the paths of the PNG, the PDF and the caption."""
    probe = load_probe(folder, "alignment", COLUMNS)
    whole, averaged, layers = (probe.tables[name] for name in COLUMNS)
    looks = styles(whole["method"].unique())
    with mpl.rc_context(RC):
        figure = Figure(figsize=(TEXT_INCHES, 6.2), layout="constrained")
        panels = figure.subplot_mosaic(
            [["a", "b", "c"], ["d", "d", "d"], ["e", "e", "e"]], height_ratios=[1, 1, 1]
        )
        _along(panels["a"], _scope(whole, "linear"), looks, "(a) linear layers")
        _along(panels["b"], _scope(whole, "all"), looks, "(b) everything")
        _forwards(panels["c"], _scope(averaged, "linear"), looks)
        _layers(panels["d"], layers, looks, "alone", "(d) linear layers perturbed alone")
        panels["d"].set_yscale("log")
        _layers(panels["e"], layers, looks, "together", "(e) all linear layers perturbed at once")
        panels["e"].axhline(0, color="black", linewidth=0.6)
        handles = [
            Line2D([], [], color=x.colour, linestyle=x.line, marker=x.marker, label=x.label)
            for x in looks.values()
        ]
        handles.append(
            Line2D(
                [], [], color="black", marker="_", linestyle="none", markersize=7, label="theory"
            )
        )
        figure.legend(
            handles=handles, loc="outside upper center", ncols=len(handles), frameon=False
        )
        return write_figure(figure, stem, caption(probe))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean of independent groups and the half width of its confidence interval."""
    if len(values) < 2:
        raise ResultError(f"n={len(values)} groups of queries: expected two or more")
    low, high = t_interval(values, CONFIDENCE)
    return (low + high) / 2, (high - low) / 2


def summary(rows: Table, by: str) -> Table:
    """Return mean and half width of the cosine over groups, for each method and value of `by`."""
    found = []
    for (method, at), group in rows.groupby(["method", by]):
        mean, half = interval(list(group["cosine"]))
        one = {"method": method, by: at, "mean": mean, "half": half}
        if "expected" in group:
            one["expected"] = group["expected"].mean()
        found.append(one)
    return pd.DataFrame(found)


def _scope(rows: Table, scope: str) -> Table:
    own = rows[rows["scope"] == scope]
    if own.empty:
        raise ResultError(f"scope {scope!r} has no rows; measure again into an empty folder")
    return own


def _along(axes: Axes, whole: Table, looks: dict[str, MethodStyle], title: str) -> None:
    """Draw the one-query cosine against the training step, with band and theory."""
    for method, rows in summary(whole, "step").groupby("method"):
        look = looks[str(method)]
        axes.plot(
            rows["step"], rows["mean"], color=look.colour, linestyle=look.line, marker=look.marker
        )
        axes.fill_between(
            rows["step"], rows["mean"] - rows["half"], rows["mean"] + rows["half"],
            color=look.colour, alpha=0.2, linewidth=0,
        )  # fmt: skip
        axes.plot(
            rows["step"], rows["expected"], color="black", linestyle="none", marker="_",
            markersize=8, zorder=4,
        )  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(lambda value, _: f"{1000 * value:g}")
    axes.set_xlabel("training step")
    axes.set_ylabel(r"cosine, one query ($10^{-3}$)")
    axes.set_title(title, loc="left")


def _forwards(axes: Axes, averaged: Table, looks: dict[str, MethodStyle]) -> None:
    """Draw the cosine of averaged queries against forwards, all steps taken together."""
    by_group = averaged.groupby(["method", "forwards", "group"], as_index=False)["cosine"].mean()
    for method, rows in summary(by_group, "forwards").groupby("method"):
        look = looks[str(method)]
        axes.errorbar(
            rows["forwards"], rows["mean"], yerr=rows["half"], color=look.colour,
            linestyle=look.line, marker=look.marker, elinewidth=0.8,
        )  # fmt: skip
    ticks = sorted(averaged["forwards"].unique())
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_xlabel("forward passes")
    axes.set_ylabel("cosine, queries averaged")
    axes.set_title("(c) as (a), equal forwards", loc="left")


def _layers(
    axes: Axes, layers: Table, looks: dict[str, MethodStyle], perturbed: str, title: str
) -> None:
    """Draw the cosine of each layer at the last step measured so, with the theory's value."""
    chosen = layers[layers["perturbed"] == perturbed]
    if chosen.empty:
        raise ResultError(f"layers.csv: has no rows of layers perturbed {perturbed}")
    last = chosen["step"].max()
    names = list(dict.fromkeys(chosen["layer"]))
    own = [method for method in looks if (chosen["method"] == method).any()]
    shift = {method: 0.7 / len(own) * (i - (len(own) - 1) / 2) for i, method in enumerate(own)}
    for method in own:
        look = looks[method]
        rows = chosen[(chosen["method"] == method) & (chosen["step"] == last)].set_index("layer")
        missing = [name for name in names if name not in rows.index]
        if missing and method not in PARTIAL:
            raise ResultError(f"layers.csv: {method} has no row of {missing[0]} at step {last}")
        rows = rows.loc[[name for name in names if name in rows.index]]
        x = [names.index(name) + shift[method] for name in rows.index]
        half = [
            t_quantile(int(n) - 1, CONFIDENCE) * d / math.sqrt(n)
            for n, d in zip(rows["n"], rows["deviation"], strict=True)
        ]
        axes.errorbar(
            x, rows["cosine"], yerr=half, color=look.colour, linestyle="none",
            marker=look.marker, markersize=2.5, elinewidth=0.7,
        )  # fmt: skip
        axes.plot(x, rows["expected"], color="black", linestyle="none", marker="_", markersize=4)
    if len(names) <= MOST_BARS:
        axes.set_xticks(range(len(names)), [short(name) for name in names], rotation=90, fontsize=5)
    else:
        axes.set_xlabel("linear layer")
    axes.set_xlim(-0.7, len(names) - 0.3)
    axes.set_ylabel("cosine, one query")
    axes.set_title(f"{title}, step {last}", loc="left")


def caption(probe: Probe) -> list[str]:
    """Say what is shown, from what, and how far theory and measurement are apart."""
    whole, layers = probe.tables["whole"], probe.tables["layers"]
    groups = whole["group"].nunique()
    settings = "; ".join(
        f"{look.label} {rows['estimator'].iloc[0].replace('_', '-')}, eps {rows['eps'].iloc[0]:g}, "
        f"{groups} groups of {rows['queries'].iloc[0]} queries, "
        f"{rows['wrong_sign'].sum() / rows['queries'].sum():.1%} of the slopes measured with the "
        "wrong sign"
        for method, look in styles(whole["method"].unique()).items()
        for rows in [whole[whole["method"] == method]]
    )
    alone = layers[layers["perturbed"] == "alone"]
    together = layers[layers["perturbed"] == "together"]
    return [
        "Cosine of a zeroth-order estimate and the backpropagated gradient of the same minibatch, "
        "at the same weights for all methods, along one training run (the paper's Figure 2).",
        "(a), (b) One-query estimates over the weights of linear layers, which alone are "
        f"perturbed, and over everything. Bands: {CONFIDENCE:.0%} confidence interval of the "
        "mean over groups of queries. Theory: Theorem 5.4 in its concatenated form, from the "
        "measured bases, and Corollary 5.5; an approximation for LOZO's V, not orthonormal. "
        "LOZO-M evaluates LOZO's directions: its points are LOZO's, and it has none of its own.",
        *_partial(probe),
        f"(c) Mean of the queries that the forwards pay for, steps {_steps(whole)} together; in "
        "one step queries share the basis and, one-sided, the base forward.",
        f"(d) {alone['layer'].nunique()} of {together['layer'].nunique()} layers, "
        f"{int(alone['n'].iloc[0])} queries a layer and method; bars: {CONFIDENCE:.0%} confidence "
        "intervals.",
        "(e) All layers when one projected gradient serves all of them, as in a step: a "
        f"layer's cosine can then be negative. {(together['cosine'] < 0).sum()} of "
        f"{len(together)} means over queries, all steps, are below zero.",
        f"Methods: {settings}.",
        PAPER,
        sentence(probe),
    ]


def _partial(probe: Probe) -> list[str]:
    """Say what those methods perturb that leave weights as they are; theory is exact for them."""
    methods, said = set(probe.tables["whole"]["method"]), []
    if "zo_act" in methods:
        said.append(
            "ZO-Act perturbs C of W + C V^T: a direction Z of C counts as Z V^T of W, before Adam; "
            "V is of the run's first weights and batches, and is the basis in the theory."
        )
    if "dominant_layer" in methods:
        layer, base = probe.get("dominant_layer.layer", int), probe.get("dominant_layer.base", str)
        said.append(
            f"The dominant layer, by {label(base)} in layer {layer} (from 0): directions are zero "
            "elsewhere, the gradient is that of all layers. Theory: Corollary 5.5 on the layer, "
            f"times the share of |G| that it holds. Of a layer alone, (d), it is {label(base)}."
        )
    return said


def _steps(rows: Table) -> str:
    return ", ".join(str(step) for step in sorted(rows["step"].unique()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the figure of a folder and print the paths of what was written."""
    return command_line(draw, "gradient_alignment", __doc__, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
