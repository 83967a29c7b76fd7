"""The suite: every run of a plan that is not done yet, the choice on dev, then the other seeds.

    python -m experiments.suite table1 --scale pocket --jobs 2      (make reproduce-table1)
    python -m experiments.suite table1 --dry                        (the plan, no run)

Prints the plan first: runs done and missing, forward passes, the time they will take. What is done
is found and not done again, so an interrupted suite is simply started again. Beside the runs it
leaves suite.json (what was planned) and choice.json (every cell's dev scores and the cell chosen),
from which `python -m analysis.table1` makes the table.

Exit codes: 0 all done, 1 a run failed, 2 bad input, 130 stopped.
"""

import argparse
import os
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from experiments import record
from experiments.estimate import measure
from experiments.plan import Suite, read_suite
from experiments.pool import LOG, End, Pool
from experiments.report import clock
from experiments.standing import Progress, State, look

SUITE, CHOICE = "suite.json", "choice.json"


def show_plan(progress: Progress) -> None:
    """Print what is done and what is missing, a line per model and task."""
    suite, about = progress.suite, progress.suite.about
    print(f"{about['title']}, scale {about['scale']}, equal {about['budget']}: {suite.folder}")
    names = [column["name"] for column in about["columns"]]
    rows = [["runs done / planned", *names]]
    for model in about["models"]:
        for task in about["tasks"]:
            own = [g for g in suite.groups if (g.model, g.task) == (model, task)]
            cells = []
            for group in own:
                planned = len(group.search) + len(group.column.seeds) - 1
                cells.append(f"{planned - progress.missing(group)}/{planned}")
            rows.append([f"{model}/{task}", *cells])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        first, *others = (cell for cell in row)
        right = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        print("  ".join([first.ljust(widths[0]), *right]))
    counts = Counter(progress.of(job).status for g in suite.groups for job in progress.wanted(g))
    missing = sum(progress.missing(group) for group in suite.groups)
    diverged = f", {counts['diverged']} diverged" if counts["diverged"] else ""
    forwards = sum(progress.missing(g) * g.forwards for g in suite.groups if progress.missing(g))
    print(
        f"{counts['finished']} runs done{diverged}, {missing} missing: {forwards:,} forward passes "
        "(a backward counts two, evaluation none)",
        flush=True,
    )


class Watcher:
    """Takes the ends of runs: keeps the states, the choice on disk, and the user informed."""

    def __init__(self, progress: Progress, seconds: dict[str, float]) -> None:
        self.progress, self.seconds = progress, seconds
        self.begin = time.perf_counter()
        self.total = self.seconds_left()
        self.count = 0

    def seconds_left(self) -> float:
        """Return the estimated seconds of all missing runs, one after the other."""
        return sum(
            self.progress.missing(group) * self.seconds[group.name]
            for group in self.progress.suite.groups
            if group.name in self.seconds
        )

    def ended(self, end: End) -> None:
        """Take note of a run's end."""
        state = look(end.job) if end.status == "finished" else State(end.status, error=end.error)
        self.progress.states[end.job.folder] = state
        record.write_json(self.progress.suite.folder / CHOICE, self.progress.choice())
        self.count += 1
        left = self.seconds_left()
        done = self.total - left
        spent = time.perf_counter() - self.begin
        remaining = clock(spent / done * left) if done > 0 else "?"
        missing = sum(map(self.progress.missing, self.progress.suite.groups))
        how = f"dev loss {state.dev['loss']:.4f}" if state.dev else end.status.upper()
        if end.status not in ("finished", "diverged"):
            how += f" ({end.error}; log: {end.job.folder / LOG})"
        print(
            f"[{self.count}] {end.job.name}: {how}, {end.seconds:.0f} s; "
            f"{missing} to go, about {remaining}",
            flush=True,
        )


def run_suite(suite: Suite, jobs: int, dry: bool) -> int:
    """Show the plan, do what is missing, say what failed; return the exit code."""
    progress = Progress(suite)
    show_plan(progress)
    todo = [group for group in suite.groups if progress.missing(group)]
    watcher = Watcher(progress, measure(todo, lambda line: print(line, flush=True)))
    if todo:
        print(f"about {clock(watcher.total / jobs)} with {jobs} at once", flush=True)
    if dry:
        return 0
    suite.folder.mkdir(parents=True, exist_ok=True)
    record.write_json(suite.folder / SUITE, suite.about)
    record.write_json(suite.folder / CHOICE, progress.choice())
    if todo:
        workers = min(jobs, sum(map(progress.missing, suite.groups)))
        Pool(workers, progress.next_job, watcher.ended).run()
    problems = progress.problems()
    for line in problems:
        print(f"error: {line}", file=sys.stderr)
    print(f"{suite.folder}: {'all runs done' if not problems else f'{len(problems)} problems'}")
    return 1 if problems else 0


def export(suite: Suite, target: Path) -> None:
    """Copy the plan, the choice and the chosen cells' results, nothing heavy, to `target`."""
    progress = Progress(suite)
    for group in suite.groups:
        best = progress.chosen(group)
        for job in [best, *group.others[best.cell.variant]] if best else []:
            if progress.of(job).status == "finished":
                folder = target / job.folder.relative_to(suite.folder)
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(job.folder / record.RESULT, folder / record.RESULT)
    for name in (SUITE, CHOICE):
        shutil.copyfile(suite.folder / name, target / name)
    print(f"copied to {target}")


def main(arguments: list[str] | None = None) -> int:
    """Run the suite of the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.suite", description=__doc__)
    parser.add_argument("plan", help="a preset of conf/experiment with a plan: table1, table2")
    parser.add_argument("overrides", nargs="*", help="for every run: out=... model.path=...")
    parser.add_argument("--scale", default="auto", help="auto: paper on CUDA, pocket elsewhere")
    parser.add_argument("--budget", help="steps or forwards: what is equal for all methods")
    parser.add_argument("--tasks", default="", help="some of the plan's tasks: sst2,rte")
    parser.add_argument("--jobs", type=int, help="runs at once; 1 on CUDA, or one per CPU core")
    parser.add_argument("--dry", action="store_true", help="show the plan and stop")
    parser.add_argument("--where", action="store_true", help="print the suite's folder and stop")
    parser.add_argument("--export", type=Path, help="copy the results to this folder and stop")
    options = parser.parse_intermixed_args(arguments)
    cuda = torch.cuda.is_available()
    scale, why = options.scale, "as asked"
    if scale == "auto":
        scale = "paper" if cuda else "pocket"
        why = "a CUDA device is here" if cuda else "no CUDA device is here; paper needs one"
    tasks = [task for task in options.tasks.split(",") if task]
    plan = (options.plan, scale, options.budget, tasks, options.overrides)
    jobs = options.jobs or (1 if cuda else os.cpu_count() or 1)
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell had it ignored (nohup, &)
        signal.signal(number, signal.default_int_handler)
    try:
        if options.where:
            print(read_suite(*plan).folder)
            return 0
        print(f"SCALE={scale} ({why})", flush=True)
        suite = read_suite(*plan)
        if options.export:
            export(suite, options.export)
            return 0
        return run_suite(suite, jobs, options.dry)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
