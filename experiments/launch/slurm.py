"""Runs as tasks of a Slurm job array: the script, sbatch, and what the queue says of them.

Plain sbatch and no pickled code: a task is `python -m experiments.launch.slurm_task jobs.json N`,
and jobs.json lists command lines of runs. Beside it, in <out>/.slurm/<name>/, stand the script and
the output of each task (a run's own output is the log.txt in its folder).
"""

import json
import os
import re
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from experiments.config.errors import BadInput
from experiments.launch.job import SUBMITTED, Run
from experiments.records import record

FOLDER = ".slurm"  # under the root of the output
ARRAY = 1000  # tasks of one array; Slurm's own limit (MaxArraySize) is 1001 unless configured


@dataclass(frozen=True)
class Settings:
    """What conf/hydra/launcher/slurm.yaml says; null leaves a choice to the cluster."""

    partition: str | None = None
    account: str | None = None
    time: str | None = None
    gpus: int | str | None = None
    cpus: int | None = None
    memory: str | None = None
    at_once: int | None = None
    grace: int = 120
    max_restarts: int = 100
    setup: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, given: Any) -> Self:
        """Check the keys and the numbers."""
        allowed = [entry.name for entry in fields(cls)]
        for key in given:
            if key not in allowed:
                raise BadInput(
                    f"hydra.launcher.{key}: no such key; allowed are {', '.join(allowed)}"
                )
        settings = cls(**given)
        for key, least in (("cpus", 1), ("at_once", 1), ("grace", 1), ("max_restarts", 0)):
            value = getattr(settings, key)
            if value is not None and not is_count(value, least):
                raise BadInput(f"hydra.launcher.{key}={value}: allowed is {least} or more")
        if isinstance(settings.gpus, bool | float) or str(settings.gpus).startswith("-"):
            raise BadInput(
                f"hydra.launcher.gpus={settings.gpus}: allowed are 0 or more, or type:number"
            )
        if settings.time is not None and not isinstance(settings.time, str):
            raise BadInput(
                f"hydra.launcher.time={settings.time}: allowed is text, in quotes: "
                '"12:30:00", or minutes, "90" (without quotes YAML makes 12:30:00 the number 45000)'
            )
        if not _is_list_of_text(settings.setup):
            raise BadInput(
                f"hydra.launcher.setup={settings.setup}: allowed is a list of shell lines, "
                '["module load cuda"]'
            )
        if not isinstance(settings.options, Mapping):
            raise BadInput(
                f"hydra.launcher.options={settings.options}: allowed are options of sbatch, "
                "{qos: long}"
            )
        return settings


def is_count(value: Any, least: int) -> bool:
    """Tell whether a setting is a whole number, and large enough."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)


def script(settings: Settings, folder: Path, count: int) -> str:
    """Write the batch script of an array of `count` tasks."""
    at_once = "" if settings.at_once is None else f"%{settings.at_once}"
    options: dict[str, Any] = {
        "job-name": "agzo",
        "array": f"0-{count - 1}{at_once}",
        "partition": settings.partition,
        "account": settings.account,
        "time": settings.time,
        "gres": f"gpu:{settings.gpus}" if settings.gpus else None,
        "cpus-per-task": settings.cpus,
        "mem": settings.memory,
        "signal": f"B:USR2@{settings.grace}",  # to the task itself, this long before its time is up
        "requeue": True,
        "open-mode": "append",  # a requeued task must not wipe out what the first said
        "output": folder / "%a.txt",
        **settings.options,
    }
    words = [
        f"#SBATCH --{key}" + ("" if value is True else f"={shlex.quote(str(value))}")
        for key, value in options.items()
        if value is not None and value is not False
    ]
    task = [sys.executable, "-m", "experiments.launch.slurm_task", str(folder / "jobs.json")]
    lines = [
        "#!/bin/bash",
        *words,
        f"cd {shlex.quote(os.getcwd())} || exit 1",
        *settings.setup,
        f"export AGZO_MAX_RESTARTS={settings.max_restarts}",
        f"exec {shlex.join(task)} $SLURM_ARRAY_TASK_ID",  # exec: signals reach the run itself
    ]
    return "\n".join(lines) + "\n"


def submit(runs: Sequence[Run], settings: Settings) -> str:
    """Hand runs to sbatch, note in each one's folder which job does it, and say what was done."""
    ids = []
    for begin in range(0, len(runs), ARRAY):
        some = runs[begin : begin + ARRAY]
        out = Path(some[0].config.out).resolve()
        folder = out / FOLDER / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}"
        folder.mkdir(parents=True)
        jobs = [{"overrides": run.overrides, "folder": str(run.folder)} for run in some]
        record.write_json(folder / "jobs.json", jobs)
        (folder / "script.sh").write_text(script(settings, folder, len(some)))
        said = _ask("sbatch", "--parsable", str(folder / "script.sh"))
        job = said.strip().partition(";")[0]
        if not re.fullmatch(r"\d+", job):
            raise BadInput(f"sbatch: no job id in its answer: {said.strip()[:200]!r}")
        for index, run in enumerate(some):
            run.folder.mkdir(parents=True, exist_ok=True)
            note = {"job": f"{job}_{index}", "output": str(folder / f"{index}.txt")}
            record.write_json(run.folder / SUBMITTED, note)
        ids.append(job)
    jobs = f" (job {', '.join(ids)})" if ids else ""
    return f"{len(runs)} runs submitted{jobs}; the same command again submits what is lost"


def queue() -> dict[str, str]:
    """Return the state of every task of this user that Slurm still has, by its job id."""
    said = _ask("squeue", "--noheader", "--array", "--user", str(os.getuid()), "--format=%i %T")
    return dict(line.split() for line in said.splitlines() if line.strip())


def submitted(folder: Path) -> dict[str, str]:
    """Return which job was to do a run, empty if none was."""
    try:
        note = json.loads((folder / SUBMITTED).read_text())
        return {"job": str(note["job"]), "output": str(note["output"])}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{folder / SUBMITTED}: damaged ({error!r}); remove it once no job does this run"
        ) from error


def _ask(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except FileNotFoundError as error:
        raise BadInput(f"{command[0]}: not found; hydra/launcher=slurm needs Slurm here") from error
    except subprocess.TimeoutExpired as error:
        raise BadInput(f"{command[0]}: no answer within 120 seconds") from error
    if done.returncode:
        raise BadInput(f"{command[0]}: {' '.join(done.stderr.split())[:400]}")
    return done.stdout
