"""A sweep on a real Slurm of one node: preempted, killed, drained, resubmitted; results equal."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_run
from cluster import absent, ask, cluster

from experiments.records import checkpoint, record
from experiments.records.lock import holder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(absent()), reason=f"not installed: {', '.join(absent())}"),
]
RUNS = [
    "method=agzo,mezo", "seed=0,1,2", "model=pocket", "data=pocket", "task=sst2", "threads=1",
    "train.steps=500", "train.evals=3", "train.eval_every=null", "train.checkpoint_every=25",
    "train.num_train=64", "train.num_dev=16", "train.num_eval=16", "train.batch_size=8",
    "method.lr=1e-4", "tracking=disabled", "device=cpu",
]  # fmt: skip
LAUNCHER = ["gpus=0", "cpus=1", "memory=null", "at_once=2", "grace=30"]


def sweep(launcher: str, environment: dict[str, str], *words: str) -> str:
    command = [sys.executable, "-m", "experiments.run", "-m", f"hydra/launcher={launcher}"]
    keys = {word.partition("=")[0] for word in words}
    given = [*command, *(word for word in RUNS if word.partition("=")[0] not in keys), *words]
    done = subprocess.run(given, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def until(what: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.2)


def folders(out: Path) -> list[Path]:
    return [out / f"main/pocket/sst2/{m}/seed{s}" for m in ("agzo", "mezo") for s in (0, 1, 2)]


def job(folder: Path) -> str:
    return json.loads((folder / "submitted.json").read_text())["job"]


def test_a_disturbed_sweep_equals_an_undisturbed_one(tmp_path):
    sweep("local", dict(os.environ), "hydra.launcher.n_jobs=2", f"out={tmp_path / 'calm'}")
    out = tmp_path / "disturbed"
    words = [f"out={out}", *(f"hydra.launcher.{word}" for word in LAUNCHER)]
    all_runs = folders(out)

    def training() -> list[Path]:
        return [f for f in all_runs if holder(f) and checkpoint.steps(f / "checkpoints")]

    with cluster() as environment:

        def submit() -> str:
            return sweep("slurm", environment, *words)

        def tasks(*states: str) -> list[str]:
            said = ask(environment, "squeue", "-h", "-r", "-o", "%i %T").splitlines()
            return [line.split()[0] for line in said if line.split()[1] in states]

        assert "6 runs submitted" in submit()
        assert "0 runs submitted" in submit()  # at once again: all are queued or running
        until(lambda: len(training()) == 2)

        preempted, killed = training()
        victim = holder(killed)
        assert victim is not None
        os.kill(victim.pid, signal.SIGKILL)
        # scancel tries again for a minute where the job is requeued under its hands
        ask(environment, "timeout", "2", "scancel", "--batch", "--signal=USR2", job(preempted))
        until(lambda: holder(preempted) is None and holder(killed) is None)
        until(lambda: job(killed) not in tasks("PENDING", "RUNNING", "COMPLETING"))
        assert job(preempted) in tasks("PENDING", "COMPLETING", "RUNNING")  # it requeued itself
        assert "queued again (restart 1)" in (preempted / "log.txt").read_text()
        again = submit()
        assert "1 failed" in again
        assert "1 runs submitted" in again

        node = ask(environment, "sinfo", "-h", "-o", "%n").split()[0]
        ask(environment, "scontrol", "update", f"nodename={node}", "state=drain", "reason=test")
        until(lambda: not tasks("RUNNING", "COMPLETING"))  # what ran may end; nothing begins
        waiting = tasks("PENDING")
        assert waiting
        time.sleep(5)
        assert set(tasks("PENDING")) == set(waiting)  # in whatever order they are listed
        ask(environment, "scontrol", "update", f"nodename={node}", "state=resume")

        until(lambda: len(training()) >= 1)
        urgent = ["-p", "urgent", "-c", "2", "-o", "/dev/null", "--wrap", "sleep 3"]
        ask(environment, "sbatch", *urgent)  # takes the machine from both
        until(lambda: not tasks("PENDING", "RUNNING", "COMPLETING"))
        assert "6 done, 0 running, 0 queued, 0 failed, 0 missing" in submit()
        logs = "".join((folder / "log.txt").read_text() for folder in all_runs)
        assert logs.count("queued again") >= 2  # by signal, and by the urgent job

    pairs = zip(all_runs, folders(tmp_path / "calm"), strict=True)
    assert sum(bool(equal(one, two)) for one, two in pairs) >= 3


def test_a_run_longer_than_its_time_is_requeued_until_it_is_done(tmp_path):
    one = ["method=mezo", "seed=0", "train.steps=3000"]
    sweep("local", dict(os.environ), *one, f"out={tmp_path / 'calm'}")
    out = tmp_path / "short"
    a_minute = "time='1'"  # signal after half of it
    words = [f"hydra.launcher.{word}" for word in (*LAUNCHER, a_minute)]
    folder, calm = (root / "main/pocket/sst2/mezo/seed0" for root in (out, tmp_path / "calm"))
    with cluster() as environment:
        sweep("slurm", environment, *one, *words, f"out={out}")
        until((folder / record.RESULT).exists)
    assert "queued again (restart 1)" in (folder / "log.txt").read_text()
    assert len(equal(folder, calm)) >= 1


def equal(one: Path, two: Path) -> list[int]:
    """Assert that two runs are the same, bit for bit; return the steps at which one was resumed."""
    result, wanted = (json.loads((f / record.RESULT).read_text()) for f in (one, two))
    assert tiny_run.without_times(result) == tiny_run.without_times(wanted)
    for step in checkpoint.steps(two / "checkpoints"):
        at = Path("checkpoints", checkpoint.name(step), checkpoint.WEIGHTS)
        assert (one / at).read_bytes() == (two / at).read_bytes()
    return result["resumed_at"]
