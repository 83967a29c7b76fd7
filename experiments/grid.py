"""Choose each method's settings on dev from a small grid, then run several seeds of the choice.

    python -m experiments.grid sst2_reviews model.path=/path/to/model data.root=/path/to/data

The plan is conf/grid/<name>.yaml. Each run is a process of its own (`experiments.run`), so that its
memory is its own and a crash loses nothing; what is finished is found and not run again. At the end
`choice.json` (the dev scores of every grid point) stands beside them; with ``--export FOLDER`` it
and every final `result.json` are copied there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from experiments.config import CONF, BadInput, compose
from experiments.record import FAILED, RESULT, write_json

LOG = "log.txt"  # what a run printed


@dataclass(frozen=True)
class Job:
    """One run: its method, the grid point it stands for, and its command line."""

    method: str
    point: dict[str, float]
    overrides: tuple[str, ...]
    folder: Path  # where its result will be


def job(method: str, point: dict[str, float], overrides: list[str]) -> Job:
    """Return a job with the folder that its configuration gives it."""
    return Job(method, point, tuple(overrides), compose(overrides).folder)


def read_plan(name: str) -> dict[str, Any]:
    """Read conf/grid/<name>.yaml."""
    path = CONF / "grid" / f"{name}.yaml"
    if not path.is_file():
        allowed = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
        raise BadInput(f"grid={name}: unknown; allowed are {allowed}")
    plan = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    assert isinstance(plan, dict)
    return {str(key): value for key, value in plan.items()}


def search_jobs(plan: dict[str, Any], given: list[str]) -> list[Job]:
    """Return one job per method and grid point."""
    jobs = []
    for method, grid in plan["search"]["methods"].items():
        for values in itertools.product(*grid.values()):
            point = dict(zip(grid, values, strict=True))
            words = [f"{key.rpartition('.')[2]}{value:g}" for key, value in point.items()]
            settings = [f"{key}={value}" for key, value in point.items()]
            overrides = [
                *plan["overrides"],
                *plan["search"]["overrides"],
                f"method={method}",
                *settings,
                f"suite={plan['suite']}-search",
                f"variant={'-'.join(words)}",
                *given,
            ]
            jobs.append(job(method, point, overrides))
    return jobs


def choose(jobs: list[Job]) -> dict[str, Any]:
    """Return, for each method, the point with the lowest dev loss, and every point's dev scores.

    A point whose run failed (its loss was not finite) is listed with its error and never chosen.
    """
    found: dict[str, Any] = {}
    for one in jobs:
        path = one.folder / RESULT
        entry: dict[str, Any] = {"point": one.point}
        if path.is_file():
            result = json.loads(path.read_text())
            entry |= {"dev": result["dev"], "forwards": result["forwards"]}
        elif (one.folder / FAILED).is_file():
            entry["error"] = json.loads((one.folder / FAILED).read_text())["error"]
        else:
            entry["error"] = f"no result; see {one.folder / LOG}"
        found.setdefault(one.method, {"tried": []})["tried"].append(entry)
    for method, entry in found.items():
        finished = [tried for tried in entry["tried"] if "dev" in tried]
        if not finished:
            raise RuntimeError(f"method={method}: every grid point failed; nothing to choose")
        entry["chosen"] = min(finished, key=lambda tried: tried["dev"]["loss"])["point"]
    return found


def final_jobs(plan: dict[str, Any], given: list[str], choice: dict[str, Any]) -> list[Job]:
    """Return the chosen setting of each method for every seed, and the untrained baselines."""
    final = plan["final"]
    shared = [*plan["overrides"], *final["overrides"], f"suite={plan['suite']}"]
    jobs = []
    for method in final.get("untrained", []):
        seed = f"seed={final['seeds'][0]}"
        jobs.append(job(method, {}, [*shared, f"method={method}", seed, *given]))
    for seed, (method, entry) in itertools.product(final["seeds"], choice.items()):
        settings = [f"{key}={value}" for key, value in entry["chosen"].items()]
        overrides = [*shared, f"method={method}", *settings, f"seed={seed}", *given]
        jobs.append(job(method, entry["chosen"], overrides))
    return jobs


def run_all(jobs: list[Job], at_once: int, title: str) -> None:
    """Run the jobs without a result, `at_once` at a time; say each end as it comes."""
    missing = [one for one in jobs if not (one.folder / RESULT).is_file()]
    print(f"{title}: {len(jobs)} runs, {len(jobs) - len(missing)} done, {len(missing)} to do")
    begin = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        ends = {pool.submit(run_one, one): one for one in missing}
        for count, end in enumerate(as_completed(ends), start=1):
            folder = ends[end].folder
            left = (time.perf_counter() - begin) / count * (len(missing) - count)
            print(
                f"  {count}/{len(missing)} {folder.parent.name}/{folder.name}: "
                f"{end.result()} (about {left / 60:.0f} min left)",
                flush=True,
            )


def run_one(one: Job) -> str:
    """Run one job in its own process; a run that fails is reported and does not stop the others."""
    one.folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "experiments.run", *one.overrides]
    with (one.folder / LOG).open("a") as log:
        code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
    if code == 0:
        result = json.loads((one.folder / RESULT).read_text())
        return f"dev loss {result['dev']['loss']:.4f}"
    lines = (one.folder / LOG).read_text().splitlines()
    return f"FAILED with exit code {code}: {lines[-1] if lines else 'no message'}"


def export(jobs: list[Job], choice: dict[str, Any], folder: Path) -> None:
    """Copy the choice and every final result to `folder`."""
    for one in jobs:
        if not (one.folder / RESULT).is_file():
            continue  # main names it and returns 1
        target = folder / one.folder.parent.name / one.folder.name
        target.mkdir(parents=True, exist_ok=True)
        write_json(target / RESULT, json.loads((one.folder / RESULT).read_text()))
    write_json(folder / "choice.json", choice)
    print(f"copied to {folder}")


def main() -> int:
    """Search, choose, run the seeds, export."""
    parser = argparse.ArgumentParser(description="choose settings on dev, then run seeds of them")
    parser.add_argument("name", help="a plan in conf/grid")
    parser.add_argument("overrides", nargs="*", help="model.path=... data.root=... and the like")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--plan", action="store_true", help="list the runs and stop")
    parser.add_argument("--export", type=Path, help="copy results and choice.json here")
    args = parser.parse_args()
    try:
        plan = read_plan(args.name)
        searched = search_jobs(plan, args.overrides)
        for one in searched:
            print(f"{'done' if (one.folder / RESULT).is_file() else 'todo'}  {one.folder}")
        if args.plan:
            return 0
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    run_all(searched, args.jobs, "search")
    choice = choose(searched)
    for method, entry in choice.items():
        print(f"  {method}: {entry['chosen']}")
    finals = final_jobs(plan, args.overrides, choice)
    beside = finals[0].folder.parents[1]  # <out>/<suite>/<model>/<task>
    beside.mkdir(parents=True, exist_ok=True)
    write_json(beside / "choice.json", choice)
    run_all(finals, args.jobs, "final")
    if args.export:
        export(finals, choice, args.export)
    missing = [one.folder for one in finals if not (one.folder / RESULT).is_file()]
    for folder in missing:
        print(f"error: {folder} has no {RESULT}; see {LOG} there", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
