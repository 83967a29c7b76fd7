"""How figures look: one colour, line style and marker per method, sizes that fit a paper column.

Colours are Okabe and Ito's (safe for colour-blind readers), ordered so that their grey values
differ; the line style and the marker tell the methods apart without any colour.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # files only: no display is needed or opened

from matplotlib.figure import Figure
from matplotlib.typing import LineStyleType

COLUMN_INCHES = 3.3  # one column of a two-column page: a figure of one panel
TEXT_INCHES = 5.5  # the text width of a one-column page: a row of two or three panels


@dataclass(frozen=True)
class MethodStyle:
    """The look of one method, the same in every figure."""

    label: str
    colour: str
    line: LineStyleType
    marker: str


# The order here is the order of rows in tables and of entries in legends.
METHODS: dict[str, MethodStyle] = {
    "zero_shot": MethodStyle("zero-shot", "#7F7F7F", (0, (1, 2)), ""),
    "inference": MethodStyle("inference", "#BBBBBB", (0, (1, 1)), ""),
    "sgd": MethodStyle("SGD", "#000000", "-", "s"),
    "sgd_checkpointed": MethodStyle("SGD, checkpointed", "#117733", (0, (3, 1, 1, 1)), "D"),
    "adamw": MethodStyle("AdamW", "#CC79A7", (0, (5, 1, 1, 1, 1, 1)), "P"),
    "mezo": MethodStyle("MeZO", "#E69F00", (0, (4, 1.5)), "^"),
    "lozo": MethodStyle("LOZO", "#56B4E9", (0, (4, 1, 1, 1)), "v"),
    "lozo_m": MethodStyle("LOZO-M", "#0072B2", (0, (2, 1, 1, 1)), "<"),
    "fzoo": MethodStyle("FZOO", "#999933", (0, (3, 1)), "p"),
    "hizoo": MethodStyle("HiZOO", "#AA4499", (0, (5, 1, 1, 1)), "h"),
    "conmezo": MethodStyle("ConMeZO", "#44AA99", (0, (3, 1, 1, 1, 1, 1)), ">"),
    "subzero": MethodStyle("SubZero+", "#AA3377", (0, (1, 1.5)), "X"),
    "zo_muon": MethodStyle("ZO-Muon", "#6699CC", (0, (4, 1, 2, 1)), "*"),
    "aim_zo": MethodStyle("AIM-ZO", "#117733", (0, (8, 1, 2, 1)), "P"),
    "grzo": MethodStyle("GRZO", "#999933", (0, (1, 1, 3, 1)), "p"),
    "deepzero": MethodStyle("DeepZero", "#661100", (0, (2, 1, 1, 1)), "1"),
    "zo_act": MethodStyle("ZO-Act", "#009E73", (0, (2, 1)), "D"),
    "dominant_layer": MethodStyle("Dominant layer", "#882255", (0, (6, 1, 1, 1)), "d"),
    "agzo": MethodStyle("AGZO", "#D55E00", "-", "o"),
}
SPARE = (
    MethodStyle("", "#661100", (0, (3, 2)), "H"),
    MethodStyle("", "#DDCC77", (0, (5, 2)), "X"),
    MethodStyle("", "#332288", (0, (1, 1)), "*"),
)

RC: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.5,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.linewidth": 0.4,
    "grid.color": "#DDDDDD",
    "axes.axisbelow": True,
    "pdf.fonttype": 42,
    "figure.dpi": 100,
    "savefig.dpi": 300,
}


def ordered(methods: Iterable[str]) -> list[str]:
    """Put methods in the order of `METHODS`; those it does not know follow by name."""
    names = set(methods)
    return [m for m in METHODS if m in names] + sorted(names - METHODS.keys())


def styles(methods: Iterable[str]) -> dict[str, MethodStyle]:
    """Give each method its style; unknown methods take the spare ones in order of name."""
    names = ordered(methods)
    unknown = [name for name in names if name not in METHODS]
    if len(unknown) > len(SPARE):
        raise ValueError(
            f"methods={unknown}: no style is left for more than {len(SPARE)} methods unknown to "
            "METHODS in analysis/figures/style.py; add a line there for each"
        )
    spare = {
        name: MethodStyle(name, look.colour, look.line, look.marker)
        for name, look in zip(unknown, SPARE, strict=False)
    }
    return {name: METHODS.get(name) or spare[name] for name in names}


def label(method: str) -> str:
    """Return the name of a method as papers write it."""
    return METHODS[method].label if method in METHODS else method


def ended(stem: Path, ending: str) -> Path:
    """Put an ending behind a name that may hold dots ("cost_0.6b"), which `with_suffix` cuts."""
    return stem.with_name(stem.name + ending)


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write `stem.png` and `stem.pdf`; the files hold no date, so equal input gives equal files."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, pdf = ended(stem, ".png"), ended(stem, ".pdf")
    figure.savefig(png, bbox_inches="tight", pad_inches=0.03, metadata={"Software": None})
    figure.savefig(pdf, bbox_inches="tight", pad_inches=0.03, metadata={"CreationDate": None})
    return [png, pdf]
