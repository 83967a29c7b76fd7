"""What a suite runs: models x tasks x columns x grid cells x seeds, from the `plan` of a preset.

A column of the table is a method with a grid of settings. Every cell of the grid is one run with
the first seed; the cell with the lowest dev loss is chosen by code, on dev alone, and only that one
is run with the other seeds. A plan may let grids be widened (`widen`). A column may
name an adapter (conf/adapter), which it tunes in place of the model's own weights. A run is an
ordinary run (experiments.run) of the same preset, in the folder that its configuration gives it, so
any of them can be made, looked at or resumed by hand.
"""

import copy
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.config.composed import compose
from experiments.config.errors import BadInput
from experiments.config.paths import user_path
from experiments.launch.job import Run
from experiments.methods import registry
from experiments.models.offload import check_offload
from experiments.suites.columns import (
    Cell,
    Column,
    columns_of,
    comparisons_of,
    named,
    part,
    seeds_of,
)
from experiments.tasks import TASKS
from experiments.training import budget

RESERVED = (
    "experiment", "plan", "suite", "model", "task", "method", "seed", "variant", "train.select_by",
    "adapter", "train.objective",
)  # fmt: skip


@dataclass(frozen=True)
class Job(Run):
    """One run and its place in the table."""

    column: Column
    cell: Cell
    seed: int


@dataclass(frozen=True)
class Group:
    """The runs of one column for one model and task: a cell of the table."""

    model: str  # its name without the adapter, which is the column's
    task: str
    column: Column
    search: tuple[Job, ...]  # every cell of the plan's grid with the first seed
    job: Callable[[Cell, int], Job]  # the run of a cell and a seed

    @property
    def name(self) -> str:
        """The group's key in choice.json."""
        return f"{self.model}/{self.task}/{self.column.name}"

    def others(self, cell: Cell) -> tuple[Job, ...]:
        """Return a cell's runs with the other seeds."""
        return tuple(self.job(cell, seed) for seed in self.column.seeds[1:])

    @property
    def jobs(self) -> tuple[Job, ...]:
        """Every run of the plan's grid that may be needed, whatever is chosen."""
        return (*self.search, *(job for own in self.search for job in self.others(own.cell)))

    @property
    def forwards(self) -> int:
        """The forward passes of one of its runs (a backward counts two, evaluation none)."""
        if self.column.kind == "untrained":
            return 0
        config = self.search[0].config
        values = registry.settings(config.method, config.precision.rounding)
        optimizer = registry.rehearse(config.method["name"], values)
        return budget.forwards(optimizer, budget.steps(config.train, optimizer))


@dataclass(frozen=True)
class Suite:
    """A whole plan at one scale and budget; `active` are the groups that are worked on now."""

    about: dict[str, Any]  # what suite.json says
    folder: Path
    groups: tuple[Group, ...]
    active: tuple[Group, ...]


def read_suite(
    plan: str,
    scale: str,
    budget: str | None = None,
    tasks: Sequence[str] = (),
    given: Sequence[str] = (),
    models: Sequence[str] = (),
) -> Suite:
    """Read the plan of conf/experiment/<plan>.yaml.

    `budget` and `models` default to the plan's own (other models get a folder of their own),
    `tasks` to all. In place of the plan's tasks they may be files of tasks of one's own, which get
    a folder of their own as well. `given` overrides hold for every run. Raises BadInput for
    anything that no run could use.
    """
    for override in given:
        if override.partition("=")[0].lstrip("+~") in RESERVED:
            raise BadInput(f"{override}: the plan sets it; see --scale, --models, --tasks")
    node = compose([f"experiment={plan}"]).plan
    if node is None:
        raise BadInput(f"experiment={plan}: it has no plan; a suite needs one (see table1)")
    at = named(part(node, "scales", dict), "scale", scale)
    chosen: str = budget or part(at, "default_budget", str)
    spent = named(part(at, "budgets", dict), "budget", chosen)
    columns = columns_of(node, at)
    own = [re.sub(r"[^\w.-]+", "_", Path(task).stem) for task in tasks if _is_file(task)]
    planned = tasks if own else at.get("tasks", node.get("tasks", []))
    wrong = [task for task in planned if not (task in TASKS or _is_file(task))]
    wrong += [task for task in tasks if task not in planned or (own and not _is_file(task))]
    if wrong or not planned:
        beside = " beside files" if own else ""
        raise BadInput(
            f"tasks={','.join(dict.fromkeys(wrong))}: not in the plan{beside}; allowed are "
            f"{'' if own else ', '.join(planned) + '; or '}YAML files of tasks of your own alone"
        )
    name = "-".join([plan, scale, chosen, *models, *own])
    groups = []
    for model, task, column in itertools.product(
        models or part(at, "models", list), dict.fromkeys(planned), columns
    ):
        overrides = [
            f"experiment={plan}",
            f"suite={name}",
            f"model={model}",
            *_task(task),
            f"method={column.method}",
            *part(at, "overrides", list),
            *spent.get(column.kind, part(spent, "zo", list)),
            *at.get("task_overrides", {}).get(task, []),
            *given,
        ]
        groups.append(_group(column, overrides))
    names = list(dict.fromkeys(group.task for group in groups))
    if len(names) < len(set(planned)):
        raise BadInput(
            f"tasks={','.join(planned)}: their names are {', '.join(names)}; allowed is another "
            "name: in each file"
        )
    _check_folders(groups)
    about = {
        "format": 1,
        "name": plan,
        "title": part(node, "title", str),
        "paper": node.get("paper"),
        "scale": scale,
        "budget": chosen,
        "given": list(given),
        "models": list(dict.fromkeys(group.model for group in groups)),
        "tasks": names,
        "seeds": list(seeds_of(node, at)),
        "search_seed": seeds_of(node, at)[0],
        "select_by": "dev_loss",
        "columns": [asdict(column) for column in columns],
        "comparisons": comparisons_of(node, columns),
    }
    first = groups[0].search[0].config
    active = [group for group in groups if own or not tasks or group.task in tasks]
    return Suite(about, Path(first.out, first.suite), tuple(groups), tuple(active))


def _check_folders(groups: Sequence[Group]) -> None:
    """Refuse a plan in which two runs would share a folder."""
    seen: set[Path] = set()
    for group in groups:
        for job in group.jobs:
            if job.folder in seen:
                raise BadInput(
                    f"plan: two runs of column {group.column.name} or its neighbours would share "
                    f"{job.folder}; needed: grid values that differ in their first six digits, and "
                    "columns that differ in method or settings"
                )
            seen.add(job.folder)


def _is_file(task: str) -> bool:
    """Tell whether a word for a task is a file, see experiments/config/own_task.py."""
    return task.endswith((".yaml", ".yml"))


def _task(task: str) -> list[str]:
    """Return the overrides that choose a task."""
    if not _is_file(task):
        return [f"task={task}"]
    path = str(user_path(task).absolute()).replace("\\", "\\\\").replace("'", "\\'")
    return ["task=custom", f"task.file='{path}'"]


def _group(column: Column, overrides: list[str]) -> Group:
    for override in overrides:
        if override.lstrip("+~").startswith("adapter"):
            raise BadInput(
                f"plan: {override}: allowed is the key adapter of a column, and adapter.* in its "
                "settings"
            )
    of_all, _ = _split(column.cells[0].settings)
    if column.adapter != "none":
        overrides = [*overrides, f"adapter={column.adapter}"]
    overrides = [*overrides, *_words(of_all)]
    base = compose(overrides)
    assert base.model.name is not None  # compose fills it in

    def job(cell: Cell, seed: int) -> Job:
        config = copy.deepcopy(base)
        config.variant, config.seed = cell.variant, seed
        _, of_method = _split(cell.settings)
        for key, value in of_method.items():
            config.method[key.removeprefix("method.")] = value
        registry.settings(config.method, config.precision.rounding)
        registry.check_fit(config)
        check_offload(config)
        variant = [] if cell.variant is None else [f"variant={cell.variant}"]
        words = (*overrides, *_words(of_method), *variant, f"seed={seed}")
        return Job(words, config, column, cell, seed)

    search = tuple(job(cell, column.seeds[0]) for cell in column.cells)
    return Group(base.model.name, base.task.name, column, search, job)


def _split(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part a cell's settings into those that a column's runs share and those of the method."""
    of_method = {key: value for key, value in settings.items() if key.startswith("method.")}
    return {key: value for key, value in settings.items() if key not in of_method}, of_method


def _words(settings: Mapping[str, Any]) -> list[str]:
    """Write settings as overrides of a command line."""
    return [f"{key}={'null' if value is None else value}" for key, value in settings.items()]
