"""Curves of runs as a chart of Plotly, with the choices that a reader has: task, measure, x axis.

A trace is one run and measure. It carries both x axes, and `shown`, the choices under which it is
drawn; template/page.js picks. Texts are escaped, because Plotly reads a few tags in them.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle
from typing import Any

from analysis.figures.style import METHODS, MethodStyle
from analysis.report.runs import RunFolder

AXES = {"forwards": "forwards", "seconds": "seconds"}
MEASURES = {"dev_loss": "dev loss", "loss": "training loss", "dev_score": "dev score"}
TITLES = {  # of axes, in full
    "forwards": "forward passes of a training batch",
    "seconds": "seconds of training",
    "dev_loss": "loss on dev",
    "loss": "loss of a training batch",
    "dev_score": "score on dev, %",
}
HUES = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#AA4477", "#7C8AA0")
BOTH = {"#000000": "#7C8AA0", "#882255": "#AA4477"}  # what dark paper would swallow
DASHES = ("solid", "6px,3px", "2px,2px", "8px,2px,2px,2px")
ONE_RUN = (  # the looks of a single run's measures
    {"color": "#D55E00", "dash": "solid"},
    {"color": "#888888", "dash": "solid"},
    {"color": "#0072B2", "dash": "solid"},
)
STRETCH = 1.5  # a line on the page is wider than one on paper, and so are its dashes

Point = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One run in a chart: the task and the series it belongs to."""

    run: RunFolder
    task: str
    series: str
    method: str


@dataclass(frozen=True)
class Choice:
    """What a reader chooses: the name of the choice, and the options with their words."""

    name: str
    words: str
    options: dict[str, str]
    menu: bool = False  # many options: a menu, not a row of buttons


@dataclass(frozen=True)
class Chart:
    """A chart for the page: its choices and traces; `label` is read out in place of the drawing."""

    label: str
    choices: list[Choice]
    traces: list[dict[str, Any]]
    titles: dict[str, str]  # of the axes, by the options

    @property
    def data(self) -> dict[str, Any]:
        """Return what page.js draws from."""
        return {"traces": self.traces, "titles": self.titles}


def chart(label: str, lines: Sequence[Line]) -> Chart | None:
    """Draw runs, one colour and dash for each series; None if no run has logged anything."""
    looks = _looks(lines)
    ends = {axis: _last(lines, axis) for axis in AXES}
    traces: list[dict[str, Any]] = []
    named: set[tuple[str, ...]] = set()
    for line in lines:
        for measure in MEASURES:
            found = [point for point in line.run.points if point[measure] is not None]
            if not found:
                continue
            first = (line.task, measure, line.series) not in named
            named.add((line.task, measure, line.series))
            trace = _trace(line, measure, found, looks[line.series]) | {"showlegend": first}
            level = len(found) == 1 and found[0]["forwards"] == 0  # it takes no step
            traces.append(_level(trace, ends) if level else trace)
    if not traces:
        return None
    tasks = {task: task for task in dict.fromkeys(line.task for line in lines)}
    measures = {key: words for key, words in MEASURES.items() if _any(traces, "measure", key)}
    choices = [
        Choice("task", "Task", tasks, menu=True),
        Choice("measure", "Shown", measures),
        _axis(lines),
    ]
    return Chart(label, choices, traces, TITLES)


def _trace(line: Line, measure: str, found: list[Point], look: dict[str, Any]) -> dict[str, Any]:
    scale = 100 if measure == "dev_score" else 1
    dots = measure != "loss" or len(found) == 1
    seed = line.run.row.get("seed")
    who = line.series if seed is None else f"{line.series}, seed {seed}"
    where = "step %{customdata[0]:,}, %{customdata[1]:,} forwards"
    where += ", %{customdata[2]:,.1f} s" if found[0]["seconds"] is not None else ""
    return {
        "type": "scatter",
        "mode": "lines+markers" if dots else "lines",
        "name": text(line.series),
        "legendgroup": line.series,
        "line": {"width": 1.8} | look,
        "marker": {"size": 6, "color": look["color"]},
        "x": {axis: [_number(point[axis]) for point in found] for axis in AXES},
        "y": [_number(point[measure], scale) for point in found],
        "customdata": [[point["step"], *(_number(point[a]) for a in AXES)] for point in found],
        "hovertemplate": f"<b>{text(who)}</b><br>{TITLES[measure]}: %{{y:.4~g}}<br>{where}"
        "<extra></extra>",
        "shown": {"task": line.task, "measure": measure},
    }


def text(words: str) -> str:
    """Escape what Plotly would read in a text: tags, entities, and the braces of a template."""
    return escape(words, quote=False).replace("%", "&#37;")


def _level(trace: dict[str, Any], ends: dict[str, float]) -> dict[str, Any]:
    """Draw the one number of a run that takes no step as a level over the whole width."""
    across = {axis: [0, end] for axis, end in ends.items()}
    dotted = trace["line"] | {"dash": "2px,3px"}
    twice = {key: trace[key] * 2 for key in ("y", "customdata")}
    return trace | twice | {"x": across, "mode": "lines", "line": dotted}


def _looks(lines: Sequence[Line]) -> dict[str, dict[str, Any]]:
    """Give each series the look of its method, or one of its own where several share a method."""
    methods = {line.series: line.method for line in lines}
    distinct = len(set(methods.values())) == len(methods)
    printed = {series: METHODS.get(method) for series, method in methods.items() if distinct}
    spare = ({"color": hue, "dash": dash} for dash in cycle(DASHES) for hue in HUES)
    return {
        series: _as_printed(look) if (look := printed.get(series)) else next(spare)
        for series in methods
    }


def _as_printed(look: MethodStyle) -> dict[str, Any]:
    """Return the look that the method has in the printed figures."""
    colour = BOTH.get(look.colour, look.colour)
    if isinstance(look.line, str):
        return {"color": colour, "dash": "solid"}
    _, lengths = look.line
    dash = ",".join(f"{STRETCH * length:g}px" for length in lengths or ())
    return {"color": colour, "dash": dash}


def _last(lines: Sequence[Line], axis: str) -> float:
    return max((point[axis] or 0 for line in lines for point in line.run.points), default=0)


def _any(traces: Iterable[dict[str, Any]], choice: str, option: str) -> bool:
    return any(trace["shown"][choice] == option for trace in traces)


def _axis(lines: Sequence[Line]) -> Choice:
    """Offer seconds where any run has noted them."""
    timed = any(point["seconds"] is not None for line in lines for point in line.run.points)
    return Choice("x", "Against", {axis: AXES[axis] for axis in AXES if axis != "seconds" or timed})


def _number(number: float | None, scale: float = 1) -> float | None:
    """Shorten a number to six digits; one that is not finite is a gap."""
    if number is None or not math.isfinite(number):
        return None
    return float(f"{scale * number:.6g}") if isinstance(number, float) else scale * number


def one_run(run: RunFolder, name: str) -> Chart | None:
    """Draw a single run: both losses in one picture, and the score."""
    line = Line(run, "", name, "")
    traces = []
    for measure, look in zip(MEASURES, ONE_RUN, strict=True):
        found = [point for point in run.points if point[measure] is not None]
        if found:
            shown = {"measure": "dev_score" if measure == "dev_score" else "loss"}
            trace = _trace(line, measure, found, look) | {"name": TITLES[measure]}
            traces.append(trace | {"legendgroup": measure, "shown": shown})
    if not any(len(trace["y"]) > 1 for trace in traces):
        return None
    measures = {"loss": "loss", "dev_score": MEASURES["dev_score"]}
    measures = {key: words for key, words in measures.items() if _any(traces, "measure", key)}
    choices = [Choice("measure", "Shown", measures), _axis([line])]
    traces.sort(key=lambda trace: trace["legendgroup"] != "loss")  # dev before the noisy one
    return Chart(f"curves of {name}", choices, traces, TITLES | {"loss": "loss"})
