"""Launchers and states of sweeps, with stand-ins for Slurm (tests/slurm has the real one)."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import real_run
import tiny_run

from experiments.config.errors import BadInput
from experiments.launch import slurm, slurm_task, sweep
from experiments.launch.job import LOG, SUBMITTED, Run
from experiments.launch.launchers import of_slurm, places
from experiments.launch.state import state
from experiments.records.lock import NAME, lock
from experiments.run import main
from experiments.training.session import run

STAND_INS = {
    "sbatch": 'cp "$2" "$HERE/script.sh"; echo x >> "$HERE/submissions"; echo "4${RANDOM:0:1}"',
    "squeue": 'cat "$HERE/queue" 2>/dev/null || true',
    "scontrol": 'echo "$@" >> "$HERE/asked"',
}


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A folder whose programs play Slurm; `queue` is what squeue says."""
    here = tmp_path / "cluster"
    here.mkdir()
    for name, body in STAND_INS.items():
        (here / name).write_text(f"#!/bin/bash\n{body}\n")
        (here / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{here}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HERE", str(here))
    return here


def tiny(out: Path, *overrides: str) -> Run:
    words = tuple(tiny_run.arguments(out, "method=sgd", *overrides))
    return Run(words, tiny_run.config(out, "method=sgd", *overrides))


def start(monkeypatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["run", "-m", *words])
    return main()


def test_the_script_says_what_the_file_says_and_leaves_out_what_is_null(tmp_path):
    settings = slurm.Settings.read(
        {"partition": "long", "time": "01:00:00", "gpus": "a100:1", "memory": None, "at_once": 3}
        | {"setup": ["module load cuda"], "options": {"qos": "high", "exclusive": True}}
    )
    text = slurm.script(settings, tmp_path / "a folder", 5)
    for line in (
        "#SBATCH --partition=long", "#SBATCH --time=01:00:00", "#SBATCH --gres=gpu:a100:1",
        "#SBATCH --array=0-4%3", "#SBATCH --signal=B:USR2@120", "#SBATCH --requeue",
        "#SBATCH --open-mode=append", "#SBATCH --qos=high", "#SBATCH --exclusive",
        f"#SBATCH --output='{tmp_path}/a folder/%a.txt'", "module load cuda",
    ):  # fmt: skip
        assert line in text.splitlines()
    assert "account" not in text
    assert "--mem" not in text
    last = text.splitlines()[-1]
    assert last.startswith("exec ")
    assert last.endswith(
        f"experiments.launch.slurm_task '{tmp_path}/a folder/jobs.json' $SLURM_ARRAY_TASK_ID"
    )
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"cpus": 0}, "hydra.launcher.cpus=0: allowed is 1 or more"),
        ({"at_once": "many"}, "hydra.launcher.at_once=many: allowed is 1 or more"),
        ({"grace": True}, "hydra.launcher.grace=True: allowed is 1 or more"),
        ({"gpus": -1}, "hydra.launcher.gpus=-1: allowed are 0 or more, or type:number"),
        ({"time": 45000}, "hydra.launcher.time=45000: allowed is text, in quotes"),
        ({"setup": "module load cuda"}, "hydra.launcher.setup=module load cuda: allowed is a list"),
        ({"options": "qos"}, "hydra.launcher.options=qos: allowed are options of sbatch"),
        ({"gpu": 1}, "hydra.launcher.gpu: no such key; allowed are partition, account, time"),
    ],
)
def test_settings_that_cannot_be_used(given, said):
    with pytest.raises(BadInput, match=said):
        slurm.Settings.read(given)


@pytest.mark.parametrize(
    ("key", "value"), [("n_jobs", "word"), ("n_jobs", "1.5"), ("gpus", "3"), ("gpus", "x")]
)
def test_local_settings_that_cannot_be_used(tmp_path, monkeypatch, capsys, key, value):
    given = tiny_run.arguments(tmp_path, "method=sgd", "seed=0,1", "hydra/launcher=local")
    assert start(monkeypatch, *given, f"hydra.launcher.{key}={value}") == 2
    assert f"error: hydra.launcher.{key}={value}: allowed is " in capsys.readouterr().err


def test_a_sweep_is_not_done_by_each_process_of_torchrun(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    given = tiny_run.arguments(tmp_path, "method=sgd", "seed=0,1", "hydra/launcher=local")
    assert start(monkeypatch, *given) == 2
    assert "hydra/launcher: process 1 of 2 (torchrun) would do" in capsys.readouterr().err
    assert not list(tmp_path.rglob("result.json"))


def test_the_committed_settings_and_those_of_the_command_line():
    assert of_slurm([]) == slurm.Settings(
        time="04:00:00", gpus=1, cpus=4, memory="32G", at_once=16, setup=[], options={}
    )
    assert of_slurm(["hydra.launcher.partition=long"]).partition == "long"
    with pytest.raises(BadInput, match="partitoin: no such key; allowed beside it"):
        of_slurm(["hydra.launcher.partitoin=long"])


@pytest.mark.slow
def test_a_sweep_is_submitted_once_and_what_was_lost_again(cluster, tmp_path, monkeypatch, capsys):
    words = [*tiny_run.arguments(tmp_path, "method=sgd"), "seed=0,1,2", "hydra/launcher=slurm"]
    run(tiny_run.config(tmp_path, "method=sgd", "seed=2"))
    capsys.readouterr()
    assert start(monkeypatch, *words) == 0
    out = capsys.readouterr().out
    assert "1 done, 0 running, 0 queued, 0 failed, 2 missing" in out
    assert "2 runs submitted" in out
    first, second = (tiny(tmp_path, f"seed={seed}") for seed in (0, 1))
    notes = [json.loads((each.folder / SUBMITTED).read_text()) for each in (first, second)]
    assert [note["job"].partition("_")[2] for note in notes] == ["0", "1"]
    jobs = json.loads((Path(notes[0]["output"]).parent / "jobs.json").read_text())
    assert [job["folder"] for job in jobs] == [str(first.folder), str(second.folder)]
    assert "seed=1" in jobs[1]["overrides"]

    (cluster / "queue").write_text(f"{notes[0]['job']} PENDING\n")
    (second.folder / LOG).write_text("step 3\nerror: CUDA error: unspecified\n")
    assert start(monkeypatch, *words) == 0
    out = capsys.readouterr().out
    assert f"queued  {first.name}: job {notes[0]['job']} is PENDING" in out
    assert "1 done, 0 running, 1 queued, 1 failed, 0 missing" in out
    assert "1 runs submitted" in out


def test_two_who_submit_at_once(cluster, tmp_path):
    (tmp_path / slurm.FOLDER).mkdir()
    with lock(tmp_path / slurm.FOLDER), pytest.raises(BadInput, match="another process"):
        sweep.on_slurm([tiny(tmp_path)], slurm.Settings())
    assert not (cluster / "submissions").exists()


def test_a_sweep_over_a_setting_without_a_variant_is_refused(tmp_path, monkeypatch, capsys):
    words = [*tiny_run.arguments(tmp_path, "method=sgd"), "train.batch_size=2,3"]
    assert start(monkeypatch, *words, "hydra/launcher=local") == 2
    assert "2 runs of this sweep share 1 folders" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("seed=0,-1", "seed=-1: allowed is 0 or more"),
        ("+method.rank=1,2", "method.rank=1: sgd has no such key"),
    ],
)
def test_a_wrong_run_stops_the_sweep_before_the_first(
    cluster, tmp_path, monkeypatch, capsys, wrong, said
):
    words = [*tiny_run.arguments(tmp_path, "method=sgd"), wrong, "hydra/launcher=slurm"]
    assert start(monkeypatch, *words) == 2
    assert f"error: {said}" in capsys.readouterr().err
    assert not (cluster / "submissions").exists()


@pytest.mark.slow
def test_a_local_sweep_tries_every_run_and_says_which_failed(tmp_path, monkeypatch, capsys):
    words = [*tiny_run.arguments(tmp_path, "method=sgd"), "seed=0,1", "hydra/launcher=local"]
    first, second = (tiny(tmp_path, f"seed={seed}") for seed in (0, 1))
    first.folder.parent.mkdir(parents=True)
    first.folder.write_text("in the way")
    assert start(monkeypatch, *words) == 1
    out, err = capsys.readouterr()
    assert f"{first.name}: failed (FileExistsError" in out
    assert f"{second.name}: finished" in out
    assert "error: 1 of 2 runs did not finish, see above" in err
    first.folder.unlink()
    assert start(monkeypatch, *words) == 0
    assert "1 done, 0 running, 0 queued, 0 failed, 1 missing" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_a_signal_to_a_local_sweep_saves_what_runs_and_is_its_exit_code(tmp_path, number):
    long = ("train.steps=4000", "train.eval_every=4000", "train.log_every=50")
    words = ("method=sgd", *long, "seed=0,1", "hydra/launcher=local", "-m")
    log = tiny(tmp_path, *long, "seed=0").folder / "metrics.jsonl"
    parent, pipe = real_run.spawn(tiny_run.arguments(tmp_path, *words))
    deadline = time.time() + 60
    while time.time() < deadline and not (log.exists() and '"step": 50,' in log.read_text()):
        time.sleep(0.05)
    os.kill(parent, number)
    with os.fdopen(pipe) as file:
        said = file.read()
    assert os.waitstatus_to_exitcode(os.waitpid(parent, 0)[1]) == 128 + number, said
    assert "seed0: interrupted (" in said
    assert said.endswith("stopped, what ran is saved; the same command goes on\n")
    assert list((log.parent / "checkpoints").glob("step-*"))
    assert not (log.parent / NAME).exists()


def test_without_slurm_the_error_names_what_is_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    words = [*tiny_run.arguments(tmp_path, "method=sgd"), "hydra/launcher=slurm"]
    assert start(monkeypatch, *words) == 2
    assert "error: squeue: not found" in capsys.readouterr().err


def test_every_kind_of_state(tmp_path, capsys):
    job = tiny(tmp_path)
    folder = job.folder
    assert state(job, {}).kind == "missing"
    folder.mkdir(parents=True)
    with lock(folder):
        assert state(job, {}).kind == "running"
        left = (folder / NAME).read_text()
    (folder / SUBMITTED).write_text(json.dumps({"job": "7_1", "output": str(folder / "7.txt")}))
    assert state(job, {"7_1": "PENDING"}).remark == ": job 7_1 is PENDING"
    assert "as far as one can tell" in state(job, None).remark
    dead = json.loads(left) | {"pid": 2**22 + 1}
    (folder / NAME).write_text(json.dumps(dead))
    (folder / LOG).write_text("step 1\nstep 2\n\n")
    found = state(job, {})
    assert found.kind == "failed"
    assert found.remark.endswith("is gone; last line: step 2")
    (folder / "7.txt").write_text("slurmstepd: error: Detected 1 oom-kill event\n")
    assert state(job, {}).remark.endswith("last line: slurmstepd: error: Detected 1 oom-kill event")
    (folder / NAME).unlink()
    (folder / "failed.json").write_text(
        json.dumps({"error": "OSError: disk\nfull", "config": job.config.as_dict()})
    )
    assert state(job, {}) == state(job, {"8_1": "RUNNING"})
    assert state(job, {}).remark == ": OSError: disk full"
    run(job.config)
    assert state(job, {}).kind == "done"
    sweep.status([job, tiny(tmp_path, "seed=1")])
    out = capsys.readouterr().out
    assert out.endswith("1 done, 0 running, 0 queued, 0 failed, 1 missing\n")


def test_places_for_runs(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert places(None) == ["3", "5"]
    assert places([0]) == ["0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert places(None) == [None]


def task(jobs: Path, **environment: str) -> int:
    """Start a task of the array in a forked child; return its pid."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        os.environ |= {"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "0"}
        os.environ |= {"AGZO_MAX_RESTARTS": "2", **environment}
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        code = slurm_task.main([str(jobs), "0"])
    finally:
        os._exit(code)


@pytest.mark.parametrize(
    ("number", "restarts", "code", "requeued"),
    [
        (signal.SIGUSR2, "1", 0, True),
        pytest.param(signal.SIGUSR2, "2", 1, False, marks=pytest.mark.slow),
        (signal.SIGTERM, "0", 130, False),
    ],
)
def test_a_signal_saves_the_run_and_usr2_queues_it_again(
    cluster, tmp_path, number, restarts, code, requeued
):
    job = tiny(tmp_path, "train.steps=4000", "train.eval_every=4000", "train.log_every=50")
    jobs = tmp_path / "jobs.json"
    jobs.write_text(json.dumps([{"overrides": job.overrides, "folder": str(job.folder)}]))
    process = task(jobs, SLURM_RESTART_COUNT=restarts)
    deadline = time.time() + 60
    metrics = job.folder / "metrics.jsonl"
    while time.time() < deadline:
        time.sleep(0.05)
        if metrics.exists() and '"step": 50,' in metrics.read_text():
            break
    os.kill(process, number)
    os.kill(process, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == code
    assert list((job.folder / "checkpoints").glob("step-*"))
    assert not (job.folder / NAME).exists()
    asked = cluster / "asked"
    assert asked.exists() == requeued
    if requeued:
        assert asked.read_text() == "requeue 12_0\n"
        assert "12_0: queued again (restart 2)" in (job.folder / LOG).read_text()


@pytest.mark.parametrize(
    ("ends", "code", "said"), [("kill -9 $$", 0, "queued again"), ("exit 3", 1, "exit code 3")]
)
def test_a_requeue_may_end_the_command_that_asked_for_it(
    tmp_path, monkeypatch, capsys, ends, code, said
):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f"#!/bin/sh\n{ends}\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for key, value in {
        "SLURM_JOB_ID": "7",
        slurm_task.MOST: "2",
        "SLURM_RESTART_COUNT": "0",
    }.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    monkeypatch.setattr(slurm_task, "_ignore", lambda: None)
    assert slurm_task._again() == code
    assert said in "".join(capsys.readouterr())
