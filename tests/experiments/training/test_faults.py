"""Faults: the real program in a process that is killed, starved, signalled or lied to.

Whatever happens, the same command afterwards gives the bits of an undisturbed run; and where a run
cannot go on it says why in one line, never with a traceback.
"""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time

import pytest
import real_run
import tiny_run
from real_run import assert_as_undisturbed, at_batch, finished

from experiments.records import checkpoint, record
from experiments.records.trajectory import TRAJECTORY
from tests.quick import quick

# Checkpoints, dev and log rows every step or two: most moments lie in some file being written.
DENSE = ("method=lozo", "train.checkpoint_every=1", "train.eval_every=2", "train.log_every=1")


def kill_again_and_again(tmp_path, program, moments, seed):
    """Kill at random moments of the time a run takes, going on after each."""
    begin = time.perf_counter()
    assert real_run.fork(tmp_path / "timed", *DENSE).code == 0
    whole = time.perf_counter() - begin
    draw, kills, rounds = random.Random(seed), 0, 0
    while kills < moments:
        end = program(*DENSE, f"seed={rounds}", kill_after=draw.uniform(0.02, 1.05) * whole)
        assert end.code in (0, -signal.SIGKILL), end.said
        if end.code == 0:
            rounds += 1  # that run is done: kill another
        else:
            kills += 1
    for number in range(rounds + 1):
        assert program(*DENSE, f"seed={number}").code == 0
        assert_as_undisturbed(tmp_path, *DENSE, f"seed={number}")


@pytest.mark.slow
def test_five_random_kills(tmp_path, program):
    kill_again_and_again(tmp_path, program, 5, seed=7)


@pytest.mark.slow
def test_a_hundred_random_kills(tmp_path, program):
    kill_again_and_again(tmp_path, program, 100, seed=8)


@pytest.mark.slow
def test_kill_of_the_command_itself(tmp_path):
    """python -m experiments.run, killed after its first checkpoint, given again."""
    config = tiny_run.config(tmp_path / "out", "method=mezo", "train.checkpoint_every=1")
    process = real_run.start(tmp_path / "out", "method=mezo", "train.checkpoint_every=1")
    while not checkpoint.steps(config.folder / "checkpoints"):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert not (config.folder / record.RESULT).exists()
    again = real_run.fork(tmp_path / "out", "method=mezo", "train.checkpoint_every=1")
    assert again.code == 0, again.said
    assert "goes on from step" in again.said
    assert_as_undisturbed(tmp_path, "method=mezo", "train.checkpoint_every=1")


SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2]


@pytest.mark.parametrize(
    "number", quick(SIGNALS, "SIGTERM", "SIGUSR2", name=lambda number: number.name)
)
def test_a_signal_saves_and_the_exit_code_says_so(tmp_path, program, number):
    end = program("method=mezo", prepare=lambda: at_batch(6, lambda: os.kill(os.getpid(), number)))
    assert end.code == 128 + number
    assert "checkpoint of step 6 is kept; the same command goes on" in end.said
    assert "Traceback" not in end.said
    assert program("method=mezo").code == 0
    assert_as_undisturbed(tmp_path, "method=mezo")
    assert finished(tmp_path / "out", "method=mezo")[1]["resumed_at"] == [6]


def largest_file(size):
    """Let no file of this process grow beyond so many bytes: a write then fails half-way."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_disk_full_while_a_checkpoint_is_written(tmp_path, program):
    end = program("method=mezo", prepare=lambda: at_batch(6, lambda: largest_file(10_000)))
    folder = tiny_run.config(tmp_path / "out", "method=mezo").folder
    assert end.code == 1
    assert f"error: {folder}: cannot be written (" in end.said
    assert "the checkpoint of step 4 is whole" in end.said
    assert "Traceback" not in end.said
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000004"]
    assert "cannot be written" in end.said
    assert json.loads((folder / "failed.json").read_text())["diverged"] is False
    assert program("method=mezo").code == 0
    assert_as_undisturbed(tmp_path, "method=mezo")
    assert not (folder / "failed.json").exists()


@pytest.mark.parametrize("file", quick([record.METRICS, TRAJECTORY], TRAJECTORY))
def test_disk_full_while_logging_tears_a_line_and_nothing_else(tmp_path, program, file):
    folder = tiny_run.config(tmp_path / "out", "method=mezo").folder

    def fill():
        at_batch(6, lambda: largest_file((folder / file).stat().st_size + 20))

    end = program("method=mezo", prepare=fill)
    assert end.code == 1
    assert "cannot be written (" in end.said
    assert "Traceback" not in end.said
    assert program("method=mezo").code == 0
    assert_as_undisturbed(tmp_path, "method=mezo")


def test_a_reader_of_the_output_that_ends_is_no_full_disk(tmp_path, program):
    def gone():
        read, write = os.pipe()
        os.close(read)
        os.dup2(write, 1)

    end = program("method=mezo", prepare=lambda: at_batch(6, gone))
    assert end.code == 1
    assert "what read its output has ended; the checkpoint of step 4 is whole" in end.said
    assert "disk" not in end.said
    assert "Traceback" not in end.said
    assert program("method=mezo").code == 0
    assert_as_undisturbed(tmp_path, "method=mezo")


@pytest.mark.slow
@pytest.mark.parametrize("room", ["60k", "300k"])
def test_a_file_system_that_is_really_full(tmp_path, room):
    """A tmpfs of this size in a mount namespace of the child's own."""
    out = tmp_path / "out"
    out.mkdir()
    unshare = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespaces here")
    command = [sys.executable, "-m", "experiments.run", *tiny_run.arguments(out, "method=mezo")]
    script = f'mount -t tmpfs -o size={room} tmpfs "$0"; "$@"; code=$?; '
    script += 'find "$0" -name failed.json -o -name "step-*"; exit $code'
    done = subprocess.run(
        [*unshare, "sh", "-c", script, str(out), *command],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(real_run.REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert "No space left on device" in said
    assert "cannot be written" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("kind", ["a file in the way", "no permission"])
def test_an_output_folder_that_cannot_be_written(tmp_path, kind):
    """Refused before anything is loaded."""
    tiny_run.world()
    out, prepare = tmp_path / "out", None
    if kind == "a file in the way":
        out.write_text("")
    else:
        out.mkdir(mode=0o555)
        if os.geteuid() == 0:  # to whom permissions say nothing
            for path in (tiny_run.world(), tmp_path, *list(tmp_path.parents)[:3]):
                path.chmod(0o755)

            def prepare():
                os.setgid(65534)
                os.setuid(65534)

    end = real_run.fork(out, "method=mezo", prepare=prepare)
    assert end.code == 2
    assert end.said.startswith(f"error: out: {out} ")
    assert len(end.said.splitlines()) == 1


@pytest.mark.parametrize("launcher", ["basic", "local"])
def test_a_sweep_whose_output_folder_cannot_be_written(tmp_path, launcher):
    (tmp_path / "out").write_text("")
    words = ("method=mezo", "seed=0,1", f"hydra/launcher={launcher}", "-m")
    end = real_run.fork(tmp_path / "out", *words)
    assert end.code == 2
    assert end.said.startswith("error: out: ")
    assert str(tmp_path / "out") in end.said
    assert len(end.said.splitlines()) == 1
