"""The real program in a process of its own, to be killed, starved of disk or signalled.

`start` runs `python -m experiments.run` anew, with seconds of imports. `fork` calls its `main` in a
child of this process, which has imported all of it, and can prepare the child first: limits, ids, a
patched clock.
"""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tiny_run

from experiments.records.trajectory import TRAJECTORY
from experiments.training import parts as parts_of_a_run
from experiments.training.session import run

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass
class End:
    """How a process ended: its exit code, minus the signal if one killed it, and what it said."""

    code: int
    said: str


def start(out: Path, *overrides: str, **environment: str) -> subprocess.Popen[str]:
    """Start `python -m experiments.run` on a run of the tiny world."""
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.run", *tiny_run.arguments(out, *overrides)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def spawn(arguments: list[str], prepare: Callable[[], object] | None = None) -> tuple[int, int]:
    """Fork a child that calls the program's `main`; return its pid and a pipe of what it says."""
    from experiments.run import main

    said, write = os.pipe()  # not a file: the child may be out of disk
    child = os.fork()
    if child:
        os.close(write)
        return child, said
    code = 99
    with contextlib.suppress(BaseException):
        os.dup2(write, 1)
        os.dup2(write, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1)
        sys.stderr = os.fdopen(2, "w", buffering=1)
        sys.argv = ["run", *arguments]
        if prepare is not None:
            prepare()
        code = main()
        sys.stdout.flush()
    os._exit(code)


def fork(
    out: Path,
    *overrides: str,
    prepare: Callable[[], object] | None = None,
    kill_after: float | None = None,
) -> End:
    """Run the program in a forked child to its end, or `kill -9` it after so many seconds."""
    child, pipe = spawn(tiny_run.arguments(out, *overrides), prepare)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, 9)
    with os.fdopen(pipe) as file:
        said = file.read()
    _, status = os.waitpid(child, 0)
    return End(os.waitstatus_to_exitcode(status), said)


def finished(out, *overrides):
    config = tiny_run.config(out, *overrides)
    return config, json.loads((config.folder / "result.json").read_text())


@functools.cache
def undisturbed(*overrides):
    folder = tempfile.TemporaryDirectory()
    config = tiny_run.config(folder.name, *overrides)
    return config, run(config), folder  # which is there as long as this is kept


def assert_as_undisturbed(tmp_path, *overrides):
    whole, result, _ = undisturbed(*overrides)
    config, found = finished(tmp_path / "out", *overrides)
    tiny_run.assert_same(config, found, whole, result)
    logs = [each.folder / TRAJECTORY for each in (config, whole)]
    assert logs[0].exists() == logs[1].exists()
    if logs[0].exists():
        assert logs[0].read_bytes() == logs[1].read_bytes()


def at_batch(number, action):
    """Call `action` where a run takes its batch of this number (from 1); for use in a child."""

    real, calls = parts_of_a_run.sample_batch, []

    def sample(*arguments):
        calls.append(1)
        if len(calls) == number:
            action()
        return real(*arguments)

    parts_of_a_run.sample_batch = sample


def die():
    os.kill(os.getpid(), signal.SIGKILL)
