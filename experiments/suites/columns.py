"""The columns of a plan: methods with their grids of settings, read and checked.

    columns:
      lora_agzo: {method: agzo, adapter: lora, kind: zo, label: "LoRA, AGZO", settings: {...}}
    grid:
      lora_agzo: {method.lr: [1.0e-2, 3.0e-2], method.eps: [1.0e-2]}

`adapter` (an option of conf/adapter), `settings` (keys of `OWN` groups and `SPENDING`) and `seeds`
may be left out; seeds are then those of the scale or the plan. A scale may have a list `columns` of
those that it has, and `widen`, how many learning rates may be added on each side of every grid
(`widen`), 0 if left out.

    comparisons:
      H1: [agzo_frozen, mezo_frozen]

are the hypotheses, fixed before their runs: that the first column scores higher than the second.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.config.errors import BadInput
from experiments.methods import registry
from experiments.suites.widen import LR, on_grid

KINDS = ("zo", "first_order", "untrained")
SPENDING = ("train.batch_size", "train.accumulation", "train.forwards")  # what a step takes
OWN = ("method.", "adapter.", "precision.")  # groups whose keys a column may set
COLUMN = ("method", "kind", "label", "adapter", "settings", "seeds")  # keys of a column


@dataclass(frozen=True)
class Cell:
    """One point of a method's grid; `variant` names its folder (None: the method has no grid)."""

    variant: str | None
    settings: dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A method of the table: what it is called there, its grid, its seeds (the first searches).

    `adapter` is what it tunes, an option of conf/adapter; the settings of its cells hold keys of
    method.*, and other keys that are the same in all of them.
    """

    name: str
    label: str
    method: str
    adapter: str
    kind: str
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]
    grid: tuple[str, ...]  # the keys that its cells vary
    widen: int  # learning rates that may be added on each side of the grid

    def cell(self, settings: Mapping[str, Any]) -> Cell:
        """Return the cell with these settings, which need not be one of the plan's."""
        return _cell(self.name, self.method, self.grid, settings)


def columns_of(node: Mapping[str, Any], at: Mapping[str, Any]) -> tuple[Column, ...]:
    """Read the columns of a plan `node` at the scale `at`."""
    every = part(node, "columns", dict)
    entries = {name: named(every, "plan.columns", name) for name in at.get("columns", every)}
    grids = at.get("grid", {})
    for name in grids:
        named(entries, "plan.grid", name)
    columns = []
    for name, entry in entries.items():
        kind, method, label = (part(entry, key, str) for key in ("kind", "method", "label"))
        if kind not in KINDS:
            raise BadInput(f"plan.columns.{name}.kind={kind}: allowed are {', '.join(KINDS)}")
        for key in entry:
            named(dict.fromkeys(COLUMN), f"plan.columns.{name}", key)
        registry.method_class(method)
        adapter = part({"adapter": "none"} | entry, "adapter", str)
        grid = grids.get(name, {})
        if kind != "untrained" and not grid:
            raise BadInput(f"plan: the grid of column {name} is missing; needed: method.lr")
        widen = _widen(at, name, grid)
        seeds = seeds_of(node, at, entry)
        cells = tuple(_cells(name, entry, grid))
        columns.append(Column(name, label, method, adapter, kind, cells, seeds, tuple(grid), widen))
    return tuple(columns)


def comparisons_of(node: Mapping[str, Any], columns: Sequence[Column]) -> dict[str, list[str]]:
    """Return the plan's hypotheses whose columns this scale has: name -> better, worse."""
    names = [column.name for column in columns]
    found = {}
    for name, pair in node.get("comparisons", {}).items():
        known = isinstance(pair, list) and len(pair) == 2 and set(pair) <= node["columns"].keys()
        if not known:
            raise BadInput(f"plan.comparisons.{name}={pair}: allowed are two names of columns")
        if set(pair) <= set(names):
            found[str(name)] = pair
    return found


def _widen(at: Mapping[str, Any], name: str, grid: Mapping[str, Any]) -> int:
    widen = at.get("widen", 0)
    if isinstance(widen, bool) or not isinstance(widen, int) or widen < 0:
        raise BadInput(f"plan.widen={widen}: allowed are whole numbers, 0 or more")
    wrong = [lr for lr in grid.get(LR, ()) if not on_grid(lr)] if widen else []
    if wrong:
        raise BadInput(
            f"plan: the grid of column {name} has {LR}={wrong[0]}; with widen={widen} allowed are "
            "1 or 3 times a power of ten"
        )
    return widen


def _cells(name: str, entry: Mapping[str, Any], grid: Mapping[str, Any]) -> Iterator[Cell]:
    fixed = dict(entry.get("settings", {}))
    for key in fixed:
        if not key.startswith(OWN) and key not in SPENDING:
            groups = ", ".join(f"{group}*" for group in OWN)
            raise BadInput(
                f"plan: column {name} sets {key}; allowed are keys of {groups} and "
                f"{', '.join(SPENDING)}"
            )
    for key in grid:
        if not key.startswith("method."):
            raise BadInput(
                f"plan: the grid of column {name} varies {key}; allowed are keys of method.*"
            )
        part(grid, key, list)
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        yield _cell(name, entry["method"], tuple(grid), fixed | point)


def _cell(name: str, method: str, grid: Sequence[str], settings: Mapping[str, Any]) -> Cell:
    own = [f"{key.removeprefix('method.')}{_word(settings[key])}" for key in grid]
    words = [name] if name != method and len(settings) > len(grid) else []
    return Cell("-".join([*words, *own]) or None, dict(settings))


def part(node: Mapping[str, Any], key: str, kind: type) -> Any:
    """Return an entry of a plan, or say that it is missing or of another kind."""
    value = node.get(key)
    if not isinstance(value, kind) or not value:
        raise BadInput(f"plan: {key} is {value!r}; needed: a {kind.__name__} with something in it")
    return value


def named(entries: Mapping[str, Any], what: str, name: str) -> Any:
    """Return an entry by its name, or say which there are."""
    if name not in entries:
        raise BadInput(f"{what}={name}: unknown; allowed are {', '.join(entries)}")
    return entries[name]


def seeds_of(*nodes: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the seeds of the last node that has any."""
    seeds = next((node["seeds"] for node in reversed(nodes) if "seeds" in node), None)
    whole = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not seeds or not whole or len(set(seeds)) < len(seeds):
        raise BadInput(f"plan.seeds={seeds}: allowed are one or more different whole numbers")
    return tuple(seeds)


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
