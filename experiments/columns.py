"""The columns of a plan: methods with their grids of settings, read and checked.

    columns:
      lora_agzo: {method: agzo, adapter: lora, kind: zo, label: "LoRA, AGZO", settings: {...}}
    grid:
      lora_agzo: {method.lr: [1.0e-2, 3.0e-2], method.eps: [1.0e-2]}

`adapter` (an option of conf/adapter), `settings` and `seeds` may be left out; seeds are then those
of the scale or the plan.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from experiments import registry
from experiments.config import BadInput

KINDS = ("zo", "first_order", "untrained")
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
    method.*, and keys of adapter.* that are the same in all of them.
    """

    name: str
    label: str
    method: str
    adapter: str
    kind: str
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]


def columns_of(node: Mapping[str, Any], at: Mapping[str, Any]) -> tuple[Column, ...]:
    """Read the columns of a plan `node` at the scale `at`."""
    entries = part(node, "columns", dict)
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
        cells = tuple(_cells(name, entry, grid))
        columns.append(Column(name, label, method, adapter, kind, cells, seeds_of(node, at, entry)))
    return tuple(columns)


def _cells(name: str, entry: Mapping[str, Any], grid: Mapping[str, Any]) -> Iterator[Cell]:
    fixed = dict(entry.get("settings", {}))
    for key in fixed:
        if not key.startswith(("method.", "adapter.")):
            raise BadInput(
                f"plan: column {name} sets {key}; allowed are keys of method.* and adapter.*"
            )
    for key in grid:
        if not key.startswith("method."):
            raise BadInput(
                f"plan: the grid of column {name} varies {key}; allowed are keys of method.*"
            )
        part(grid, key, list)
    words = [name] if name != entry["method"] and fixed else []
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        own = [f"{key.removeprefix('method.')}{_word(value)}" for key, value in point.items()]
        yield Cell("-".join([*words, *own]) or None, fixed | point)


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
