"""How the cost of a step grows: curves over length, batch, rank and model size, where measured.

For each axis the rows that differ in nothing else; of several such groups (another shape, another
precision) the one with most values is drawn, and the caption says which.
"""

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator
from matplotlib.typing import LineStyleType

from analysis.figures.step_cost_rows import (
    Bench,
    Row,
    batch_name,
    distinct,
    is_textbook,
    name,
    shape_name,
)
from analysis.figures.style import RC, TEXT_INCHES, styles
from analysis.reading.probe import write_figure

# axis -> (column of its values, words under the panel)
AXES = {
    "length": ("length", "sequence length"),
    "batch": ("batch", "batch size"),
    "rank": ("rank", "rank"),
    "size": ("parameters", "parameters"),
}
FIXED = ("shape", "dtype", "batch", "length", "mix")  # what a group has one of, but for its axis
TICKS = (0.5, 0.75, 1, 1.25, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
VARIANTS: tuple[LineStyleType, ...] = ((0, (1, 1)), (0, (3, 1, 1, 1)), (0, (5, 1)), (0, (1, 2.5)))


@dataclass(frozen=True)
class Group:
    """The curves of one axis: (method, rank) -> rows by ascending value of `column`."""

    axis: str
    fixed: dict[str, Any]
    curves: dict[tuple[str, int | None], list[Row]]

    @property
    def values(self) -> list[Any]:
        """Return the values that the axis takes."""
        return sorted({place(self.axis, row) for rows in self.curves.values() for row in rows})

    def words(self) -> str:
        """Say what is the same in all rows."""
        parts = [str(self.fixed[key]) for key in ("shape", "dtype") if key in self.fixed]
        if self.fixed["mix"] is not None:
            return ", ".join([*parts, batch_name(self.fixed)])
        parts += [f"{key} {self.fixed[key]}" for key in ("batch", "length") if key in self.fixed]
        return ", ".join(parts)


def place(axis: str, row: Row) -> Any:
    """Return where a row stands on an axis."""
    return row[AXES[axis][0]]


def groups(rows: list[Row], axis: str) -> list[Group]:
    """Return the groups that have at least two values of an axis, the fullest first."""
    fixed = [key for key in FIXED if key != ("shape" if axis == "size" else axis)]
    found: dict[tuple[Any, ...], dict[tuple[str, int | None], dict[Any, Row]]] = {}
    sizes = {row["shape"]: row["parameters"] for row in rows if row["parameters"] is not None}
    for row in rows:
        whole = row | {"parameters": sizes.get(row["shape"])}
        mixed = row["mix"] is not None and axis in ("batch", "length")  # its prompts vary in both
        if mixed or place(axis, whole) is None:
            continue
        curve = (row["method"], None if axis == "rank" else row["rank"])
        curves = found.setdefault(tuple(row[key] for key in fixed), defaultdict(dict))
        curves[curve][place(axis, whole)] = whole
    made = []
    for key, curves in found.items():
        kept = {
            curve: [points[x] for x in sorted(points)]
            for curve, points in curves.items()
            if len(points) > 1
        }
        if kept:
            made.append(Group(axis, dict(zip(fixed, key, strict=True)), kept))
    return sorted(made, key=lambda group: (-len(group.values), -len(group.curves)))


def draw(bench: Bench, stem: Path) -> list[Path]:
    """Draw the axes that have two values or more; return the paths, none where no axis has."""
    found = [made[0] for axis in AXES if (made := groups(bench.rows, axis))]
    if not found:
        return []
    looks = _looks(found)
    with mpl.rc_context(RC):
        columns = min(2, len(found))
        lines = -(-len(found) // columns)
        figure = Figure(figsize=(TEXT_INCHES, 2.2 * lines + 0.5), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False).flat
        for letter, group in zip("abcd", found, strict=False):
            axes = next(panels)
            axes.set_title(f"({letter}) {group.words()}", loc="left")
            _panel(axes, group, looks)
        for axes in panels:
            axes.set_axis_off()
        if any(row["status"] != "ok" for g in found for rows in g.curves.values() for row in rows):
            looks["out of memory"] = {"linestyle": "none", "marker": "x", "color": "#555555"}
        handles = [Line2D([], [], **look, label=label) for label, look in looks.items()]
        figure.legend(
            handles=handles, loc="outside upper center", ncols=4, frameon=False, handlelength=2.6
        )
        return write_figure(figure, stem, _caption(bench, found))


def _looks(found: list[Group]) -> dict[str, dict[str, Any]]:
    """Give each curve its look: colour and marker of its family, line of its variant."""
    curves = {
        name(rows[0]): rows[0] for group in found for rows in group.curves.values()
    }  # fmt: skip
    families = styles({row["family"] for row in curves.values()})
    looks, used = {}, defaultdict(int)
    for label, row in curves.items():
        family = families[row["family"]]
        look: dict[str, Any] = {"color": family.colour, "marker": family.marker, "linestyle": "-"}
        if is_textbook(row):
            look |= {"linestyle": (0, (4, 2)), "markerfacecolor": "white", "alpha": 0.8}
        elif row["method"] != row["family"]:
            look |= {"linestyle": VARIANTS[used[row["family"]] % len(VARIANTS)], "markersize": 2.2}
            used[row["family"]] += 1
        looks[label] = look
    return looks


def _panel(axes: Axes, group: Group, looks: dict[str, dict[str, Any]]) -> None:
    ratios = [1.0]
    for rows in group.curves.values():
        found = [row["ratio"] for row in rows]
        x = [place(group.axis, row) for row in rows]
        gapped = [math.nan if ratio is None else ratio for ratio in found]  # no line over a gap
        axes.plot(x, gapped, **looks[name(rows[0])])
        ratios += [ratio for ratio in found if ratio is not None]
        for row in rows:
            if row["status"] != "ok":  # at the top of the panel, wherever that is
                axes.plot(
                    [place(group.axis, row)], [0.97], transform=axes.get_xaxis_transform(),
                    marker="x", color=looks[name(rows[0])]["color"], linestyle="none",
                )  # fmt: skip
    axes.axhline(1.0, color="black", linewidth=0.6, zorder=1)
    axes.set_xscale("log", base=10 if group.axis == "size" else 2)
    axes.set_yscale("log")
    axes.set_ylim(min(ratios) / 1.08, max(ratios) * 1.12)
    axes.yaxis.set_major_locator(FixedLocator(TICKS))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(FixedLocator(group.values))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(lambda value, _: short(value))
    axes.set_xlabel(AXES[group.axis][1])
    axes.set_ylabel("step / two forwards")


def short(count: float) -> str:
    """Write a count in the room of a tick: 64, 0.6M, 596M, 1.7B."""
    for unit, letter in ((1e9, "B"), (1e6, "M")):
        if count >= unit or (letter == "M" and count >= 1e5):
            return f"{count / unit:.{1 if count < 10 * unit else 0}f}{letter}"
    return f"{count:g}"


def _caption(bench: Bench, found: list[Group]) -> list[str]:
    panels = "; ".join(
        f"({letter}) over {AXES[group.axis][1]}: {group.words()}"
        for letter, group in zip("abcd", found, strict=False)
    )
    drawn = [row for group in found for rows in group.curves.values() for row in rows]
    drawn.sort(key=lambda row: row["parameters"] or 0)
    names = ", ".join(shape_name(shape) for (shape,) in distinct(drawn, "shape"))
    others = sum(len(groups(bench.rows, group.axis)) - 1 for group in found)
    more = f" The files hold {others} further such group(s)." if others else ""
    return [
        "Cost of a step in units of two plain forwards of the same run, random weights. Shapes: "
        f"{names}. {panels}. Median over rounds.{more}",
        *bench.origin,
    ]
