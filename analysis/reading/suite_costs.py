"""What each column cost in what was run, and what it came to: one row for a task and a column."""

import statistics
from typing import Any

from analysis.reading.cells import Cell, Cells
from analysis.reading.suite import Suite
from analysis.reading.suite_run import Run
from analysis.tables.tabular import Table, spread

HEADER = ["task", "method", "n", "score %", "dev loss", "forwards", "seconds", "peak GiB", "state"]
NOTES = [
    "Of the chosen cell, over its n finished seeds: means, ± the sample standard deviation. Score: "
    "on the evaluation split. Seconds: of training, with its dev evaluations, on one machine that "
    "may have done other work as well. Peak: the largest of the seeds.",
    "State: what the optimizer keeps in its own tensors from step to step, at most; - where it "
    "does not say (first order), or where the result is older than that count.",
]
UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


def costs_table(suite: Suite, cells: Cells, title: str) -> Table:
    """Show score, dev loss, forwards, seconds, peak memory and state of every cell that has run."""
    shown = [
        _row(cell)
        for task in suite.tasks
        for column in suite.columns
        if (cell := cells[task, column.name]).runs
    ]
    return Table(title, HEADER, shown, NOTES)


def _row(cell: Cell) -> list[str]:
    runs = list(cell.runs.values())
    forwards = sorted({run.row["forwards"] for run in runs})
    return [
        cell.task,
        cell.column.label,
        str(len(runs)),
        spread(list(cell.scores.values()), 1),
        spread([run.row["dev_loss"] for run in runs], 4),
        " to ".join(f"{number:,}" for number in dict.fromkeys((forwards[0], forwards[-1]))),
        f"{statistics.fmean(run.row['train_seconds'] for run in runs):.1f}",
        f"{max(run.row['peak_memory_gib'] for run in runs):.2f}",
        _state(runs),
    ]


def _state(runs: list[Run]) -> str:
    """Write the bytes of the optimizer's state, which its summary counts before the first step."""
    summaries: list[Any] = [run.record.get("summary") for run in runs]
    sizes = [each["state_bytes"] for each in summaries if each]
    if not sizes:
        return "-"
    size = max(sizes)
    unit, bytes_in = next((each for each in UNITS if size >= each[1]), ("B", 1))
    return f"{size / bytes_in:.3g} {unit}"
