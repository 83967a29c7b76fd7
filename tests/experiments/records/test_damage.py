"""Damage: checkpoints that cannot be used, losses that are not finite, clocks and data that change.

The real program in a process of its own: it goes on exactly, or says in one line why it cannot.
"""

import json
import os
import shutil
import signal
import time

import pytest
import real_run
import tiny_run
from real_run import assert_as_undisturbed, at_batch, die, finished

from experiments.records import checkpoint
from tests.quick import quick


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """An output folder whose run has checkpoints of steps 4 and 8."""
    out = tmp_path_factory.mktemp("killed")
    end = real_run.fork(out, "method=mezo", prepare=lambda: at_batch(10, die))
    assert end.code == -signal.SIGKILL
    return out


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
    from experiments.training import parts

    real = parts.loss
    parts.loss = lambda model, batch: real(model, batch) + value


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


WHEN = ("in the middle", "when finished")


@pytest.mark.parametrize("when", quick(WHEN, "in the middle"))
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


def test_a_model_that_changed_since_the_run_finished_is_detected(tmp_path, program):
    folder = shutil.copytree(tiny_run.world() / "model", tmp_path / "model")
    given = ("method=mezo", f"model.path={folder}")
    assert program(*given).code == 0
    with (folder / "config.json").open("a") as file:
        file.write("\n")
    end = program(*given)
    assert end.code == 2
    assert "model.sha256: " in end.said
    assert "accuracy" not in end.said, "an old result was presented"
