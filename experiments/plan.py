"""What a suite runs: models x tasks x columns x grid cells x seeds, from the `plan` of a preset.

A column of the table is a method with a grid of settings. Every cell of the grid is one run with
the first seed; the cell with the lowest dev loss is chosen by code, on dev alone, and only that one
is run with the other seeds. A run is an ordinary run (experiments.run) of the same preset, in the
folder that its configuration gives it, so any of them can be made, looked at or resumed by hand.
"""

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments import prepare, registry
from experiments.config import BadInput, RunConfig, compose
from experiments.tasks import TASKS

KINDS = ("zo", "first_order", "untrained")


@dataclass(frozen=True)
class Cell:
    """One point of a method's grid; `variant` names its folder (None: the method has no grid)."""

    variant: str | None
    settings: dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A method of the table: what it is called there, its grid, its seeds (the first searches)."""

    name: str
    label: str
    method: str
    kind: str
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Job:
    """One run: its place in the table, its command line and its configuration."""

    model: str
    task: str
    column: Column
    cell: Cell
    seed: int
    overrides: tuple[str, ...]
    config: RunConfig

    @property
    def folder(self) -> Path:
        """Where its result will be."""
        return self.config.folder

    @property
    def name(self) -> str:
        """Model, task, method with its variant, and seed."""
        return "/".join(self.folder.parts[-4:])


@dataclass(frozen=True)
class Group:
    """The runs of one column for one model and task: a cell of the table."""

    model: str
    task: str
    column: Column
    search: tuple[Job, ...]  # every grid cell with the first seed
    others: Mapping[str | None, tuple[Job, ...]]  # variant -> its runs with the other seeds

    @property
    def name(self) -> str:
        """The group's key in choice.json."""
        return f"{self.model}/{self.task}/{self.column.name}"

    @property
    def forwards(self) -> int:
        """The forward passes of one of its runs (a backward counts two, evaluation none)."""
        if self.column.kind == "untrained":
            return 0
        config = self.search[0].config
        values = registry.settings(config.method, config.precision.rounding)
        optimizer = registry.rehearse(config.method["name"], values)
        return prepare.forwards(optimizer, prepare.steps(config, optimizer))


@dataclass(frozen=True)
class Suite:
    """A whole plan at one scale and budget."""

    name: str  # of the folder: <plan>-<scale>-<budget>
    about: dict[str, Any]  # what suite.json says
    folder: Path
    groups: tuple[Group, ...]


def read_suite(
    plan: str,
    scale: str,
    budget: str | None = None,
    tasks: Sequence[str] = (),
    given: Sequence[str] = (),
) -> Suite:
    """Read the plan of conf/experiment/<plan>.yaml.

    `budget` and `tasks` default to the plan's own; `given` overrides hold for every run.
    Raises BadInput for anything in it that no run could use.
    """
    preset = f"experiment={plan}"
    node = compose([preset]).plan
    if node is None:
        raise BadInput(f"{preset}: it has no plan; a suite needs one (see experiment=table1)")
    at = _named(node["scales"], "scale", scale)
    budget = budget or str(at["default_budget"])
    spent = _named(at["budgets"], "budget", budget)
    planned = at.get("tasks", node["tasks"])
    tasks = tuple(tasks or planned)
    for task in tasks:
        if task not in TASKS or task not in planned:
            raise BadInput(f"tasks={task}: not in the plan; allowed are {', '.join(planned)}")
    columns = _columns(node, at)
    name = f"{plan}-{scale}-{budget}"
    groups = []
    for model, task, column in itertools.product(at["models"], tasks, columns):
        overrides = [
            preset,
            f"suite={name}",
            f"model={model}",
            f"task={task}",
            f"method={column.method}",
            *at["overrides"],
            *at.get("task_overrides", {}).get(task, []),
            *spent.get(column.kind, spent["zo"]),
            *given,
        ]
        groups.append(_group(task, column, overrides))
    about = {
        "format": 1,
        "name": plan,
        "title": node["title"],
        "paper": node["paper"],
        "scale": scale,
        "budget": budget,
        "models": list(dict.fromkeys(group.model for group in groups)),
        "tasks": list(tasks),
        "seeds": list(columns[0].seeds),
        "search_seed": columns[0].seeds[0],
        "select_by": "dev_loss",
        "columns": [asdict(column) for column in columns],
    }
    first = groups[0].search[0].config
    return Suite(name, about, Path(first.out, first.suite), tuple(groups))


def _named(entries: Mapping[str, Any], what: str, name: str) -> Any:
    if name not in entries:
        raise BadInput(f"{what}={name}: unknown; allowed are {', '.join(entries)}")
    return entries[name]


def _columns(node: Mapping[str, Any], at: Mapping[str, Any]) -> tuple[Column, ...]:
    seeds = tuple(at.get("seeds", node["seeds"]))
    columns = []
    for name, entry in node["columns"].items():
        if entry["kind"] not in KINDS:
            raise BadInput(f"plan.columns.{name}.kind={entry['kind']}: allowed are {KINDS}")
        registry.method_class(entry["method"])
        own = tuple(entry.get("seeds", seeds))
        if not own or len(set(own)) < len(own):
            raise BadInput(f"plan.seeds={list(own)}: allowed are one or more different numbers")
        grid = at.get("grid", {}).get(name, {})
        if entry["kind"] != "untrained" and not grid:
            raise BadInput(
                f"plan: the grid of column {name} is missing; needed: method.lr at least"
            )
        cells = tuple(_cells(name, entry, grid))
        columns.append(Column(name, entry["label"], entry["method"], entry["kind"], cells, own))
    return tuple(columns)


def _cells(name: str, entry: Mapping[str, Any], grid: Mapping[str, Any]) -> Iterator[Cell]:
    fixed = dict(entry.get("settings", {}))
    for key in (*fixed, *grid):
        if not key.startswith("method."):
            raise BadInput(f"plan: column {name} sets {key}; allowed are keys of method.*")
    words = [name] if name != entry["method"] and fixed else []
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        own = [f"{key.removeprefix('method.')}{_word(value)}" for key, value in point.items()]
        yield Cell("-".join([*words, *own]) or None, fixed | point)


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _group(task: str, column: Column, overrides: list[str]) -> Group:
    base = compose(overrides)
    made: dict[tuple[str | None, int], Job] = {}
    for cell, seed in itertools.product(column.cells, column.seeds):
        config = copy.deepcopy(base)
        config.variant, config.seed = cell.variant, seed
        for key, value in cell.settings.items():
            config.method[key.removeprefix("method.")] = value
        registry.settings(config.method, config.precision.rounding)
        own = [f"{key}={value}" for key, value in cell.settings.items()]
        variant = [] if cell.variant is None else [f"variant={cell.variant}"]
        words = (*overrides, *own, *variant, f"seed={seed}")
        model = str(base.model.name)
        made[cell.variant, seed] = Job(model, task, column, cell, seed, words, config)
    first, *rest = column.seeds
    return Group(
        str(base.model.name),
        task,
        column,
        tuple(made[cell.variant, first] for cell in column.cells),
        {cell.variant: tuple(made[cell.variant, s] for s in rest) for cell in column.cells},
    )
