"""Figure 1: gradients and activations of each linear layer, from what the structure probe measured.

(a) |G A| / |G| per layer for r = 1, 10 and the full rank, or of many layers maps for r = 1 and 10;
(b), (c) singular values of gradients and inputs of a few layers; (d) the same as (a) with a basis
of another minibatch or of the first step, or one that is cheaper to come by; (e) the share of a
layer's activation energy in its first direction, and in that direction's strongest position.

    python -m analysis.figures.singular_spectrum FOLDER --out STEM
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from analysis.figures.layer_map import MOST_BARS, draw_map, short
from analysis.figures.style import RC, TEXT_INCHES
from analysis.reading.load import ResultError
from analysis.reading.probe import Probe, Table, command_line, load_probe, sentence, write_figure

COLUMNS = {
    "cosines": ("step", "layer", "basis", "rank", "columns", "cosine", "random"),
    "spectra": ("step", "layer", "of", "index", "value"),
    "energy": (
        "step", "layer", "tokens", "width", "rank", "share", "position", "position_share",
        "position_tokens", "token", "token_share",
    ),
}  # fmt: skip
RANKS = {"full": "#D9D9D9", "10": "#8FB8D8", "1": "#1F4E79"}  # light to dark, also in grey
BASES = {
    "same": ("this minibatch", "#000000", "-", "o"),
    "power": ("power iteration, K = 3", "#D55E00", (0, (4, 1.5)), "s"),
    "warm": ("warm start, K = 1", "#CC79A7", (0, (2, 1)), "v"),
    "sampled": ("a quarter of the tokens", "#F0E442", (0, (3, 1)), "P"),
    "other": ("another minibatch", "#56B4E9", (0, (4, 1, 1, 1)), "^"),
    "first": ("first minibatch, first weights", "#009E73", (0, (1, 1)), "D"),
}
LAYER_COLOURS = ("#000000", "#D55E00", "#56B4E9", "#E69F00", "#009E73", "#CC79A7")


def draw(folder: Path, stem: Path) -> list[Path]:
    """Draw the figure; return the paths of the PNG, the PDF and the caption."""
    probe = load_probe(folder, "structure", COLUMNS)
    probe.tables["cosines"]["rank"] = probe.tables["cosines"]["rank"].astype(str)
    cosines, spectra, energy = (probe.tables[name] for name in COLUMNS)
    last = int(cosines["step"].max())
    many = cosines["layer"].nunique() > MOST_BARS
    rows: list[Any] = [["a", "a1"] if many else ["a", "a"], ["b", "c"], ["d1", "d10"]]
    rows.append(["e", "e1"] if many else ["e", "e"])
    with mpl.rc_context(RC):
        figure = Figure(figsize=(TEXT_INCHES, 6.6), layout="constrained")
        panels = figure.subplot_mosaic(rows, height_ratios=[1.15, 1, 1, 1.15])
        if many:
            _captured_maps((panels["a"], panels["a1"]), cosines, last)
            _energy_maps((panels["e"], panels["e1"]), energy, last)
        else:
            _captured(panels["a"], cosines, last)
            _energy(panels["e"], energy, last)
        _spectra(panels["b"], spectra, "gradient", "(b) gradient $G$")
        _spectra(panels["c"], spectra, "activation", "(c) input $X$")
        for rank in ("1", "10"):
            _carried(panels[f"d{rank}"], cosines, rank)
        return write_figure(figure, stem, caption(probe, last, many))


def _captured_maps(panels: Iterable[Axes], cosines: Table, last: int) -> None:
    """Draw a map for r = 1 and one for r = 10, at the last step."""
    here = cosines[(cosines["step"] == last) & (cosines["basis"] == "same")]
    for axes, rank in zip(panels, ("1", "10"), strict=True):
        own = here[here["rank"] == rank]
        values = dict(zip(own["layer"], own["cosine"], strict=True))
        draw_map(axes, values, rf"(a) $\|GA\|\,/\,\|G\|$, $r$ = {rank}", 0.0, 1.0)


def _energy_maps(panels: Iterable[Axes], energy: Table, last: int) -> None:
    """Draw a map of the first direction's share, and of its strongest position's part of it."""
    here = energy[energy["step"] == last]
    whole = here["share"]
    titles = ("(e) energy in the first direction", "(e) its strongest position's part")
    for axes, part, title in zip(
        panels, (whole, whole * here["position_share"]), titles, strict=True
    ):
        draw_map(axes, dict(zip(here["layer"], part, strict=True)), title, 0.0, 1.0)


def _captured(axes: Axes, cosines: Table, last: int) -> None:
    """Draw nested bars per layer at the last step, with the range over steps."""
    layers = list(dict.fromkeys(cosines["layer"]))
    here = cosines[cosines["step"] == last]
    for rank, colour in RANKS.items():
        own = _by_layer(here[(here["basis"] == "same") & (here["rank"] == rank)], layers, "cosine")
        axes.bar(range(len(layers)), own, width=0.8, color=colour, zorder=2)
        random = here[(here["basis"] == "same") & (here["rank"] == rank)]
        if rank != "full":
            level = _by_layer(random, layers, "random")
            axes.plot(
                range(len(layers)), level, linestyle="none", marker="d", markersize=3,
                markerfacecolor="#B22222", markeredgecolor="white", markeredgewidth=0.5, zorder=4,
            )  # fmt: skip
    ranges = cosines[(cosines["basis"] == "same") & (cosines["rank"] == "1")].groupby("layer")
    low, high = ranges["cosine"].min(), ranges["cosine"].max()
    axes.vlines(
        range(len(layers)), [low.get(x) for x in layers], [high.get(x) for x in layers],
        color="white", linewidth=1.6, zorder=3,
    )  # fmt: skip
    axes.vlines(
        range(len(layers)), [low.get(x) for x in layers], [high.get(x) for x in layers],
        color="black", linewidth=0.7, zorder=3,
    )  # fmt: skip
    _name_layers(axes, layers)
    axes.set_ylim(0, 1.02)
    axes.set_ylabel(r"$\|GA\|\,/\,\|G\|$")
    axes.set_title("(a) gradient in its input's span", loc="left")
    handles: list[Patch | Line2D] = [
        Patch(color=colour, label="$r$ = full" if rank == "full" else f"$r$ = {rank}")
        for rank, colour in reversed(RANKS.items())
    ]
    handles += [
        Line2D([], [], color="black", linewidth=0.7, label="$r$ = 1, range over steps"),
        Line2D(
            [], [], color="#B22222", linestyle="none", marker="d", markersize=3, label="random $A$"
        ),
    ]
    _legend_above(axes, handles, 5)


def _spectra(axes: Axes, spectra: Table, of: str, title: str) -> None:
    """Draw singular values over their index, relative to the largest of each matrix."""
    own = spectra[spectra["of"] == of]
    if own.empty:
        raise ResultError(f"spectra.csv: has no rows of {of}")
    layers = own["layer"].unique()
    if len(layers) > len(LAYER_COLOURS):
        raise ResultError(
            f"spectra.csv: has {len(layers)} layers; allowed are up to {len(LAYER_COLOURS)}, "
            "measure with fewer (--layers)"
        )
    steps = sorted(own["step"].unique())
    shown = sorted({steps[0], steps[-1]})
    for layer, colour in zip(layers, LAYER_COLOURS, strict=False):
        for step, line in zip(shown, ("-", (0, (2, 1.2))), strict=False):
            values = own[(own["layer"] == layer) & (own["step"] == step)].sort_values("index")
            axes.plot(
                values["index"], values["value"] / values["value"].max(), color=colour,
                linestyle=line, label=short(layer) if step == shown[0] else None, linewidth=0.9,
            )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(1e-6, 1.5)
    axes.set_xlabel("index $i$")
    axes.set_ylabel(r"$\sigma_i\,/\,\sigma_1$")
    axes.set_title(f"{title}, dashed: step {shown[-1]}" if len(shown) > 1 else title, loc="left")
    if of == "activation":  # where the curves leave room
        axes.legend(frameon=False, fontsize=5.5, loc="lower left", handlelength=2.2)


def _carried(axes: Axes, cosines: Table, rank: str) -> None:
    """Draw, for one rank and each source of the basis, the mean over layers against the step."""
    own = cosines[cosines["rank"] == rank]
    for basis, (label, colour, line, marker) in BASES.items():
        mean = own[own["basis"] == basis].groupby("step")["cosine"].mean()
        axes.plot(mean.index, mean, color=colour, linestyle=line, marker=marker, label=label)
    axes.set_xlabel("training step")
    axes.set_ylabel(r"mean $\|GA\|\,/\,\|G\|$")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_title(f"(d) whose basis, $r$ = {rank}", loc="left")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.7 * (high - low))  # room for a half of the legend
    handles, labels = axes.get_legend_handles_labels()
    half = slice(0, 3) if rank == "1" else slice(3, None)
    axes.legend(
        handles[half], labels[half], frameon=False, fontsize=5.5, loc="upper left", handlelength=2.6
    )


def _energy(axes: Axes, energy: Table, last: int) -> None:
    """Draw the first direction's share of the energy, and its strongest position's part of that."""
    here = energy[energy["step"] == last]
    layers = list(here["layer"])
    part = here["share"] * here["position_share"]
    axes.bar(range(len(layers)), here["share"], width=0.8, color=RANKS["10"], zorder=2)
    axes.bar(range(len(layers)), part, width=0.8, color=RANKS["1"], zorder=3)
    for x, (share, position) in enumerate(zip(here["share"], here["position"], strict=True)):
        axes.text(x, share + 0.015, str(position), ha="center", va="bottom", fontsize=5)
    _name_layers(axes, layers)
    axes.set_ylim(0, 1.08)
    axes.set_ylabel(r"$\sigma_1^2\,/\,\sum_i\sigma_i^2$")
    axes.set_title("(e) activation energy in the first direction", loc="left")
    handles = [
        Patch(color=RANKS["10"], label="all positions"),
        Patch(color=RANKS["1"], label="its strongest position (numbered above the bar)"),
    ]
    _legend_above(axes, handles, 2)


def _by_layer(rows: Table, layers: Sequence[str], column: str) -> list[float]:
    values = dict(zip(rows["layer"], rows[column], strict=True))
    return [values.get(layer, float("nan")) for layer in layers]


def _legend_above(axes: Axes, handles: Sequence[Patch | Line2D], columns: int) -> None:
    axes.legend(
        handles=handles, frameon=False, ncols=columns, fontsize=5.5, loc="lower right",
        bbox_to_anchor=(1.0, 0.97), borderaxespad=0.0, handlelength=1.2, columnspacing=1.0,
    )  # fmt: skip


def _name_layers(axes: Axes, layers: Sequence[str]) -> None:
    axes.set_xticks(range(len(layers)), [short(x) for x in layers], rotation=90, fontsize=5)
    axes.set_xlim(-0.7, len(layers) - 0.3)


def caption(probe: Probe, last: int, many: bool) -> list[str]:
    """Say what is shown, from what, and where a value is trivial."""
    cosines, energy = probe.tables["cosines"], probe.tables["energy"]
    here = energy[energy["step"] == last]
    full = here[here["rank"] >= here["width"]]
    least = cosines[(cosines["basis"] == "same") & (cosines["rank"] == "full")]["cosine"].min()
    top = here.loc[here["share"].idxmax()]
    marks = ""
    if not many:
        marks = (
            f"; black: range of r = 1 over steps {listed(cosines['step'])}; red: expected root "
            "mean square for a random A, sqrt(r/width)"
        )
    out = here.loc[(here["position_share"] / here["position_tokens"]).idxmax()]
    return [
        "Gradients and activations of each linear layer. The paper's Figure 1 shows GPT-2 on "
        "SST-2; its values are not published as numbers.",
        f"(a) Cosine of the gradient G of one minibatch and its projection on the leading r right "
        f"singular directions A of the layer's input, |GA|/|G|, at step {last}{marks}. "
        "At full rank the smallest value over all layers and steps is "
        f"{least:.6f}. In {len(full)} of {len(here)} layers the minibatch spans the whole width, "
        "which makes the full-rank value 1 for any gradient: there only r = 1 and 10 tell.",
        "(b), (c) Singular values over the largest one, of gradients and inputs.",
        "(d) Mean over layers of (a) with the basis of this minibatch (exact, and by the power "
        "iteration that AGZO uses; begun with the next minibatch's basis and iterated once; taken "
        "from a quarter of the tokens), of the next minibatch at the same weights, and of the "
        "first minibatch at the first weights.",
        f"(e) Share of the input's energy in its first direction, and the part of it that its "
        f"strongest position carries (0 is a row's first token). The largest share is "
        f"{top['share']:.2f} in {short(top['layer'])}. The position that stands out most is "
        f"{out['position']} in {short(out['layer'])}: it has {out['position_tokens']:.3f} of the "
        f"tokens and {out['position_share']:.2f} of the direction, the token {out['token']!r} "
        f"{out['token_share']:.2f}.",
        sentence(probe),
    ]


def listed(steps: Table) -> str:
    """Name the steps of a table."""
    return ", ".join(str(step) for step in sorted(steps.unique()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the figure of a folder and print the paths of what was written."""
    return command_line(draw, "singular_spectrum", __doc__, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
