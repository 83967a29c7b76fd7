"""The notes under a suite's table: what its numbers stand on, and what is missing."""

import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from analysis.reading.cells import Cells
from analysis.reading.load import value
from analysis.reading.suite import Column, Suite
from analysis.reading.suite_run import Run
from analysis.tables.table import EQUAL, METRIC_NAMES, SANITY, commits, listed

BUDGETS = {
    "steps": "Budget: equal steps, as in the paper: every zeroth-order method takes the same "
    "number of steps, first order its own.",
    "forwards": "Budget: equal forward passes for every method that trains.",
    "examples": "Budget: equal numbers of examples passed through the model, forward passes times "
    "batch, for every column that trains.",
}
SHOWN_STRAYS = 10


def runs_of(cells: Cells) -> list[Run]:
    """List the runs that a table shows."""
    return [run for cell in cells.values() for run in cell.runs.values()]


def notes(suite: Suite, cells: Cells, paper: str, left_over: list[Path]) -> list[str]:
    """Write all notes of a table."""
    runs = runs_of(cells)
    rows = [run.row for run in runs]
    lines = [SANITY] if any(row["pocket"] for row in rows) else []
    lines += [
        "Per cent on the evaluation split of the checkpoint with the lowest dev loss. Mean ± "
        "sample standard deviation (n - 1) over the seeds; one run shows none. Bold: highest "
        "complete zeroth-order mean of the row, at the digits shown. Mean row: mean over tasks, "
        "± over the seeds' means" + _mixed(rows) + ".",
        *_budget(suite, cells),
        _seeds(suite),
    ]
    if runs:
        trained = [row for row in rows if row["forwards"] > 0]
        if suite.given:
            lines.append(f"Overrides of the plan, for every run: {' '.join(suite.given)}.")
        lines += [
            f"Batch: {listed(trained, 'batch_size')}; embeddings: {listed(trained, 'embeddings')}; "
            f"dev: {listed(rows, 'dev_n')} examples. Evaluation: {_tasks(suite, cells)}.",
            f"{_model(cells)}. Precision: {_precisions(runs)}. Device: {_devices(runs)}. "
            f"Code: {commits(rows)}.",
            *_tuned(suite, cells),
            *_truncated(suite, cells),
            *_demonstrations(suite, cells),
            *_chance(suite, cells),
            *_local(rows),
        ]
    lines.append(paper)
    lines += _gaps(suite, cells)
    if left_over:
        names = [suite.relative(path) for path in left_over]
        more = f" and {len(names) - SHOWN_STRAYS} more" if len(names) > SHOWN_STRAYS else ""
        told = ", ".join(names[:SHOWN_STRAYS])
        lines.append(f"Not used, since no cell of the plan has them: {told}{more}.")
    return lines


def _budget(suite: Suite, cells: Cells) -> list[str]:
    """Say what is equal, with the real numbers, and whether it is."""
    lines = [
        BUDGETS[suite.budget] + " Forwards: a pass of the batch counts one, a backward two, "
        "evaluation none."
    ]
    numbers = []
    for column in suite.columns:
        rows = [run.row for run in _of_column(suite, cells, column)]
        if rows and column.kind != "untrained":
            steps, forwards = (_span(rows, key) for key in ("steps", "forwards"))
            numbers.append(f"{column.label} {steps} and {forwards}")
    if numbers:
        lines.append(f"Steps and forwards of each run: {'; '.join(numbers)}.")
    kinds = ("zo",) if suite.budget == "steps" else ("zo", "first_order")
    for task in suite.tasks:
        used = {
            column.label: [run.row[suite.budget] for run in cells[task, column.name].runs.values()]
            for column in suite.columns
            if column.kind in kinds
        }
        every = [number for numbers in used.values() for number in numbers]
        slack = 0.0 if suite.budget == "steps" else EQUAL
        if every and max(every) - min(every) > slack * max(every):
            told = ", ".join(
                f"{label} {' and '.join(f'{number:,}' for number in sorted(set(numbers)))}"
                for label, numbers in used.items()
                if numbers
            )
            lines.append(f"{task}: NOT at equal {suite.budget} ({told}): no comparison of methods.")
    return lines


def _seeds(suite: Suite) -> str:
    """Name the planned seeds, and the columns with others."""
    words = f"Seeds: {_join(suite.seeds)} (n = {len(suite.seeds)})"
    other = [column for column in suite.columns if column.seeds != suite.seeds]
    words += "".join(f"; {c.label}: {_join(c.seeds)} (n = {len(c.seeds)})" for c in other)
    return words + "."


def _tasks(suite: Suite, cells: Cells) -> str:
    told = []
    for task in suite.tasks:
        runs = [run for col in suite.columns for run in cells[task, col.name].runs.values()]
        if runs:
            row = runs[0].row
            metric = METRIC_NAMES[row["metric"]]
            told.append(f"{task} {row['eval_n']:,} ({metric}, version {row['task_version']})")
    return ", ".join(told)


def _mixed(rows: list[dict[str, Any]]) -> str:
    metrics = sorted({METRIC_NAMES[row["metric"]] for row in rows})
    return f" (of {' and '.join(metrics)} alike)" if len(metrics) > 1 else ""


def _chance(suite: Suite, cells: Cells) -> list[str]:
    """Give chance for each task, and name the tasks on which first order stays near it."""
    told, near = [], []
    for task in suite.tasks:
        runs = [run for col in suite.columns for run in cells[task, col.name].runs.values()]
        chance = next((c for run in runs if (c := run.record.get("chance")) is not None), None)
        if chance is None:
            continue
        told.append(f"{task} {100 * chance:.1f}")
        margin = 2 * math.sqrt(chance * (1 - chance) / runs[0].row["eval_n"])
        first = [cells[task, c.name] for c in suite.columns if c.kind == "first_order"]
        if any(
            cell.complete and statistics.fmean(cell.scores.values()) < 100 * (chance + margin)
            for cell in first
        ):
            near.append(task)
    if not told:
        return []
    words = f"Chance, the best single answer for all examples: {', '.join(told)}."
    if near:
        words += (
            f" First order stays within two standard errors of it on {', '.join(near)}: what the "
            "zeroth-order methods do there says nothing."
        )
    return [words]


def _local(rows: list[dict[str, Any]]) -> list[str]:
    """Warn where the splits may not be the official ones."""
    if not any(row["data"] == "local" for row in rows):
        return []
    return [
        "Data from local files: comparable with published scores only where the splits and their "
        "sizes are the official ones."
    ]


def _demonstrations(suite: Suite, cells: Cells) -> list[str]:
    """Say how many demonstrations in-context learning asked for, and how many it could use."""
    told, asked = [], set()
    for task in suite.tasks:
        for column in suite.columns:
            for run in list(cells[task, column.name].runs.values())[:1]:
                used = run.record.get("demonstrations")
                if used:
                    asked.add(used["requested"])
                    low, mean, high = (used["eval"][key] for key in ("min", "mean", "max"))
                    told.append(f"{task} {mean:.1f} ({low} to {high})")
    if not told:
        return []
    return [
        f"Demonstrations in context: {_join(tuple(sorted(asked)))} asked for; used on average, as "
        f"many as fit the maximal length: {', '.join(told)}."
    ]


def _tuned(suite: Suite, cells: Cells) -> list[str]:
    """Say how many numbers each column tunes, where they are not all of one model's weights."""
    if all(column.adapter == "none" for column in suite.columns):
        return []
    told = []
    for column in suite.columns:
        runs = _of_column(suite, cells, column)
        if runs and column.kind != "untrained":
            key = "tuned_parameters"
            numbers = [{key: value(run.record, key, (int,), run.path)} for run in runs]
            told.append(f"{column.label} {_span(numbers, key)}")
    return [f"Tuned parameters: {'; '.join(told)}."] if told else []


def _truncated(suite: Suite, cells: Cells) -> list[str]:
    """Name the tasks and columns in which examples did not fit the length and were cut."""
    told = []
    for task in suite.tasks:
        for column in suite.columns:
            runs = cells[task, column.name].runs.values()
            cut = max((run.record.get("truncated", {}).get("eval", 0) for run in runs), default=0)
            told += [f"{task}, {column.label} {cut:,}"] if cut else []
    return [f"Evaluation examples cut to the maximal length: {'; '.join(told)}."] if told else []


def _gaps(suite: Suite, cells: Cells) -> list[str]:
    """Say why each incomplete cell is incomplete, and which means are therefore not given."""
    lines = []
    for column in suite.columns:
        lacking = [task for task in suite.tasks if not cells[task, column.name].complete]
        for task in lacking:
            for gap in cells[task, column.name].gaps:
                lines.append(f"† {task}, {column.label}: {gap}")
        if lacking:
            lines.append(f"† mean, {column.label}: not given, incomplete: {', '.join(lacking)}")
    return lines


def _of_column(suite: Suite, cells: Cells, column: Column) -> list[Run]:
    return [run for task in suite.tasks for run in cells[task, column.name].runs.values()]


def _model(cells: Cells) -> str:
    """Identify the model: its name, source and size, and the commit or hash of its files."""
    cell = next(cell for cell in cells.values() if cell.runs)
    model: dict[str, Any] = next(iter(cell.runs.values())).record["model"]
    mark = model.get("commit") or model.get("sha256")
    words = [f"Model: {cell.model} ({model.get('source')}"]
    words += [f"{model['parameters']:,} parameters"] if "parameters" in model else []
    words += [f"{'commit' if model.get('commit') else 'sha256'} {mark[:10]}"] if mark else []
    return ", ".join(words) + ")"


def _precisions(runs: list[Run]) -> str:
    return _different(runs, lambda run: str(run.record["config"].get("precision", {}).get("dtype")))


def _devices(runs: list[Run]) -> str:
    def name(run: Run) -> str:
        machine = run.record["machine"]
        return machine["device"] + (f" ({n})" if (n := machine.get("device_name")) else "")

    return _different(runs, name)


def _different(runs: list[Run], what: Callable[[Run], str]) -> str:
    return ", ".join(sorted({what(run) for run in runs}))


def _span(rows: list[dict[str, Any]], key: str) -> str:
    ends = sorted({row[key] for row in rows})
    return f"{ends[0]:,}" if len(ends) == 1 else f"{ends[0]:,} to {ends[-1]:,}"


def _join(seeds: tuple[int, ...]) -> str:
    return ", ".join(map(str, seeds))
