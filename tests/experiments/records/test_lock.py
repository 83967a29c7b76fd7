"""The lock of a folder: held once, freed by death, taken over when stale, with real processes."""

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

from experiments.records import lock as locks
from experiments.records.lock import GUARD, NAME, Busy, died, holder, lock
from experiments.training.session import run

HOLD = """
import sys, time
from pathlib import Path
from experiments.records.lock import Busy, lock
try:
    with lock(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(float(sys.argv[2]))
except Busy as busy:
    print(f"busy: {busy}", flush=True)
"""


def hold(folder: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(folder), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_of_many_processes_at_once_one_holds_it_and_the_others_say_who(tmp_path):
    many = [hold(tmp_path, 60) for _ in range(4)]
    said = [first_line(process) for process in many]
    assert sorted(line[:4] for line in said) == ["busy", "busy", "busy", "held"]
    (owner,) = (p for p, line in zip(many, said, strict=True) if line == "held")
    for line in said:
        assert (
            line == "held" or f"another process is running this run: process {owner.pid} on" in line
        )
    owner.send_signal(signal.SIGINT)
    for process in many:
        process.wait()
    assert not (tmp_path / NAME).exists()


def test_a_killed_holder_is_recognised_at_once_and_replaced_once(tmp_path):
    first = hold(tmp_path, 60)
    assert first_line(first) == "held"
    found = holder(tmp_path)
    assert found is not None
    assert found.pid == first.pid
    assert died(tmp_path) is None
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert holder(tmp_path) is None
    left = died(tmp_path)
    assert left is not None
    assert left.pid == first.pid
    many = [hold(tmp_path, 60) for _ in range(4)]
    assert sorted(first_line(p)[:4] for p in many) == ["busy", "busy", "busy", "held"]
    for process in many:
        process.kill()
        process.wait()


def test_a_process_id_that_came_again_is_another_process(tmp_path):
    with lock(tmp_path):
        mine = json.loads((tmp_path / NAME).read_text())
    (tmp_path / NAME).write_text(json.dumps(mine | {"birth": mine["birth"] - 1}))
    assert holder(tmp_path) is None


@pytest.mark.parametrize("content", ["elsewhere", "unreadable"])
def test_a_lock_of_another_machine_is_stale_when_it_was_not_touched_for_long(tmp_path, content):
    with lock(tmp_path):
        mine = json.loads((tmp_path / NAME).read_text())
    path = tmp_path / NAME
    other = json.dumps(mine | {"host": "node7", "place": "elsewhere"})
    path.write_text(other if content == "elsewhere" else "")
    with (
        pytest.raises(Busy, match="node7" if content == "elsewhere" else "unknown"),
        lock(tmp_path),
    ):
        pass
    aged = time.time() - locks.STALE - 5
    os.utime(path, (aged, aged))
    assert holder(tmp_path) is None
    with lock(tmp_path):
        assert json.loads(path.read_text())["host"] == mine["host"]


def test_the_holder_touches_its_lock_and_stops_when_it_was_taken(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(locks, "BEAT", 0.05)
    path = tmp_path / NAME

    def be_robbed():
        os.utime(path, (0, 0))
        time.sleep(0.5)
        assert path.stat().st_mtime > 0
        mine = json.loads(path.read_text())
        path.write_text(json.dumps(mine | {"token": "thief", "host": "node7"}))
        for _ in range(100):
            time.sleep(0.05)

    with pytest.raises(KeyboardInterrupt), lock(tmp_path):
        be_robbed()
    assert "taken over by process" in capfd.readouterr().err
    assert json.loads(path.read_text())["token"] == "thief"  # not ours to remove


def test_a_lock_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(locks.json, "dumps", full)
    with pytest.raises(OSError, match="No space"), lock(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [GUARD]


def test_two_runs_in_one_folder_the_second_is_refused_in_one_line(tmp_path):
    given = ("method=sgd", "train.steps=3000", "train.eval_every=3000")
    folder = tiny_run.config(tmp_path, "method=sgd").folder
    first, said = real_run.spawn(tiny_run.arguments(tmp_path, *given))
    try:
        deadline = time.time() + 60
        while holder(folder) is None and time.time() < deadline:
            time.sleep(0.1)
        second = real_run.fork(tmp_path, *given)
    finally:
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)
        os.close(said)
    assert second.code == 2
    assert second.said.count("\n") == 1
    assert f"error: {folder}: another process is running this run: process {first}" in second.said
    assert holder(folder) is None


def test_a_finished_run_is_unlocked(tmp_path):
    config = tiny_run.config(tmp_path, "method=sgd")
    run(config)
    assert not (config.folder / NAME).exists()
