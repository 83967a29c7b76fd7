"""The suite: every run of a plan that is not done yet, the choice on dev, then the other seeds.

    python -m experiments.suite table1 --scale pocket --jobs 2      (make reproduce-table1)
    python -m experiments.suite table1 --dry                        (the plan, no run)
    python -m experiments.suite table1 --launcher slurm             (submit, and return)
    python -m experiments.suite table1 --status                     (how every run stands)

Prints the plan first: runs done and missing, forward passes, the time they will take. What is done
is found and not done again, so an interrupted suite is simply started again. Beside the runs it
leaves suite.json (what was planned) and choice.json (every cell's dev scores and the cell chosen),
from which `python -m analysis.tables.table1` makes the table.

Exit codes: 0 all done, 1 a run failed, 2 bad input, 128 + n stopped by signal n.
"""

import argparse
import os
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from experiments.config.errors import BadInput
from experiments.config.paths import user_path
from experiments.launch import slurm
from experiments.launch.job import LOG, State, look
from experiments.launch.launchers import of_slurm
from experiments.launch.pool import End, Pool, Worker
from experiments.launch.sweep import on_slurm, status
from experiments.records import record
from experiments.records.interrupt import Interrupted, raising_at_signals
from experiments.records.lock import lock
from experiments.records.report import Line, clock
from experiments.suites.estimate import measure
from experiments.suites.plan import Job, Suite, read_suite
from experiments.suites.standing import Standing

SUITE, CHOICE = "suite.json", "choice.json"


def show_plan(standing: Standing) -> None:
    """Print what is done and what is missing, a line per model and task."""
    suite, about = standing.suite, standing.suite.about
    print(f"{about['title']}, scale {about['scale']}, equal {about['budget']}: {suite.folder}")
    lines: dict[str, list[str]] = {}
    for group in suite.active:
        planned = standing.planned(group)
        done = f"{planned - standing.missing(group)}/{planned}"
        lines.setdefault(f"{group.model}/{group.task}", []).append(done)
    rows = [["runs done / planned", *(column["name"] for column in about["columns"])]]
    rows += [[name, *cells] for name, cells in lines.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        right = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        print("  ".join([first.ljust(widths[0]), *right]))
    counts = Counter(standing.of(job).status for g in suite.active for job in standing.wanted(g))
    diverged = f", {counts['diverged']} diverged" if counts["diverged"] else ""
    forwards = sum(standing.missing(g) * g.forwards for g in suite.active if standing.missing(g))
    print(
        f"{counts['finished']} runs done{diverged}, {standing.total_missing()} missing: "
        f"{forwards:,} forward passes (a backward counts two, evaluation none)",
        flush=True,
    )


class Watcher:
    """Takes the ends of runs: keeps the states, the choice on disk, and the user informed."""

    def __init__(self, standing: Standing, measured: dict[str, float], jobs: int) -> None:
        self.standing, self.measured, self.jobs = standing, measured, jobs
        self.count = 0
        self.begun: dict[Path, float] = {}  # the runs in progress, and when they began
        self.line = Line()

    def seconds_left(self) -> float:
        """Return the estimated seconds until all is done.

        A run takes what those of its column took; before one has ended, what was measured, times
        the ratio of the two in other columns.
        """
        groups, standing = self.standing.suite.active, self.standing
        took = {g.name: each for g in groups if (each := standing.seconds(g)) is not None}
        both = [name for name in took if self.measured.get(name)]
        measured = sum(self.measured[name] for name in both)
        pace = sum(took[name] for name in both) / measured if both else 1.0
        now, seconds, runs = time.perf_counter(), 0.0, 0
        for group in groups:
            one = took.get(group.name, pace * self.measured.get(group.name, 0.0))
            left = standing.left(group)
            begun = [self.begun.get(job.folder) for job in standing.wanted(group)]
            spent = sum(min(one, now - each) for each in begun if each is not None)
            seconds, runs = seconds + one * left - spent, runs + left
        return seconds / max(1, min(self.jobs, runs))

    def all_runs(self) -> str:
        """Say in one line how all runs stand."""
        groups, standing, running = self.standing.suite.active, self.standing, len(self.begun)
        done = sum(map(standing.planned, groups)) - standing.total_missing()
        failed, left = (sum(map(count, groups)) for count in (standing.failed, standing.left))
        return (
            f"all runs: {done} done{f', {failed} failed' if failed else ''}, {running} running, "
            f"{left - running} left, about {clock(self.seconds_left())}"
        )

    def next_job(self) -> Job | None:
        """Return a run to do, None where there is none now."""
        job = self.standing.next_job()
        if job is not None:
            self.begun[job.folder] = time.perf_counter()
            self.line.show(self.all_runs())
        return job

    def ended(self, end: End) -> None:
        """Take note of a run's end."""
        state = look(end.job) if end.status == "finished" else State(end.status, error=end.error)
        self.standing.states[end.job.folder] = state
        write_choice(self.standing)
        self.count += 1
        self.begun.pop(end.job.folder, None)
        how = f"dev loss {state.dev['loss']:.4f}" if state.dev else end.status.upper()
        if end.status not in ("finished", "diverged"):
            how += f" ({end.error}; log: {end.job.folder / LOG})"
        text = f"[{self.count}] {end.job.name}: {how}, {end.seconds:.0f} s"
        self.line.keep(text if self.line.rewritten else f"{text}; {self.all_runs()}")
        self.line.show(self.all_runs())


def write_choice(standing: Standing) -> None:
    """Write choice.json."""
    record.write_json(standing.suite.folder / CHOICE, standing.choice())


def run_suite(suite: Suite, jobs: int, dry: bool) -> int:
    """Show the plan, do what is missing, say what failed; return the exit code."""
    standing = Standing(suite)
    show_plan(standing)
    todo = [group for group in suite.active if standing.missing(group)]
    unknown = [group for group in todo if standing.seconds(group) is None]
    measured = measure(unknown, lambda line: print(line, flush=True))
    watcher = Watcher(standing, measured, jobs)
    if todo:
        print(f"about {clock(watcher.seconds_left())} with {jobs} at once", flush=True)
    if dry:
        return 0
    suite.folder.mkdir(parents=True, exist_ok=True)
    with lock(suite.folder):
        record.write_json(suite.folder / SUITE, suite.about)
        write_choice(standing)
        while missing := standing.total_missing():
            workers = [Worker() for _ in range(min(jobs, missing))]
            try:
                Pool(workers, watcher.next_job, watcher.ended).run()
            finally:
                watcher.line.close()
            if not standing.look_at_busy():
                break
        write_choice(standing)
    problems = standing.problems()
    for line in problems:
        print(f"error: {line}", file=sys.stderr)
    end = f"{len(problems)} not done, see above" if problems else "all runs done"
    print(f"{suite.folder}: {end}")
    return 1 if problems else 0


def submit_suite(suite: Suite, settings: slurm.Settings) -> int:
    """Submit what is missing to the cluster, as far as the choices are made; return."""
    standing = Standing(suite)
    show_plan(standing)
    suite.folder.mkdir(parents=True, exist_ok=True)
    with lock(suite.folder):
        record.write_json(suite.folder / SUITE, suite.about)
        write_choice(standing)
        on_slurm(jobs_of(standing), settings)
    later = standing.total_missing() - sum(
        standing.of(job).status == "missing" for job in jobs_of(standing)
    )
    if later:
        print(f"{later} more follow once the cells are chosen: give the same command then")
    return 0


def jobs_of(standing: Standing) -> list[Job]:
    """List the runs that are needed as far as one can tell."""
    return [job for group in standing.suite.active for job in standing.wanted(group)]


def export(suite: Suite, target: Path) -> None:
    """Copy the plan, the choice and the chosen cells' results, nothing heavy, to `target`."""
    standing = Standing(suite)
    for group in suite.groups:
        best = standing.chosen(group)
        for job in [best, *group.others(best.cell)] if best else []:
            if standing.of(job).status == "finished":
                folder = target / job.folder.relative_to(suite.folder)
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(job.folder / record.RESULT, folder / record.RESULT)
    for name in (SUITE, CHOICE):
        shutil.copyfile(suite.folder / name, target / name)
    print(f"copied to {target}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.suite", description=__doc__)
    parser.add_argument("plan", help="a preset of conf/experiment with a plan: table1, table2")
    parser.add_argument("overrides", nargs="*", help="for every run: out=... model.path=...")
    parser.add_argument("--scale", default="auto", help="auto: paper on CUDA, pocket elsewhere")
    parser.add_argument("--budget", help="of the plan: what is equal for all columns")
    parser.add_argument("--models", default="", help="of conf/model, for those of the plan")
    parser.add_argument(
        "--tasks", default="", help="of the plan: sst2,rte; or YAML files of your own"
    )
    parser.add_argument("--jobs", type=int, help="runs at once; 1 on CUDA, or one per CPU core")
    parser.add_argument("--launcher", choices=("local", "slurm"), default="local",
                        help="slurm: submit to the cluster and return")  # fmt: skip
    parser.add_argument("--status", action="store_true", help="say how every run stands and stop")
    parser.add_argument("--dry", action="store_true", help="show the plan and stop")
    parser.add_argument("--where", action="store_true", help="print the suite's folder and stop")
    parser.add_argument("--export", type=user_path, help="copy the results to this folder and stop")
    options = parser.parse_intermixed_args(arguments)
    options.tasks = list(filter(None, options.tasks.split(",")))
    options.models = list(filter(None, options.models.split(",")))
    return options


@raising_at_signals("stopped; the same command goes on from here")
def main(arguments: list[str] | None = None) -> int:
    """Run the suite of the command line."""
    options = parse(arguments)
    cuda = torch.cuda.is_available()
    scale, why = options.scale, "as asked"
    if scale == "auto":
        scale = "paper" if cuda else "pocket"
        why = "a CUDA device is here" if cuda else "no CUDA device is here; paper needs one"
    at_once = 1 if cuda else len(os.sched_getaffinity(0))
    jobs = at_once if options.jobs is None else options.jobs
    try:
        if options.scale == "auto" and options.launcher == "slurm":
            raise BadInput("--scale=auto: a run's machine is not this one; give paper, pocket, ...")
        if jobs < 1:
            raise BadInput(f"--jobs={jobs}: allowed is 1 or more")
        if not options.where:
            print(f"SCALE={scale} ({why})", flush=True)
        of_launcher = [word for word in options.overrides if word.startswith("hydra.launcher.")]
        given = [word for word in options.overrides if word not in of_launcher]
        suite = read_suite(
            options.plan, scale, options.budget, options.tasks, given, options.models
        )
        if options.where:
            print(suite.folder)
        elif options.export:
            export(suite, options.export)
        elif options.status:
            status(jobs_of(Standing(suite)))
        elif options.launcher == "slurm" and not options.dry:
            return submit_suite(suite, of_slurm(of_launcher))
        elif of_launcher and not options.dry:
            raise BadInput(
                f"{of_launcher[0]}: allowed with --launcher=slurm; here --jobs says how many runs "
                "are done at once"
            )
        else:
            return run_suite(suite, jobs, options.dry)
        return 0
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code


if __name__ == "__main__":
    sys.exit(main())
