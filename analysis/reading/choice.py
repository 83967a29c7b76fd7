"""The search of one cell: what `choice.json` says, held against the plan and the results.

The choice is the grid cell with the lowest dev loss. It is read, not made: a choice that the
results contradict is an error, since the other seeds ran with it. Cells that were added because the
best learning rate lay at the grid's edge stand in choice.json alone; they must differ from a
planned cell in nothing but that.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.reading.load import ResultError, value
from analysis.reading.suite import CHOICE, Column, GridCell, Suite
from analysis.reading.suite_run import Run, find_run, short

DEV_KEYS = ("loss", "accuracy", "f1", "n")  # the others are times
FINAL = ("finished", "diverged", "failed")
OPEN = ("missing", "busy", "interrupted")  # nothing can be chosen yet
LR = "method.lr"  # the setting of which a choice may add values


@dataclass(frozen=True)
class Tried:
    """One grid point on dev: its scores, or why it has none."""

    cell: GridCell
    status: str
    dev: dict[str, Any] | None
    error: str | None


class Grid:
    """The search of one cell: what choice.json says, held against the results there are."""

    def __init__(
        self, suite: Suite, model: str, task: str, column: Column, choice: Mapping[str, Any]
    ) -> None:
        """Read the search runs and the entry of choice.json, and compare the two."""
        self.suite, self.column = suite, column
        self.path = suite.folder / CHOICE
        self.key = f"{model}/{task}/{column.name}"
        self.entry: Mapping[str, Any] | None = None
        self.cells = column.cells
        if self.key in choice:
            entry = choice[self.key]
            if not isinstance(entry, Mapping):
                raise self.wrong(f"is {entry!r}; expected an object")
            self.entry = entry
            self.cells = (*column.cells, *self.added())
        self.folders = {
            point.variant: suite.run_folder(model, task, column, point, column.search_seed)
            for point in self.cells
        }
        self.found: dict[Path, Run] = {}
        for point in self.cells:
            run = find_run(suite, model, task, column, point, column.search_seed)
            if run is not None:
                self.found[self.folders[point.variant]] = run
        self.borrowed = 0
        self.tried: tuple[Tried, ...] = tuple(self.read_tried()) if self.entry is not None else ()

    def wrong(self, what: str) -> ResultError:
        """Return an error about this cell's entry."""
        return ResultError(f"{self.path}: key {self.key} {what}")

    def listed(self) -> dict[str | None, Mapping[str, Any]]:
        """Return the entry's cells by variant."""
        assert self.entry is not None
        listed = _get(self.entry, "cells", (list,), self.path, self.key)
        by_variant = {}
        for one in listed:
            if not isinstance(one, Mapping):
                raise self.wrong(f"cells holds {one!r}; expected objects")
            by_variant[_get(one, "variant", (str, type(None)), self.path, self.key)] = one
        if len(by_variant) != len(listed):
            raise self.wrong(f"lists {len(listed)} cells, {len(by_variant)} of them different")
        return by_variant

    def added(self) -> list[GridCell]:
        """Return the cells that the choice added to the plan's grid, which must allow it."""
        planned = {point.variant for point in self.column.cells}
        others = [_without_lr(point.settings) for point in self.column.cells]
        cells = []
        for variant, one in self.listed().items():
            settings = _get(one, "settings", (dict,), self.path, self.key)
            alike = LR in settings and _without_lr(settings) in others
            if variant not in planned and self.column.widen and alike:
                cells.append(GridCell(variant, settings))
        if len(cells) > 2 * self.column.widen:
            raise self.wrong(f"adds {len(cells)} cells; allowed are {self.column.widen} on a side")
        return cells

    def read_tried(self) -> list[Tried]:
        """Check the entry's cells against the plan and against the results."""
        by_variant = self.listed()
        planned = {point.variant: point.settings for point in self.cells}
        noted = {
            variant: _get(one, "settings", (dict,), self.path, self.key)
            for variant, one in by_variant.items()
        }
        if noted != planned:
            raise self.wrong(
                f"lists the cells {noted}, suite.json plans {planned}; the plan has changed: "
                "choose again by running the suite"
            )
        return [self.read_one(point, by_variant[point.variant]) for point in self.cells]

    def read_one(self, point: GridCell, one: Mapping[str, Any]) -> Tried:
        """Check one grid point's entry."""
        where = f"{self.key} cell {point.name}"
        status = _get(one, "status", (str,), self.path, where)
        if status not in FINAL + OPEN:
            allowed = ", ".join(FINAL + OPEN)
            raise self.wrong(f"cell {point.name} has status {status!r}; allowed: {allowed}")
        dev = _get(one, "dev", (dict, type(None)), self.path, where)
        error = _get(one, "error", (str, type(None)), self.path, where)
        run = self.found.get(self.folders[point.variant])
        if status == "finished":
            if dev is None:
                raise self.wrong(f"cell {point.name} is finished but its dev is null")
            _get(one, "dev.loss", (int, float), self.path, where)
            if run is not None:
                self.same_dev(point, dev, run)
            elif self.column.searched:
                self.borrowed += 1
        elif dev is not None:
            raise self.wrong(f"cell {point.name} is {status} but has dev numbers {dev}")
        elif run is not None and self.entry is not None and self.entry.get("chosen") is not None:
            raise self.wrong(
                f"cell {point.name} is {status}, but {run.path} is finished; the choice is older "
                "than the results: choose again by running the suite"
            )
        return Tried(point, status, dev, error)

    def same_dev(self, point: GridCell, dev: Mapping[str, Any], run: Run) -> None:
        """Compare the dev numbers of choice.json with those of the run itself."""
        theirs = run.record["dev"]
        for key in DEV_KEYS:
            if (key in dev or key == "loss") and dev.get(key) != theirs.get(key):
                raise self.wrong(
                    f"cell {point.name} has dev.{key} {dev.get(key)!r}, {run.path} has "
                    f"{theirs.get(key)!r}; choose again by running the suite"
                )

    def chosen(self, gaps: list[str]) -> GridCell | None:
        """Return the chosen grid point, or None and say in `gaps` what the search lacks."""
        if not self.column.searched:
            return self.column.cells[0]
        if self.entry is None:
            gaps.append(f"grid not chosen yet: {CHOICE} has no entry {self.key}")
            return None
        variant = _get(self.entry, "chosen", (str, type(None)), self.path, self.key)
        absent = [one for one in self.tried if one.status in OPEN]
        if variant is None:
            gaps.append(self.unfinished(absent))
            return None
        by_variant = {one.cell.variant: one for one in self.tried}
        if variant not in by_variant:
            raise self.wrong(f"chooses {variant!r}, which is no cell of the plan")
        if absent:
            raise self.wrong(
                f"chooses {variant} although cell {absent[0].cell.name} is {absent[0].status}; "
                "finish the grid by running the suite"
            )
        pick = by_variant[variant]
        if pick.dev is None:
            raise self.wrong(f"chooses {variant}, which is {pick.status}")
        best = min((one for one in self.tried if one.dev is not None), key=_loss)
        if _loss(pick) > _loss(best):
            raise self.wrong(
                f"chooses {variant} with dev loss {_loss(pick)}, but {best.cell.name} has "
                f"{_loss(best)}; the lowest is to be chosen: choose again by running the suite"
            )
        return pick.cell

    def unfinished(self, absent: list[Tried]) -> str:
        """Say why nothing is chosen."""
        total = len(self.tried)
        failed = [one for one in self.tried if one.status in ("failed", "diverged")]
        if not absent and len(failed) == total:
            folder = self.folders[failed[0].cell.variant]
            return (
                f"all {total} grid cells failed, first with {short(failed[0].error)}: "
                f"{self.suite.relative(folder)}"
            )
        undone = absent or [one for one in failed if one.status == "failed"]
        if undone:
            folder = self.folders[undone[0].cell.variant]
            return (
                f"grid not finished: {len(undone)} of {total} cells not done, first "
                f"{self.suite.relative(folder)} ({undone[0].status})"
            )
        return f"grid finished but {CHOICE} names no choice ({self.key}); run the suite again"


def _without_lr(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: setting for key, setting in settings.items() if key != LR}


def _loss(one: Tried) -> float:
    assert one.dev is not None
    return one.dev["loss"]


def _get(node: Mapping[str, Any], key: str, kinds: tuple[type, ...], path: Path, where: str) -> Any:
    try:
        return value(node, key, kinds, path)
    except ResultError as error:
        raise ResultError(f"{error} (in {where})") from None
