"""The benchmark runs whole at a tiny shape; its textbook steps are what they stand for."""

import json
import subprocess
import sys

import pytest
import torch

from experiments import bench
from experiments.textbook import TextbookAGZO, TextbookLOZO, TextbookMeZO
from tests.networks import mlp, weights

TINY = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
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
        "import agzo, baselines, experiments.bench\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
