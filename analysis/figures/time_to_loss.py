"""Dev loss against seconds of training, by this library and as published: a panel for each method.

Points are looks at dev after equal steps: both take the same ones. The red line is the loss to come
to; below it stands how many times sooner this library comes to it.

    python -m analysis.figures.time_to_loss FILE.json --out STEM
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.style import RC, TEXT_INCHES, label, ordered, styles
from analysis.reading.command import place, report
from analysis.reading.load import NUMBER, OPTIONAL_NUMBER, ResultError, read_json, value
from analysis.reading.probe import code, write_figure
from analysis.tables.table import SANITY

COMMAND = "python -m experiments.bench.time_to_loss"
OURS, TEXTBOOK = "ours", "textbook"
PUBLISHED = {"color": "#777777", "linestyle": (0, (4, 1.5)), "marker": "s", "markersize": 2.8}
COLUMNS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("method", "who"), (str,)),
    **dict.fromkeys(("lr", "eps", "step_seconds", "peak_gib"), NUMBER),
    **dict.fromkeys(("seed", "taken"), (int,)),
    "steps": (int, type(None)),
    "seconds": OPTIONAL_NUMBER,
    "looks": (list,),
    "task": (str,),
    "batch": (int,),
    "dev": (int,),
    "model": (dict,),
    "data": (dict,),
}
Row = dict[str, Any]


@dataclass(frozen=True)
class Times:
    """A file of the benchmark: the rows of each method, ours and the textbook's."""

    record: dict[str, Any]
    path: Path
    pairs: dict[str, tuple[Row, Row]]  # method -> (ours, textbook)

    def get(self, key: str, *allowed: type) -> Any:
        """Return a dotted key; absent or of another type is an error."""
        return value(self.record, key, allowed, self.path)


def load(path: Path) -> Times:
    """Read a file; a case that is missing is an error."""
    record = read_json(path)
    command = value(record, "command", (str,), path)
    if command != COMMAND:
        raise ResultError(f"{path}: key command is {command!r}; expected {COMMAND!r}")
    found = value(record, "rows", (list,), path)
    if not value(record, "complete", (bool,), path):
        planned = value(record, "planned", (int,), path)
        raise ResultError(
            f"{path}: has {len(found)} of {planned} cases; run the same command again, which goes "
            "on from there"
        )
    rows = {
        (row["method"], row["who"]): row for row in (_row(r, i, path) for i, r in enumerate(found))
    }
    methods = ordered(method for method, _ in rows)
    for method in methods:
        for who in (OURS, TEXTBOOK):
            if (method, who) not in rows:
                raise ResultError(f"{path}: has no row of {method}, {who}; measure again")
    if not methods:
        raise ResultError(f"{path}: key rows is []; expected at least one method")
    pairs = {method: (rows[method, OURS], rows[method, TEXTBOOK]) for method in methods}
    return Times(record, path, pairs)


def _row(row: Any, index: int, path: Path) -> Row:
    name = f"rows[{index}]"
    if not isinstance(row, dict):
        raise ResultError(f"{path}: key {name} is {row!r}; expected an object")
    try:
        flat = {column: value(row, column, kinds, path) for column, kinds in COLUMNS.items()}
        looks = [
            (value(look, "seconds", NUMBER, path), value(look, "dev_loss", NUMBER, path))
            for look in flat["looks"]
        ]
        if not looks:
            raise ResultError(f"{path}: key looks is []; expected at least one")
    except ResultError as error:
        raise ResultError(f"{error} (in {name})") from None
    return flat | {"looks": looks}


def draw(path: Path, stem: Path) -> list[Path]:
    """Draw what a file holds; return the paths of the PNG, the PDF and the caption."""
    times = load(path)
    target = times.get("arguments.target", *NUMBER)
    looks = styles(times.pairs)
    with mpl.rc_context(RC):
        figure = Figure(figsize=(TEXT_INCHES, 2.1), layout="constrained")
        panels = figure.subplots(1, len(times.pairs), sharey=True, squeeze=False)[0]
        for axes, (method, (ours, textbook)) in zip(panels, times.pairs.items(), strict=True):
            look = looks[method]
            own = {"color": look.colour, "linestyle": "-", "marker": look.marker}
            for row, style, words in ((textbook, PUBLISHED, "as published"), (ours, own, "here")):
                axes.plot(*zip(*row["looks"], strict=True), **style, label=words)
            axes.set_title(look.label, loc="left")
            axes.set_xlabel("seconds of training")
            axes.set_xlim(left=0)
            axes.margins(y=0.12)
            _mark(axes, ours, textbook, target)
            axes.legend(loc="upper right", frameon=False)
        panels[0].set_ylabel("dev loss")
        return write_figure(figure, stem, caption(times))


def _mark(axes: Axes, ours: Row, textbook: Row, target: float) -> None:
    """Draw the loss to come to, how many times sooner ours comes to it, or which does not."""
    axes.axhline(target, color="#CC0000", linewidth=0.8, linestyle=(0, (1.5, 0.8)))
    times = faster(ours, textbook)
    words, middle = f"not reached in {_taken(ours, textbook)} steps", sum(axes.get_xlim()) / 2
    if times is not None:
        words, middle = f"{times:.1f} times sooner", (ours["seconds"] + textbook["seconds"]) / 2
    elif ours["seconds"] is not None:
        words = f"as published not reached in {textbook['taken']} steps"
    elif textbook["seconds"] is not None:
        words = f"here not reached in {ours['taken']} steps"
    for row in (ours, textbook):
        if row["seconds"] is not None:
            axes.axvline(row["seconds"], ymax=0.04, color="#CC0000", linewidth=0.8)
    axes.annotate(
        words, (middle, target), xytext=(0, -3), textcoords="offset points", ha="center",
        va="top", color="#CC0000", fontsize=6.5,
    )  # fmt: skip


def faster(ours: Row, textbook: Row) -> float | None:
    """Return the textbook's seconds to the loss over ours; None where one did not come to it."""
    if ours["seconds"] is None or textbook["seconds"] is None:
        return None
    return textbook["seconds"] / ours["seconds"]


def caption(times: Times) -> list[str]:
    """Return the caption, one paragraph a line."""
    first = next(iter(times.pairs.values()))[0]
    model, data = first["model"], first["data"]
    lines = [
        "Dev loss against seconds of training, float32. The same start weights, batches, order, "
        "learning rates, eps and directions; the execution alone differs. As published: a padded "
        "row for each option, logits and log-softmax of all positions, eager, noise of torch's "
        "generator drawn at each pass and written into the weights. What it draws is replaced, off "
        "the clock, by the noise of this library's steps, so that both walk one path. A point is a "
        f"look at dev, every {times.get('arguments.every', int)} steps, off the clock; the loss is "
        f"reached at the first look at {times.get('arguments.target', *NUMBER):g} or less.",
        " ".join(map(_sentence, times.pairs.values())),
        f"Model: {value(model, 'name', (str,), times.path)} "
        f"({value(model, 'parameters', (int,), times.path):,} parameters). Data: "
        f"{value(data, 'source', (str,), times.path)}, task {first['task']}, batch "
        f"{first['batch']}, {first['dev']} dev examples. n = 1 seed "
        f"({first['seed']}). {times.get('machine.device_name', str)}, "
        f"{times.get('machine.threads', int)} thread(s), torch {times.get('versions.torch', str)}, "
        f"{code(times.record, times.path)}.",
    ]
    pocket = "pocket" in (model["name"], data["source"])
    return [*lines, SANITY] if pocket else lines


def _sentence(pair: tuple[Row, Row]) -> str:
    """Say of a method what it took, here and as published."""
    ours, textbook = pair
    name = f"{label(ours['method'])} (lr {ours['lr']:g}, eps {ours['eps']:g})"
    a_step = f"{ours['step_seconds']:.2f} and {textbook['step_seconds']:.2f} s a step"
    memory = f"{ours['peak_gib']:.2f} and {textbook['peak_gib']:.2f} GiB"
    times = faster(ours, textbook)
    if times is not None:
        took = (
            f"{ours['steps']} and {textbook['steps']} steps, {ours['seconds']:.1f} and "
            f"{textbook['seconds']:.1f} s, {times:.2f} times sooner"
        )
    elif ours["seconds"] is None and textbook["seconds"] is None:
        took = f"not reached in {ours['taken']} and {textbook['taken']} steps"
    else:
        took = f"{_took(ours)} here, {_took(textbook)} as published"
    return f"{name}, here and as published: {took}; {a_step} (median), {memory} at most."


def _took(row: Row) -> str:
    """Say of one of a pair how it came to the loss, where the other did not, or that it did not."""
    if row["seconds"] is None:
        return f"not reached in {row['taken']} steps"
    return f"{row['steps']} steps and {row['seconds']:.1f} s"


def _taken(ours: Row, textbook: Row) -> str:
    """Name the steps that both took: once if they are the same."""
    return " and ".join(dict.fromkeys((str(ours["taken"]), str(textbook["taken"]))))


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw, and print the paths of what was written."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.figures.time_to_loss", description=__doc__
    )
    parser.add_argument("file", type=place, help=f"JSON of {COMMAND}")
    parser.add_argument("--out", type=place, required=True, help="path of the figure, no suffix")
    options = parser.parse_args(arguments)
    return report(lambda: draw(options.file, options.out))


if __name__ == "__main__":
    raise SystemExit(main())
