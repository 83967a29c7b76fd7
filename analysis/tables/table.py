"""Tables from finished runs, as markdown and as plain text.

`demo_table` puts one run per method and task side by side; `seeds_table` gives mean, sample
standard deviation (n - 1) and n over seeds. Both state whether forward passes were equal.

    python -m analysis.tables.table FOLDER [--kind seeds|demo] [--out FILE.md]
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import pandas as pd

from analysis.figures.style import label, ordered
from analysis.reading.agreement import check_average
from analysis.reading.command import place
from analysis.reading.load import ResultError, load_results
from analysis.tables.tabular import Table, spread

SANITY = "Pocket results are a sanity check, not evidence about a method."
METRIC_NAMES = {"accuracy": "accuracy", "f1": "F1"}
EQUAL = 0.01  # forward budgets that differ by less than this fraction count as equal

Run = dict[str, Any]


def demo_table(frame: pd.DataFrame) -> Table:
    """One row per method; for each task its score, forwards, seconds and peak memory."""
    runs = records(frame)
    by_cell: dict[tuple[str, str], Run] = {}
    for run in runs:
        cell = (run["method"], run["task"])
        if cell in by_cell:
            raise ResultError(
                f"{run['path']}: a second run of method {cell[0]} on task {cell[1]} beside "
                f"{by_cell[cell]['path']}; the demo table shows one, use --kind seeds for more"
            )
        by_cell[cell] = run
    tasks = list(dict.fromkeys(run["task"] for run in runs))
    methods = ordered(run["method"] for run in runs)
    header = ["method"]
    for task in tasks:
        metric = METRIC_NAMES[next(run["metric"] for run in runs if run["task"] == task)]
        header += [f"{task} {metric} %", "forwards", "seconds", "peak GiB"]
    rows = []
    for method in methods:
        cells = [label(method)]
        for task in tasks:
            run = by_cell.get((method, task))
            if run is None:
                raise ResultError(f"method {method} has no finished run on task {task}")
            cells += [
                f"{100 * run['eval_score']:.1f}",
                f"{run['forwards']:,}",
                f"{run['total_seconds']:.1f}",
                f"{run['peak_memory_gib']:.2f}",
            ]
        rows.append(cells)
    notes = [
        "Score of the checkpoint that is best on dev, on the evaluation split; forwards: passes of "
        "a training batch, a backward counts two; seconds: the whole run with its evaluations.",
        *_budget_notes(runs),
        f"Data: {listed(runs, 'data')}; model: {listed(runs, 'model')}; "
        f"embeddings: {listed(runs, 'embeddings')}; seed: {listed(runs, 'seed')}; "
        f"device: {listed(runs, 'device')}.",
    ]
    pocket = any(run["pocket"] for run in runs)
    title = "Demo (sanity check, not evidence about a method)" if pocket else "Demo"
    return Table(title, header, rows, [SANITY, *notes] if pocket else notes)


def seeds_table(frame: pd.DataFrame) -> list[Table]:
    """One table per model, data and task: each method's mean and sample deviation over seeds."""
    by_task: dict[tuple[Hashable, ...], list[Run]] = defaultdict(list)
    for run in records(frame):
        by_task[run["model"], run["data"], run["task"]].append(run)
    return [_one_task(runs) for runs in by_task.values()]


def _one_task(runs: list[Run]) -> Table:
    metric = METRIC_NAMES[runs[0]["metric"]]
    header = ["method", "lr", "eps", "embeddings", "steps", "forwards", "n"]
    header += [f"dev {metric} %", "dev loss", f"eval {metric} %", "eval loss", "seconds"]
    groups: dict[tuple[Hashable, ...], list[Run]] = defaultdict(list)
    for run in runs:
        keys = ("method", "variant", "lr", "eps", "embeddings", "rounding", "steps", "forwards")
        groups[tuple(run[key] for key in keys)].append(run)
    order = {method: i for i, method in enumerate(ordered(run["method"] for run in runs))}
    rows = []
    for key in sorted(groups, key=lambda key: (order[str(key[0])], str(key[1:]))):
        group = groups[key]
        check_average(group, "runs of one row")
        first = group[0]
        name = label(first["method"]) + (f" ({first['variant']})" if first["variant"] else "")
        trained = first["forwards"] > 0
        rows.append(
            [
                name,
                _setting(first["lr"]),
                _setting(first["eps"]),
                str(first["embeddings"]) if trained else "-",
                f"{first['steps']:,}",
                f"{first['forwards']:,}",
                str(len(group)),
                spread([100 * run["dev_score"] for run in group], 1),
                spread([run["dev_loss"] for run in group], 4),
                spread([100 * run["eval_score"] for run in group], 1),
                spread([run["eval_loss"] for run in group], 4),
                spread([run["total_seconds"] for run in group], 0),
            ]
        )
    model, data, task = (runs[0][key] for key in ("model", "data", "task"))
    notes = [
        "Mean ± sample standard deviation (n - 1) over n seeds; a single run shows no deviation. "
        f"Dev: {listed(runs, 'dev_n')} examples, which chose the checkpoint; eval: "
        f"{listed(runs, 'eval_n')} examples, which chose nothing.",
        *_budget_notes(runs),
        f"Seeds: {listed(runs, 'seed')}; batch: {listed(runs, 'batch_size')}; device: "
        f"{listed(runs, 'device')}; code: {commits(runs)}.",
    ]
    pocket = any(run["pocket"] for run in runs)
    return Table(f"{task}, {model}, {data} data", header, rows, [SANITY, *notes][not pocket :])


def commits(runs: Iterable[Run]) -> str:
    """Name the commits the runs were made at; `+` marks a working tree with changes."""
    return ", ".join(sorted({name for run in runs for name in run["code"].split(", ")}))


def _budget_notes(runs: list[Run]) -> list[str]:
    """State whether the methods that train did so at equal forward passes, task by task."""
    notes = []
    for task in dict.fromkeys(run["task"] for run in runs):
        used = [run["forwards"] for run in runs if run["task"] == task and run["forwards"] > 0]
        if not used:
            continue
        low, high = min(used), max(used)
        span = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        if high - low <= EQUAL * high:
            notes.append(f"{task}: equal forward passes ({span}) for every method that trains.")
        else:
            notes.append(f"{task}: NOT at equal forward passes ({span}): no comparison of methods.")
    return notes


def records(frame: pd.DataFrame) -> list[Run]:
    """Turn the tidy table into plain dicts, with None where pandas has put NaN."""
    if frame.empty:
        raise ResultError("the table of runs is empty")
    rows: list[Run] = [
        {str(key): None if isinstance(cell, float) and cell != cell else cell
         for key, cell in row.items()}
        for row in frame.to_dict("records")
    ]  # fmt: skip
    return rows


def listed(runs: list[Run], key: str) -> str:
    """Join the different values of a column."""
    return ", ".join(sorted({str(run[key]) for run in runs if run[key] is not None})) or "-"


def _setting(number: float | None) -> str:
    return "-" if number is None else f"{number:g}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables of a folder of runs; with --out also write them as markdown."""
    parser = argparse.ArgumentParser(prog="python -m analysis.tables.table", description=__doc__)
    parser.add_argument("folder", type=place, help="a folder with finished runs")
    parser.add_argument("--kind", choices=("seeds", "demo"), default="seeds")
    parser.add_argument("--out", type=place, help="write the tables to this file, as markdown")
    options = parser.parse_args(arguments)
    try:
        frame = load_results(options.folder)
        tables = [demo_table(frame)] if options.kind == "demo" else seeds_table(frame)
    except ResultError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(table.text() for table in tables))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        markdown = "\n".join(table.markdown() for table in tables)
        options.out.write_text(markdown, encoding="utf-8")
        print(options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
