"""The plan of a suite: what `suite.json` says there will be, typed and checked.

A suite compares methods (columns) on tasks (rows), per model. Each column has a small grid of
settings (cells): every cell runs with the search seed, the cell with the lowest dev loss is chosen,
and the other seeds run with that one. This file reads the plan; `cells` reads the runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.reading.load import RESULT, ResultError, read_json, value

PLAN, CHOICE, FAILED = "suite.json", "choice.json", "failed.json"
FORMAT = 1
BUDGETS = ("steps", "forwards", "examples")
KINDS = ("first_order", "zo", "untrained")
COMPARED = (("agzo", "mezo"), ("agzo", "lozo"))  # of a plan that names none: older ones
LABELS = {
    "first_order": "first order", "agzo": "AGZO", "mezo": "MeZO", "lozo": "LOZO",
    "lozo_m": "LOZO-M", "fzoo": "FZOO", "hizoo": "HiZOO", "conmezo": "ConMeZO",
    "subzero": "SubZero+", "zo_muon": "ZO-Muon", "aim_zo": "AIM-ZO", "grzo": "GRZO",
    "deepzero": "DeepZero", "zo_act": "ZO-Act", "dominant_layer": "dominant layer",
    "zero_shot": "zero-shot", "icl": "in-context",
}  # fmt: skip


@dataclass(frozen=True)
class GridCell:
    """One point of a column's grid."""

    variant: str | None
    settings: dict[str, Any]  # dotted keys of the configuration

    @property
    def name(self) -> str:
        """Return the variant as tables show it."""
        return self.variant or "-"


@dataclass(frozen=True)
class Column:
    """One method as a column: its grid and its seeds."""

    name: str
    label: str
    method: str
    kind: str  # first_order, zo or untrained
    cells: tuple[GridCell, ...]
    seeds: tuple[int, ...]
    search_seed: int  # of the runs that the choice is made from
    adapter: str = "none"  # what is tuned in place of the model's own weights
    widen: int = 0  # learning rates that a choice may add on each side of the grid

    def model(self, model: str) -> str:
        """Return what its runs call a model: with the adapter behind a plus."""
        return model if self.adapter == "none" else f"{model}+{self.adapter}"

    @property
    def searched(self) -> bool:
        """Say whether there is anything to choose."""
        return len(self.cells) > 1


@dataclass(frozen=True)
class Suite:
    """A whole plan and the folder it stands in."""

    folder: Path
    name: str
    title: str
    scale: str
    budget: str  # of BUDGETS: what is equal over the methods
    models: tuple[str, ...]
    tasks: tuple[str, ...]
    columns: tuple[Column, ...]
    seeds: tuple[int, ...]
    paper: str | None
    given: tuple[str, ...] = ()  # overrides that every run had beside the plan
    comparisons: tuple[tuple[str, str, str], ...] = ()  # hypothesis, better column, worse column

    def run_folder(self, model: str, task: str, column: Column, cell: GridCell, seed: int) -> Path:
        """Return the folder of one run."""
        name = column.method + (f"+{cell.variant}" if cell.variant else "")
        return self.folder / column.model(model) / task / name / f"seed{seed}"

    def column(self, name: str) -> Column | None:
        """Return a column by its name."""
        return next((column for column in self.columns if column.name == name), None)

    def relative(self, path: Path) -> str:
        """Write a path as seen from the suite's folder: tables name no machine's folders."""
        return path.relative_to(self.folder).as_posix()


def load_suite(folder: Path) -> Suite:
    """Read and check the plan of a suite's folder."""
    path = folder / PLAN
    if not path.is_file():
        raise ResultError(
            f"{path}: no such file; expected the folder of a suite, which has {PLAN} beside its "
            f"runs (single runs with their {RESULT}: python -m analysis.tables.table)"
        )
    plan = read_json(path)
    _one_of(plan, "format", (FORMAT,), path)
    _one_of(plan, "budget", BUDGETS, path)
    _one_of(plan, "select_by", ("dev_loss",), path)
    seeds = _numbers(plan, "seeds", path)
    search_seed = value(plan, "search_seed", (int,), path)
    columns = tuple(
        _column(column, f"columns[{i}]", (seeds, search_seed), path)
        for i, column in enumerate(_filled(plan, "columns", path))
    )
    suite = Suite(
        folder,
        value(plan, "name", (str,), path),
        value(plan, "title", (str,), path),
        value(plan, "scale", (str,), path),
        plan["budget"],
        _names(plan, "models", path),
        _names(plan, "tasks", path),
        columns,
        seeds,
        value(plan, "paper", (str, type(None)), path),
        tuple(map(str, plan.get("given", ()))),
        _comparisons(plan, [column.name for column in columns], path),
    )
    _distinct("columns", [column.name for column in columns], path)
    runs = [(c.adapter, c.method, cell.variant) for c in columns for cell in c.cells]
    _distinct("columns (adapter, method, variant)", runs, path)
    return suite


def _comparisons(
    plan: Mapping[str, Any], columns: list[str], path: Path
) -> tuple[tuple[str, str, str], ...]:
    """Read the hypotheses; a plan of before there were any compares AGZO with MeZO and LOZO."""
    if "comparisons" not in plan:
        pairs = [("", one, other) for one, other in COMPARED]
        return tuple(each for each in pairs if {*each[1:]} <= {*columns})
    found = []
    for name, pair in value(plan, "comparisons", (dict,), path).items():
        if not (isinstance(pair, list) and len(pair) == 2 and {*pair} <= {*columns}):
            raise ResultError(f"{path}: key comparisons.{name} is {pair!r}; expected two columns")
        found.append((name, *pair))
    return tuple(found)


def _column(entry: Any, where: str, shared: tuple[tuple[int, ...], int], path: Path) -> Column:
    """Read a column; `shared` has the suite's seeds and search seed, unless it names its own."""
    if not isinstance(entry, Mapping):
        raise ResultError(f"{path}: key {where} is {entry!r}; expected an object")
    try:
        name: str = value(entry, "name", (str,), path)
        label = value(entry, "label", (str, type(None)), path) if "label" in entry else None
        _one_of(entry, "kind", KINDS, path)
        seeds, search_seed = shared
        if entry.get("seeds", list(seeds)) != list(seeds):
            seeds = _numbers(entry, "seeds", path)
            search_seed = search_seed if search_seed in seeds else seeds[0]
        cells = tuple(_cell(cell, path) for cell in _filled(entry, "cells", path))
        _distinct("cells (variant)", [cell.variant for cell in cells], path)
        return Column(
            name,
            label or LABELS.get(name, name),
            value(entry, "method", (str,), path),
            entry["kind"],
            cells,
            seeds,
            search_seed,
            value({"adapter": "none"} | dict(entry), "adapter", (str,), path),
            value({"widen": 0} | dict(entry), "widen", (int,), path),
        )
    except ResultError as error:
        raise ResultError(f"{error} (in {where})") from None


def _cell(entry: Any, path: Path) -> GridCell:
    if not isinstance(entry, Mapping):
        raise ResultError(f"{path}: key cells holds {entry!r}; expected objects")
    settings = value(entry, "settings", (dict,), path)
    return GridCell(value(entry, "variant", (str, type(None)), path), settings)


def _filled(node: Mapping[str, Any], key: str, path: Path) -> list[Any]:
    items = value(node, key, (list,), path)
    if not items:
        raise ResultError(f"{path}: key {key} is []; expected at least one entry")
    return items


def _names(node: Mapping[str, Any], key: str, path: Path) -> tuple[str, ...]:
    names = _filled(node, key, path)
    if not all(isinstance(name, str) for name in names):
        raise ResultError(f"{path}: key {key} is {names!r}; expected names")
    _distinct(key, names, path)
    return tuple(names)


def _numbers(node: Mapping[str, Any], key: str, path: Path) -> tuple[int, ...]:
    numbers = _filled(node, key, path)
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
        raise ResultError(f"{path}: key {key} is {numbers!r}; expected whole numbers")
    _distinct(key, numbers, path)
    return tuple(numbers)


def _one_of(node: Mapping[str, Any], key: str, allowed: tuple[Any, ...], path: Path) -> None:
    found = value(node, key, tuple({type(one) for one in allowed}), path)
    if found not in allowed:
        expected = ", ".join(map(repr, allowed))
        raise ResultError(f"{path}: key {key} is {found!r}; allowed: {expected}")


def _distinct(key: str, items: list[Any], path: Path) -> None:
    twice = [item for i, item in enumerate(items) if item in items[:i]]
    if twice:
        raise ResultError(f"{path}: key {key} names {twice[0]!r} twice")
