"""Runs: complete results, selection, budgets, refusals, failures, sweeps that leak nothing."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
import tiny_run
import torch

from experiments.config.errors import BadInput
from experiments.methods import registry
from experiments.methods.registry import METHODS
from experiments.records import checkpoint, machine
from experiments.records.lock import lock
from experiments.run import main
from experiments.training import parts as parts_of_a_run
from experiments.training import runner, session
from experiments.training.runner import NonFiniteLoss
from experiments.training.session import run
from tests.quick import quick

COMMON = ("zero_shot", "icl", "sgd", "mezo", "lozo", "agzo", "zo_act", "dominant_layer")


@pytest.mark.parametrize("method", quick(METHODS, *COMMON))
def test_every_method_runs_to_a_complete_result(tmp_path, method):
    config = tiny_run.config(tmp_path, f"method={method}")
    result = run(config)
    trains = METHODS[method].about.trains  # pyright: ignore
    assert json.loads((config.folder / "result.json").read_text()) == result
    assert result["metrics"] == tiny_run.rows(config.folder)
    assert result["steps"] == (12 if trains else 0)
    assert [r["step"] for r in result["metrics"]] == ([0, 3, 4, 6, 8, 9, 12] if trains else [0])
    assert result["eval"]["n"] == result["dev"]["n"] == 8
    assert result["status"] == "finished"
    assert result["pocket"] is False
    assert 0.5 <= result["chance"] <= 1
    assert result["embeddings"]
    assert result["rounding"] == "nearest"
    assert result["data"]["source"] == "local"
    assert result["machine"]["device"] == "cpu"
    assert result["peak_memory_gib"] > 0
    assert result["versions"]["torch"]
    kept = checkpoint.steps(config.folder / "checkpoints")
    assert kept == ([result["best_step"]] if trains else [])


def test_selection_keeps_the_lowest_dev_loss_or_the_best_metric(tmp_path, monkeypatch):
    # dev at steps 0, 4, 8, 12, then the evaluation; step 0 is the best of all and no candidate
    looks = [(1.0, 0.0), (0.7, 3.0), (0.9, 1.0), (0.9, 1.0), (0.5, 0.5)]
    for by, best in (("dev_loss", 8), ("dev_metric", 8)):
        coming = iter(looks if by == "dev_loss" else [*looks[:3], (0.8, 0.1), looks[4]])

        def evaluate(*arguments, coming=coming):
            accuracy, loss = next(coming)
            return {"accuracy": accuracy, "loss": loss, "n": 8, "truncated": 0, "seconds": 0.0}

        monkeypatch.setattr(runner, "evaluate", evaluate)
        result = run(
            tiny_run.config(tmp_path, "method=sgd", f"suite={by}", f"train.select_by={by}")
        )
        assert (result["best_step"], result["dev"]["accuracy"]) == (best, 0.9)
        assert result["eval"]["accuracy"] == 0.5


def test_forwards_budget_gives_each_method_its_steps(tmp_path):
    budget = ["train.steps=null", "train.forwards=36", "train.eval_every=null", "train.evals=3"]
    steps = {m: run(tiny_run.config(tmp_path, f"method={m}", *budget)) for m in ("mezo", "sgd")}
    assert {m: r["steps"] for m, r in steps.items()} == {"mezo": 17, "sgd": 12}
    assert steps["mezo"]["forwards"] == steps["sgd"]["forwards"] == 36
    dev_steps = [row["step"] for row in steps["mezo"]["metrics"] if row["dev"]]
    assert dev_steps == [0, 6, 12, 17]


def test_linear_schedule_ends_at_nought(tmp_path, monkeypatch):
    seen = []

    class Watch(tiny_run.StandIn):
        def step(self, closure, token_mask=None):
            seen.append(self.param_groups[0]["lr"])
            return super().step(closure, token_mask)

    monkeypatch.setitem(registry.METHODS, "sgd", Watch)
    config = tiny_run.config(tmp_path, "train.schedule=linear")
    config.method = {"name": "sgd", "lr": 0.12}
    run(config)
    assert seen == pytest.approx([0.12 - 0.01 * i for i in range(12)])


def test_a_finished_run_is_found_and_not_computed_again(tmp_path, monkeypatch, capsys):
    config = tiny_run.config(tmp_path, "method=sgd")
    result = run(config)
    monkeypatch.setattr(session, "prepare", None)  # any work would fail
    assert run(config) == result
    assert "finished already" in capsys.readouterr().out


def test_a_changed_configuration_is_refused_and_listed(tmp_path):
    config = tiny_run.config(tmp_path, "method=sgd")
    run(config)
    changed = tiny_run.config(tmp_path, "method=sgd", "method.lr=0.5", "train.num_dev=7")
    with pytest.raises(BadInput) as error:
        run(changed)
    assert "method.lr: 0.001 -> 0.5" in str(error.value)
    assert "train.num_dev: 8 -> 7" in str(error.value)
    free = tiny_run.config(tmp_path, "method=sgd", "train.checkpoint_every=1", "traceback=true")
    assert run(free)["steps"] == 12


def test_a_result_names_the_commit_that_ran_whatever_is_committed_meanwhile(tmp_path, monkeypatch):
    root = tmp_path / "code"
    monkeypatch.setattr(machine, "__file__", str(root / "experiments" / "records" / "machine.py"))
    real = session.result_of

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), "-c", "user.name=x", "-c", "user.email=x@x", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def committed_before(*arguments):
        git("commit", "-q", "--allow-empty", "-m", "made while the run ran")
        return real(*arguments)

    root.mkdir()
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "the code that runs")
    ran = git("rev-parse", "HEAD")
    monkeypatch.setattr(session, "result_of", committed_before)
    for seed in (0, 1):  # a worker of a suite does one run after the other
        result = run(tiny_run.config(tmp_path, "method=zero_shot", f"seed={seed}"))
        assert (result["git_commit"], result["git_dirty"]) == (ran, False)
    assert git("rev-parse", "HEAD") != ran


def test_a_loss_that_becomes_nan_stops_at_the_log_point_and_keeps_what_was_good(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(registry.METHODS, "sgd", tiny_run.StandIn)
    config = tiny_run.config(tmp_path, "method=sgd")
    config.method = {"name": "sgd", "lr": 1e-3, "poison_at": 8}
    with pytest.raises(NonFiniteLoss) as error:
        run(config)
    words = ["loss of step 8 is nan", "lr=0.001", "poison_at=8", checkpoint.name(4)]
    assert all(word in str(error.value) for word in words)
    failed = json.loads((config.folder / "failed.json").read_text())
    assert failed["status"] == "failed"
    assert "step 8" in failed["error"]
    assert not (config.folder / "result.json").exists()
    assert [row["step"] for row in tiny_run.rows(config.folder)] == [0, 3, 4, 6]
    assert checkpoint.steps(config.folder / "checkpoints") == [4]


def test_a_perturbed_loss_that_is_not_finite_is_found_too(tmp_path, monkeypatch):
    class Frozen(tiny_run.StandIn):
        def step(self, closure, token_mask=None):
            self.finite = torch.tensor(self.forwards < 4)
            return super().step(closure, token_mask)

    monkeypatch.setitem(registry.METHODS, "sgd", Frozen)
    config = tiny_run.config(tmp_path)
    config.method = {"name": "sgd", "lr": 1e-3}
    with pytest.raises(NonFiniteLoss, match="a step from 5 to 6"):
        run(config)


def test_the_tuned_model_is_saved_on_request(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = tiny_run.config(tmp_path, "method=sgd", "train.save_model=true")
    result = run(config)
    model = AutoModelForCausalLM.from_pretrained(config.folder / "model")
    saved = tiny_run.best_weights(config, result)
    assert all(torch.equal(p, saved[n]) for n, p in model.named_parameters())
    AutoTokenizer.from_pretrained(config.folder / "model")


def test_keep_checkpoint_false_leaves_only_the_record(tmp_path):
    config = tiny_run.config(tmp_path, "method=sgd", "train.keep_checkpoint=false")
    run(config)
    assert checkpoint.steps(config.folder / "checkpoints") == []


def test_only_one_process_at_a_time(tmp_path):
    config = tiny_run.config(tmp_path, "method=sgd")
    config.folder.mkdir(parents=True)
    with lock(config.folder), pytest.raises(BadInput, match="another process"):
        run(config)


def test_a_stop_request_ends_a_sweep(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run", "-m", *tiny_run.arguments(tmp_path, "seed=0,1")])
    real = parts_of_a_run.sample_batch

    def interrupt(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(parts_of_a_run, "sample_batch", interrupt)
    assert main() == 128 + signal.SIGTERM
    assert "checkpoint of step 1 is kept" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("seed*")] == ["seed0"]


def test_a_signal_that_meets_an_error_waits_for_its_line_and_ends_the_sweep(
    tmp_path, monkeypatch, capsys
):
    @contextmanager
    def lock_that_ends_with_a_signal(folder):
        try:
            with lock(folder):
                yield
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # its handler was put back here once

    monkeypatch.setattr(session, "lock", lock_that_ends_with_a_signal)
    monkeypatch.setattr(sys, "argv", ["run", "-m", *tiny_run.arguments(tmp_path, "seed=0,1")])
    sys.argv += ["method=sgd", "method.lr=1e30"]
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    said = capsys.readouterr().err
    assert said.count("allowed are finite losses") == 1
    assert said.strip().endswith("stopped after that error; checkpoints are kept")
    assert [path.name for path in tmp_path.rglob("seed*")] == ["seed0"]
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.slow
def test_a_sweep_of_the_command_line_leaks_nothing_and_leaves_no_litter(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    given = tiny_run.arguments(tmp_path / "out", "seed=0,1", "method=mezo,sgd")
    monkeypatch.setattr(sys, "argv", ["run", "-m", *given])
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    assert main() == 0
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["main", "multirun.yaml"]
    alone = tiny_run.config(tmp_path / "alone", "seed=1", "method=mezo")
    swept = tiny_run.config(tmp_path / "out", "seed=1", "method=mezo")
    result = json.loads((swept.folder / "result.json").read_text())
    tiny_run.assert_same(swept, result, alone, run(alone))
