"""Faults: the real program in a process that is killed, starved, signalled or lied to.

Whatever happens, the same command afterwards gives the bits of an undisturbed run; and where a run
cannot go on it says why in one line, never with a traceback.
"""

import functools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest
import real_run
import tiny_run

from experiments import checkpoint, record
from experiments.session import run
from experiments.trajectory import TRAJECTORY

# Checkpoints, dev and log rows every step or two: most moments lie in some file being written.
DENSE = ("method=lozo", "train.checkpoint_every=1", "train.eval_every=2", "train.log_every=1")


@pytest.fixture
def program(tmp_path):
    """Run the program in a child on runs under tmp_path/out."""
    tiny_run.world()

    def call(*overrides, **options):
        return real_run.fork(tmp_path / "out", *overrides, **options)

    return call


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


def kill_again_and_again(tmp_path, program, moments, seed):
    """Kill at random moments of the time a run takes, going on after each; return the kills."""
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


def test_five_random_kills(tmp_path, program):
    kill_again_and_again(tmp_path, program, 5, seed=7)


@pytest.mark.slow
def test_a_hundred_random_kills(tmp_path, program):
    kill_again_and_again(tmp_path, program, 100, seed=8)


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_saves_and_the_exit_code_says_so(tmp_path, program, number):
    end = program("method=mezo", prepare=lambda: at_batch(6, lambda: os.kill(os.getpid(), number)))
    assert end.code == 128 + number
    assert "checkpoint of step 6 is kept; the same command goes on" in end.said
    assert "Traceback" not in end.said
    assert program("method=mezo").code == 0
    assert_as_undisturbed(tmp_path, "method=mezo")
    assert finished(tmp_path / "out", "method=mezo")[1]["resumed_at"] == [6]


def at_batch(number, action):
    """Call `action` where a run takes its batch of this number (from 1); for use in a child."""
    from experiments import prepare

    real, calls = prepare.sample_batch, []

    def sample(*arguments):
        calls.append(1)
        if len(calls) == number:
            action()
        return real(*arguments)

    prepare.sample_batch = sample


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


@pytest.mark.parametrize("file", [record.METRICS, TRAJECTORY])
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
            for path in (tiny_run.world(), tmp_path, *list(tmp_path.parents)[:2]):
                path.chmod(0o755)

            def prepare():
                os.setgid(65534)
                os.setuid(65534)

    end = real_run.fork(out, "method=mezo", prepare=prepare)
    assert end.code == 2
    assert end.said.startswith(f"error: out: {out} ")
    assert len(end.said.splitlines()) == 1


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """An output folder whose run has checkpoints of steps 4 and 8."""
    out = tmp_path_factory.mktemp("killed")
    end = real_run.fork(out, "method=mezo", prepare=lambda: at_batch(10, die))
    assert end.code == -signal.SIGKILL
    return out


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def cut(path):
    path = path / checkpoint.WEIGHTS
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    path = path / checkpoint.OPTIMIZER
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def reword(change):
    """Change state.json as another program would have written it, with a manifest that fits."""

    def how(path):
        state = json.loads((path / checkpoint.STATE).read_text())
        manifest = json.loads((path / "manifest.json").read_text())
        change(state, manifest)
        (path / checkpoint.STATE).write_text(json.dumps(state))
        manifest["sha256"][checkpoint.STATE] = checkpoint.file_sha256(path / checkpoint.STATE)
        (path / "manifest.json").write_text(json.dumps(manifest))

    return how


DAMAGE = {
    "truncated": (cut, ["weights.safetensors: damaged", "delete the folder"]),
    "bit-flipped": (flip, ["optimizer.safetensors: damaged", "delete the folder"]),
    "of another configuration": (
        reword(lambda state, manifest: state["progress"].update(run="f" * 16)),
        ["step-00000008: the checkpoint of another configuration", "ffffffffffffffff"],
    ),
    "of another format": (
        reword(lambda state, manifest: manifest.update(format=99)),
        ["manifest.json: format=99", "another version", "allowed is 1"],
    ),
    "of a version with more state": (
        reword(lambda state, manifest: state["progress"].update(novelty=1)),
        ["step-00000008: the checkpoint of another", "novelty"],
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_checkpoint_that_cannot_be_used_is_named(tmp_path, program, killed, name):
    how, words = DAMAGE[name]
    shutil.copytree(killed, tmp_path / "out")
    folder = tiny_run.config(tmp_path / "out", "method=mezo").folder
    newest = folder / "checkpoints" / checkpoint.name(8)
    how(newest)
    end = program("method=mezo")
    assert end.code == 1
    said = [line for line in end.said.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert all(word in said[0] for word in [*words, str(newest)]), said
    assert "Traceback" not in end.said
    if name != "truncated":
        return
    newest.rename(tmp_path / "aside")  # what the message says
    assert program("method=mezo").code == 0
    assert_as_undisturbed(tmp_path, "method=mezo")


def add_to_losses(value):
    from experiments import prepare

    real = prepare.loss
    prepare.loss = lambda model, batch: real(model, batch) + value


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_not_finite_fails_the_run_at_its_last_good_checkpoint(
    tmp_path, program, value
):
    end = program("method=mezo", prepare=lambda: at_batch(6, lambda: add_to_losses(float(value))))
    assert end.code == 1
    assert f"error: the loss of step 6 is {value}: allowed are finite losses" in end.said
    assert "a smaller method.lr is the usual cure; last good checkpoint: " in end.said
    assert checkpoint.name(4) in end.said
    assert "Traceback" not in end.said
    folder = tiny_run.config(tmp_path / "out", "method=mezo").folder
    assert json.loads((folder / "failed.json").read_text())["diverged"] is True


def test_a_clock_that_jumps_back(tmp_path, program):
    """Every look at the clock of the wall is an hour before the last one."""

    def backwards():
        now = [time.time()]

        def earlier():
            now[0] -= 3600.0
            return now[0]

        time.time = earlier
        at_batch(6, lambda: os.kill(os.getpid(), signal.SIGTERM))

    assert program("method=mezo", prepare=backwards).code == 128 + signal.SIGTERM
    config = tiny_run.config(tmp_path / "out", "method=mezo")
    for path in sorted(config.folder.rglob("*")):
        os.utime(path, (0, 0))  # and what was written seems ancient
    assert program("method=mezo").code == 0
    assert_as_undisturbed(tmp_path, "method=mezo")
    rows = finished(tmp_path / "out", "method=mezo")[1]["metrics"]
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)
    assert seconds[0] >= 0.0


@pytest.mark.parametrize("when", ["in the middle", "when finished"])
def test_data_that_changed_are_detected(tmp_path, program, when):
    tiny_run.write_data(tmp_path / "data")
    given = ("method=mezo", f"data.root={tmp_path / 'data'}")
    until = None if when == "when finished" else lambda: at_batch(10, die)
    assert program(*given, prepare=until).code == (0 if until is None else -signal.SIGKILL)
    path = tmp_path / "data" / "sst2" / "train.jsonl"
    before = path.read_text()
    path.write_text(before.replace("film", "book"))
    end = program(*given)
    assert end.code == 2
    assert "data.train_sha256: " in end.said
    assert "accuracy" not in end.said, "an old result was presented"
    path.write_text(before)
    assert program(*given).code == 0


def test_a_finished_run_outlives_its_data(tmp_path, program):
    tiny_run.write_data(tmp_path / "data")
    given = ("method=mezo", f"data.root={tmp_path / 'data'}")
    assert program(*given).code == 0
    (tmp_path / "data").rename(tmp_path / "gone")
    end = program(*given)
    assert end.code == 0
    assert "finished already" in end.said
