"""Bad input on the command line: exit code 2, one message with key, value and what is allowed."""

import json
import sys

import pytest
import tiny_run
import torch

from experiments.run import main


@pytest.fixture
def cli(tmp_path, monkeypatch, capfd):
    """Run the command line in this process; return its exit code and what it said."""

    def call(*overrides, multirun=False):
        given = tiny_run.arguments(tmp_path / "out", "method=mezo", *overrides)
        monkeypatch.setattr(sys, "argv", ["run", *(["-m"] if multirun else []), *given])
        code = main()
        out, err = capfd.readouterr()
        return code, out, err

    monkeypatch.chdir(tmp_path)
    tiny_run.world()
    capfd.readouterr()  # what making the world said
    return call


CASES = {
    "method=foo": [
        "method=foo",
        "hizoo, icl, lozo, lozo_m, mezo, sgd",
    ],
    "task=foo": ["task=foo", "rte, squad, sst2, wic"],
    "model=foo": ["model=foo", "pocket", "qwen3-0.6b"],
    "metod=agzo": ["metod", "no such key", "method, task, model"],
    "method.rnk=2": ["method.rnk", "no such key", "eps"],
    "train.stps=2": ["train.stps", "no such key", "steps, forwards"],
    "train.steps=many": ["train.steps", "many", "Integer"],
    "method.eps=0": ["method.eps=0.0", "> 0"],
    "method.eps=nan": ["method.eps=nan", "finite"],
    "method.lr=-1": ["method.lr=-1", "above 0"],
    "method.basis=exact": ["method.basis", "no such key", "eps"],
    "method.queries=0": ["method.queries=0", ">= 1"],
    "data.root=/no/such/folder": ["data.root", "/no/such/folder"],
    "task=rte": ["rte/train.jsonl", "missing"],
    "model.path=/no/such/model": ["model.path=/no/such/model", "save_pretrained"],
    "train.batch_size=17": ["train.batch_size=17", "1 to", "16"],
    "train.num_dev=40": ["40", "1 to 39"],
    "train.max_length=3": ["max_length=3", "option", "at least"],
    "train.forwards=100": ["train.steps=12", "train.forwards=100"],
    "precision.rounding=up": ["precision.rounding=up", "nearest, stochastic, master"],
    "nonsense": ["nonsense", "needed is group=option or key=value"],
    "task.options=[{a},{b}]": ["task.options=[{a},{b}]: cannot be read", "stand in quotes"],
}


@pytest.mark.parametrize("override", CASES)
def test_bad_input_is_one_message(cli, override, tmp_path):
    code, out, err = cli(override)
    assert code == 2
    assert err.startswith("error: ")
    assert "Traceback" not in out + err
    assert len(err.splitlines()) == 1
    assert all(word in err for word in CASES[override]), err
    assert not list((tmp_path / "out").rglob("metrics.jsonl")), "work was begun"


@pytest.mark.parametrize("method", ["agzo", "lozo"])
@pytest.mark.parametrize(("rank", "words"), [(0, ["rank=0", ">= 1"]), (999, ["rank=999", "1 to"])])
def test_rank(cli, method, rank, words):
    code, _, err = cli(f"method={method}", f"method.rank={rank}")
    assert code == 2
    assert all(word in err for word in words), err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device(cli):
    code, _, err = cli("device=cuda")
    assert code == 2
    assert "device=cuda" in err
    assert "allowed are cpu, auto" in err


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"sentence": "x", "label": 7}, ["label", "7", "[0, 1]", "line 3"]),
        ({"label": 1}, ["sentence", "missing", "line 3"]),
        ("no object", ["line 3"]),
    ],
)
def test_a_bad_row_is_named(cli, tmp_path, row, words):
    tiny_run.write_data(tmp_path / "data")
    path = tmp_path / "data" / "sst2" / "train.jsonl"
    lines = path.read_text().splitlines()
    lines[2] = json.dumps(row)
    path.write_text("\n".join(lines))
    code, _, err = cli(f"data.root={tmp_path / 'data'}")
    assert code == 2
    assert all(word in err for word in [*words, str(path)]), err


def test_an_empty_split(cli, tmp_path):
    tiny_run.write_data(tmp_path / "data")
    (tmp_path / "data" / "sst2" / "validation.jsonl").write_text("")
    code, _, err = cli(f"data.root={tmp_path / 'data'}")
    assert code == 2
    assert "validation split is empty" in err


def test_a_loss_that_becomes_nan_is_a_failed_run(cli):
    code, _, err = cli("method=sgd", "method.lr=1e30")
    assert code == 1
    assert "nan" in err or "inf" in err
    assert "method.lr" in err
    assert "last good checkpoint" in err
    assert "Traceback" not in err


def test_a_sweep_tries_every_run_and_reports_the_bad_one(cli, tmp_path):
    code, _, err = cli("method.eps=0,1e-3", multirun=True)
    assert code == 2
    assert "method.eps=0" in err
    assert len(list((tmp_path / "out").rglob("result.json"))) == 1


def test_traceback_shows_the_stack(cli):
    code, _, err = cli("debug=trace", "data.root=/no/such/folder")
    assert code == 2
    assert "Traceback" in err
