"""The time to a loss: both walk one path, each pays for its own execution, bad words are named."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_run
import torch

from agzo import AGZO
from analysis.figures import time_to_loss as figure
from baselines import LOZO, MeZO
from experiments.bench import time_to_loss
from experiments.bench.along import Along, Stopwatch, textbook_of
from experiments.bench.loss_curve import Curve, Look, check_agree, first_at
from experiments.bench.time_to_loss import main, table
from tests.networks import mlp, weights

METHODS = {MeZO: {}, LOZO: {"rank": 2, "refresh_every": 3}, AGZO: {"rank": 2}}


@pytest.fixture
def words(tmp_path, monkeypatch):
    """A command line for the tiny world, whose cases share this process."""
    monkeypatch.setattr(time_to_loss, "apart", lambda work, *rest: work(*rest))
    world = tiny_run.world()
    return [
        str(tmp_path / "out.json"), "model=local", f"model.path={world / 'model'}", "data=local",
        f"data.root={world / 'data'}", "train.batch_size=4", "train.num_train=16",
        "train.num_dev=8", "train.num_eval=8", "--every", "2", "--most", "4",
    ]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_a_textbook_walks_along_our_directions_and_pays_for_its_own(method):
    ours, theirs = mlp(torch.float64), mlp(torch.float64)
    walker = method(ours.model, lr=1e-2, eps=1e-3, **METHODS[method])
    guide = method(theirs.model, lr=1e-2, eps=1e-3, **METHODS[method])
    textbook = textbook_of(guide)
    along, alone = Along(textbook, Stopwatch()), textbook_of(method(mlp().model, lr=1e-2, eps=1e-3))
    for step in range(5):
        walker.step(ours.closure)
        (along.directions,), _ = guide.directions(theirs.closure, step=step)
        textbook.step(theirs.closure)
    assert type(textbook) is type(alone)
    for name, weight in weights(ours.model).items():
        torch.testing.assert_close(weight, weights(theirs.model)[name], rtol=1e-5, atol=1e-7)
    torch.manual_seed(0)
    first = next(theirs.model.parameters())
    replaced = textbook.noise(first)
    paid = torch.get_rng_state()
    torch.manual_seed(0)
    along.directions = None
    assert not torch.equal(textbook.noise(first), replaced)
    assert torch.equal(torch.get_rng_state(), paid)


def test_a_pause_is_not_on_the_clock():
    watch = Stopwatch()
    with watch.running(), watch.paused():
        time.sleep(0.05)
    assert 0 <= watch.seconds < 0.04


def test_a_loss_is_reached_at_the_first_look_at_it_or_below():
    looks = [Look(0, 0.0, 0.9), Look(5, 1.0, 0.71), Look(10, 2.0, 0.7), Look(15, 3.0, 0.6)]
    assert first_at(looks, 0.7) == looks[2]
    assert first_at(looks, 0.5) is None


def test_settings_that_no_textbook_has_are_refused():
    cases: list[tuple[Any, str, Any]] = [
        (AGZO, "estimator", "two_sided"),
        (MeZO, "queries", 2),
        (LOZO, "weight_decay", 0.1),
    ]
    for method, key, value in cases:
        with pytest.raises(ValueError, match=rf"method\.{key}={value}: the textbook"):
            textbook_of(method(mlp().model, lr=1e-2, eps=1e-3, **{key: value}))


def test_both_come_to_the_loss_in_as_many_steps(words, capsys):
    rates = ["--lr", "mezo=3e-3", "--methods", "mezo"]
    assert main([*words, *rates, "--target", "0.75"]) == 0
    record = json.loads(Path(words[0]).read_text())
    assert record["complete"]
    assert record["arguments"]["target"] == 0.75
    ours, textbook = record["rows"]
    assert (ours["who"], textbook["who"]) == ("ours", "textbook")
    for row in (ours, textbook):
        assert row["steps"] == row["taken"] == 2
        assert row["seconds"] == row["looks"][-1]["seconds"] > 0
        assert row["step_seconds"] > 0 < row["peak_gib"]
    losses = [[look["dev_loss"] for look in row["looks"]] for row in (ours, textbook)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0][1] <= 0.75 < losses[0][0]
    assert ">= 4 m" in capsys.readouterr().out


def row(who: str, seconds: float | None, **changes: Any) -> Curve:
    found = {
        "method": "lozo", "who": who, "lr": 1e-5, "eps": 1e-3, "seed": 0, "steps": 5,
        "seconds": seconds, "taken": 5, "step_seconds": 2.0 if who == "ours" else 9.0,
        "peak_gib": 1.0, "looks": [{"step": 5, "seconds": 9.0, "dev_loss": 0.5}], "task": "sst2",
        "batch": 16, "dev": 100, "model": {}, "data": {},
    }  # fmt: skip
    return Curve(**found | changes)


def test_the_table_says_how_much_sooner_or_that_a_loss_was_not_reached():
    other = [{"step": 5, "seconds": 40.0, "dev_loss": 0.5625}]
    said = table([row("ours", 10.0), row("textbook", 40.0, looks=other)], 0.5)
    assert "4.00 (4.50 a step; apart 6.2e-02), >= 4 met" in said
    assert ">= 4 missed" in table([row("ours", 10.0), row("textbook", 39.0)], 0.5)
    said = table([row("ours", None, steps=None), row("textbook", None, steps=None)], 0.5)
    assert "> 5" in said
    assert "not reached" in said
    assert "- (4.50 a step" in said


@pytest.mark.parametrize(
    ("added", "message"),
    [
        (["--target", "low"], "--target=low: allowed is a number above 0"),
        (["--target", "-1"], "--target=-1: allowed is a number above 0"),
        (["--methods", "sgd"], "--methods=sgd: allowed are, each once, mezo, agzo, lozo; or all"),
        (["--lr", "sgd=1"], "--lr=sgd=1: allowed is a list of method=number, of mezo, agzo, lozo"),
        (["--lr", "mezo=x"], "--lr=mezo=x: allowed is a list of method=number"),
        (["--most", "0"], "--most=0: allowed are whole numbers from 1 on"),
        (["method.rank=2"], "method.rank=2: not allowed here; methods and lr are --methods and"),
        (["precision=bf16"], "precision.dtype=bf16: allowed is fp32"),
        (["task=squad"], "task=squad: allowed are tasks with options to choose from"),
        (["data=nowhere"], "data=nowhere: unknown; allowed are"),
    ],
)
def test_bad_words_are_one_line(words, added, message, capsys):
    assert main([*words, *added]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}")
    assert said.count("\n") == 1


def test_a_model_that_minds_the_layout_is_refused():
    config: Any = SimpleNamespace(model=SimpleNamespace(name="odd"))
    check_agree(config, 0.7, 0.7005)
    with pytest.raises(ValueError, match=r"model=odd: .* 0.700000 packed and 0.800000 padded"):
        check_agree(config, 0.7, 0.8)


@pytest.mark.slow
def test_a_loss_that_the_untouched_model_has_is_refused(words, capsys):
    assert main([*words, "--methods", "mezo", "--target", "50"]) == 2
    assert "--target=50: the untouched model has dev loss" in capsys.readouterr().err


@pytest.mark.slow
def test_the_pocket_model_comes_to_a_loss_both_ways(tmp_path):
    out = tmp_path / "pocket.json"
    command = [sys.executable, "-m", "experiments.bench.time_to_loss", str(out)]
    run = ["model=pocket", "data=pocket", "--lr", "mezo=3e-4,agzo=3e-4,lozo=1e-4"]
    subprocess.run([*command, *run, "--target", "0.8", "--most", "20"], check=True)
    rows = json.loads(out.read_text())["rows"]
    for ours, textbook in zip(rows[::2], rows[1::2], strict=True):
        assert ours["steps"] == textbook["steps"]
        assert min(ours["seconds"], textbook["seconds"]) > 0
    assert figure.main([str(out), "--out", str(tmp_path / "drawn")]) == 0
    caption = " ".join((tmp_path / "drawn.txt").read_text().split())
    assert "Pocket results are a sanity check" in caption
