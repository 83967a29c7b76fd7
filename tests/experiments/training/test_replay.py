"""The trajectory log: exact, crash-safe, and enough to make a run's weights again without data."""

import json
import shutil
import sys

import pytest
import tiny_run
import torch

from experiments.config.errors import BadInput
from experiments.records import checkpoint
from experiments.records.trajectory import TRAJECTORY, Head, Step, Trajectory, read
from experiments.replay import main, replay
from experiments.training.session import run
from tests.quick import quick

LAST = "train.eval_every=12"  # so that the checkpoint that is kept is the last step's
EXACT = {
    "mezo": ("method=mezo", "method.queries=2", "train.schedule=linear"),
    "mezo, decay": ("method=mezo", "method.weight_decay=0.1", "method.embeddings=frozen"),
    "mezo, adam": ("method=mezo", "method.update=adam", "method.large_state=true"),
    "lozo": ("method=lozo", "method.refresh_every=5"),
    "lozo_m": ("method=lozo_m", "method.refresh_every=5"),
    "one layer": ("method=dominant_layer",),
    "one layer, lozo": ("method=dominant_layer", "method.base=lozo", "method.rank=1"),
    "fzoo": ("method=fzoo", "method.queries=3"),
    "conmezo": ("method=conmezo",),
    "subzero": ("method=subzero", "method.queries=3", "method.rank=2"),
    "zo_muon": ("method=zo_muon", "method.rank=2"),
    "grzo": ("method=grzo", "train.accumulation=4"),
    "scalar": ("method=mezo", "method.update=scalar"),
    "lora": ("method=mezo", "adapter=lora"),
    "bf16": ("method=lozo", "precision=bf16_stochastic"),
    "bf16, master": ("method=lozo", "precision=bf16_master"),
}


@pytest.fixture(scope="module")
def mezo(tmp_path_factory):
    config = tiny_run.config(tmp_path_factory.mktemp("mezo"), "method=mezo")
    return config, run(config)


def assert_weights(model, folder, step):
    own = checkpoint.weights(model)
    again = {key: value.clone() for key, value in own.items()}
    checkpoint.load_weights(folder / "checkpoints", step, model)
    assert all(torch.equal(again[key], value) for key, value in checkpoint.weights(model).items())


@pytest.mark.parametrize(
    "name", quick(EXACT, "mezo", "lozo_m", "one layer", "grzo", "lora", "bf16")
)
def test_weights_are_made_again_to_the_bit(tmp_path, name):
    config = tiny_run.config(tmp_path, *EXACT[name], LAST)
    run(config)
    model, _, _ = replay(config.folder)
    assert_weights(model, config.folder, 12)


def test_any_step_and_no_data_are_needed(tmp_path, mezo):
    config, result = mezo
    folder = shutil.copytree(config.folder, tmp_path / "run")
    text = (folder / "config.yaml").read_text()
    data = str(tiny_run.world() / "data")
    assert data in text
    (folder / "config.yaml").write_text(text.replace(data, "/nowhere"))
    assert_weights(replay(folder, result["best_step"])[0], folder, result["best_step"])


def test_the_command_writes_a_model(tmp_path, mezo, monkeypatch, capsys):
    from transformers import AutoModelForCausalLM

    config, result = mezo
    out, best = tmp_path / "new" / "model", str(result["best_step"])
    command = ["replay", str(config.folder), "--out", str(out), "--step", best]
    monkeypatch.setattr(sys, "argv", command)
    assert main() == 0
    model = AutoModelForCausalLM.from_pretrained(out)
    saved = tiny_run.best_weights(config, result)
    assert all(torch.equal(p, saved[n]) for n, p in model.named_parameters())
    assert main() == 2
    assert f"--out {out}: it is there already" in capsys.readouterr().err


def test_the_layer_that_a_scan_chose_is_taken_from_the_log(tmp_path):
    config = tiny_run.config(tmp_path, "method=dominant_layer", LAST)
    run(config)
    path = config.folder / "config.yaml"
    text = path.read_text()
    assert "  layer: 1\n  " in text
    text = text.replace("  layer: 1\n", "  layer: null\n").replace(
        "scan_batches: 0", "scan_batches: 4"
    )
    path.write_text(text)
    assert_weights(replay(config.folder)[0], config.folder, 12)


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (("method=agzo",), "bases of each batch's activations"),
        (("method=zo_act",), "activations of training batches"),
        (("method=dominant_layer", "method.base=agzo"), "bases of each batch's activations"),
        (("method=sgd",), "no random directions"),
    ],
)
def test_methods_that_need_data_are_refused_with_the_reason(tmp_path, overrides, why):
    config = tiny_run.config(tmp_path, *overrides)
    run(config)
    assert (config.folder / TRAJECTORY).exists() == (overrides != ("method=sgd",))
    with pytest.raises(BadInput, match=why):
        replay(config.folder)


def change(folder, file, old, new):
    path = folder / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


WRONG = {
    "other start weights": (("origin.json", '"sha256": "', '"sha256": "0'), r"model\.sha256="),
    "other noise": ((TRAJECTORY, '"stream_version": "', '"stream_version": "0'), "stream_version="),
    "a step is missing": ((TRAJECTORY, '"step": 5,', '"step": 6,'), "step 5 is missing"),
    "no log": ((TRAJECTORY, '{"', '"{'), "missing or empty"),
    "no run": (("config.yaml", "method:", "  method: ["), "no folder of a run"),
    "a strange key": (("config.yaml", "seed: 0", "sead: 0"), "sead"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_replayed_is_refused(tmp_path, mezo, name):
    folder = shutil.copytree(mezo[0].folder, tmp_path / "run")
    (file, old, new), words = WRONG[name]
    change(folder, file, old, new)
    with pytest.raises(BadInput, match=words):
        replay(folder)


def test_the_log_says_what_was_done(mezo):
    config, result = mezo
    head, steps, _ = read(config.folder / TRAJECTORY)
    assert head == Head(result["stream_version"], "float32")
    assert [each.step for each in steps] == list(range(1, 13))
    assert {(each.seed, *each.lr) for each in steps} == {(config.seed, config.method["lr"])}
    for row in result["metrics"][1:]:
        assert steps[row["step"] - 1].projected_grad == [row["projected_grad"]]
    assert (config.folder / TRAJECTORY).stat().st_size < 12 * 120


HEAD = Head("2", "float32")


def steps(*numbers):
    return [Step(number, 0, [number / 3], [0.1]) for number in numbers]


@pytest.mark.parametrize("torn", range(0, 60, 7))
def test_a_torn_last_line_is_no_part_of_the_log(tmp_path, torn):
    log = Trajectory(tmp_path, 0)
    log.append(HEAD, steps(1, 2, 3))
    whole = log.path.read_bytes()
    log.append(HEAD, steps(4))
    log.path.write_bytes(log.path.read_bytes()[: len(whole) + torn])
    assert read(log.path)[1] == steps(1, 2, 3)
    Trajectory(tmp_path, 3).append(HEAD, steps(4, 5))
    assert read(log.path)[:2] == (HEAD, steps(1, 2, 3, 4, 5))


def test_going_on_cuts_later_steps_and_beginning_anew_cuts_all(tmp_path):
    log = Trajectory(tmp_path, 0)
    log.append(HEAD, steps(1, 2, 3, 4))
    Trajectory(tmp_path, 2)
    assert read(log.path)[1] == steps(1, 2)
    log.path.write_text(json.dumps({"format": 1})[:7])
    Trajectory(tmp_path, 2).append(HEAD, steps(3))  # not even a head was whole
    assert read(log.path)[:2] == (HEAD, steps(3))
    Trajectory(tmp_path, 0)
    assert not log.path.exists()


def test_no_step_waits_for_the_device(tmp_path, monkeypatch):
    """Projected gradients are read when losses are: at a row, a dev evaluation, a checkpoint."""
    reads = []
    real = Trajectory.append
    monkeypatch.setattr(
        Trajectory,
        "append",
        lambda self, head, new: (reads.append(len(new)), real(self, head, new)),
    )
    run(tiny_run.config(tmp_path, "method=mezo"))  # rows at 3, 6, 9; dev at 4, 8, 12
    assert reads == [3, 1, 2, 2, 1, 3]
