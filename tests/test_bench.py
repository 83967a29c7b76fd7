"""The benchmark runs whole at a tiny shape; its textbook steps are what they stand for."""

import json
import subprocess
import sys

import pytest
import torch

from experiments import bench, bench_evaluation
from experiments.textbook import TextbookAGZO, TextbookLOZO, TextbookMeZO
from tests.networks import mlp, weights

TINY = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


def test_every_method_gets_a_row(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(bench.SHAPES, "60m", TINY)
    out = tmp_path / "bench.json"
    words = ["bench", "--batch", "2", "--length", "8", "--rounds", "1", "--out", str(out)]
    monkeypatch.setattr("sys.argv", words)
    bench.main()
    record = json.loads(out.read_text())
    assert [row["method"] for row in record["rows"]] == list(bench.METHODS)
    for row in record["rows"]:
        assert row["ratio"] > 0
        assert row["peak_gib"] > 0
        assert (row["update"] is None) == row["method"].endswith(("textbook", "backprop"))
    assert "two plain forwards" in capsys.readouterr().out


def test_every_kind_of_task_is_evaluated_both_ways(tmp_path, monkeypatch):
    monkeypatch.setitem(bench.SHAPES, "60m", TINY)
    out = tmp_path / "bench.json"
    words = ["bench", "--shape", "60m", "--examples", "6", "--rounds", "1", "--out", str(out)]
    monkeypatch.setattr("sys.argv", words)
    bench_evaluation.main()
    rows = json.loads(out.read_text())["rows"]
    assert [row["kind"] for row in rows] == [kind.name for kind in bench_evaluation.KINDS]
    for row in rows:
        assert row["per_second"] > 0
        assert (row["largest_difference"] is None) == (row["kind"] == "generation")
        assert (row["largest_difference"] or 0) < 1e-5


@pytest.mark.parametrize("textbook", [TextbookMeZO, TextbookLOZO, TextbookAGZO])
def test_textbook_steps_lower_a_loss_and_restore_what_they_perturb(textbook):
    net = mlp(torch.float64)
    method = textbook(net.model, lr=2e-2, eps=1e-3)
    before = net.closure().item()
    for _ in range(300):
        method.step(net.closure)
    assert net.closure().item() < before
    still = weights(net.model)
    method.lr = 0.0
    method.step(net.closure)
    for name, parameter in net.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), still[name], rtol=0, atol=1e-12)


def test_the_benchmark_and_the_library_need_no_experiment_packages():
    """They run on a machine that has torch and transformers only."""
    code = (
        "import sys\n"
        "for name in ('hydra', 'omegaconf', 'wandb', 'datasets'): sys.modules[name] = None\n"
        "import agzo, baselines, experiments.bench, experiments.bench_evaluation\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
