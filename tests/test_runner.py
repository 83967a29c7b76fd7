"""Runs: selection, budgets, resume after kill -9 bit for bit, refusals, sweeps without leaks."""

import json
import os
import signal
import sys

import pytest
import tiny_run
import torch
from safetensors.torch import load_file

from experiments import checkpoint, record, registry, runner, session
from experiments.config import BadInput
from experiments.interrupt import Interrupted
from experiments.registry import METHODS
from experiments.run import main
from experiments.runner import NonFiniteLoss
from experiments.session import run


def rows(folder):
    return [json.loads(line) for line in (folder / record.METRICS).read_text().splitlines()]


def best_weights(config, result):
    at = checkpoint.name(result["best_step"])
    return load_file(config.folder / "checkpoints" / at / checkpoint.WEIGHTS)


def assert_same(config, result, other_config, other):
    wanted, got = tiny_run.without_times(other), tiny_run.without_times(result)
    assert got == wanted
    one, two = best_weights(config, result), best_weights(other_config, other)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert tiny_run.without_times({"r": rows(config.folder)}) == tiny_run.without_times(
        {"r": rows(other_config.folder)}
    )


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_to_a_complete_result(tmp_path, method):
    config = tiny_run.config(tmp_path, f"method={method}")
    result = run(config)
    trains = METHODS[method].trains  # pyright: ignore
    assert json.loads((config.folder / "result.json").read_text()) == result
    assert result["metrics"] == rows(config.folder)
    assert result["steps"] == (12 if trains else 0)
    assert [r["step"] for r in result["metrics"]] == ([0, 3, 4, 6, 8, 9, 12] if trains else [0])
    assert result["eval"]["n"] == result["dev"]["n"] == 8
    assert result["status"] == "finished"
    assert result["pocket"] is False
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
    assert {m: r["steps"] for m, r in steps.items()} == {"mezo": 18, "sgd": 12}
    dev_steps = [row["step"] for row in steps["mezo"]["metrics"] if row["dev"]]
    assert dev_steps == [0, 6, 12, 18]


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


# Where the process is killed: a function of the package, and at which of its calls.
KILLS = {
    "at the first step": (runner, "sample_batch", 1),
    "in mid-training": (runner, "sample_batch", 7),
    "while files are hashed": (checkpoint, "file_sha256", 2),
    "in the second checkpoint": (checkpoint, "_flush", 8),
    "before old checkpoints go": (checkpoint, "prune", 3),
    "in the last dev evaluation": (runner, "evaluate", 4),
    "in the final evaluation": (runner, "evaluate", 5),
    "before the result is there": (session, "_result", 1),
}


def run_and_die(config, module, name, call):
    """Run in a child process that kills itself, as by kill -9, at a call of a function."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status)
        assert os.WTERMSIG(status) == signal.SIGKILL
        return
    try:
        real, count = getattr(module, name), 0

        def deadly(*arguments, **keywords):
            nonlocal count
            count += 1
            if count == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **keywords)

        setattr(module, name, deadly)
        run(config)
    finally:
        os._exit(1)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    found = {}

    def get(*overrides):
        if overrides not in found:
            config = tiny_run.config(tmp_path_factory.mktemp("whole"), *overrides)
            found[overrides] = (config, run(config))
        return found[overrides]

    return get


@pytest.mark.parametrize("where", KILLS)
def test_a_killed_run_goes_on_exactly(tmp_path, undisturbed, where):
    config = tiny_run.config(tmp_path, "method=agzo", "method.refresh_every=5")
    run_and_die(config, *KILLS[where])
    result = run(config)
    assert_same(config, result, *undisturbed("method=agzo", "method.refresh_every=5"))
    assert not list((config.folder / "checkpoints").glob(".*"))


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].trains])  # pyright: ignore
def test_every_method_goes_on_exactly_after_two_kills(tmp_path, undisturbed, method):
    config = tiny_run.config(tmp_path, f"method={method}", "train.checkpoint_every=5")
    run_and_die(config, runner, "sample_batch", 7)
    run_and_die(config, runner, "sample_batch", 5)
    result = run(config)
    assert result["resumed_at"] == [5, 8]
    config.train.checkpoint_every = None  # a free key: it changes nothing but how much is lost
    result["config"]["train"]["checkpoint_every"] = None
    assert_same(config, result, *undisturbed(f"method={method}"))


@pytest.mark.parametrize("precision", ["bf16_master", "bf16_stochastic"])
def test_rounding_policies_go_on_exactly(tmp_path, undisturbed, precision):
    overrides = ("method=lozo", f"precision={precision}")
    config = tiny_run.config(tmp_path, *overrides)
    run_and_die(config, runner, "sample_batch", 7)
    assert_same(config, run(config), *undisturbed(*overrides))


def test_a_stop_request_leaves_a_checkpoint_and_goes_on_exactly(tmp_path, undisturbed, monkeypatch):
    config = tiny_run.config(tmp_path, "method=agzo", "method.refresh_every=5")
    real = runner.sample_batch
    calls = []

    def interrupt(*arguments):
        calls.append(1)
        if len(calls) == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(runner, "sample_batch", interrupt)
    with pytest.raises(Interrupted, match="checkpoint of step 6 is kept; the same command goes on"):
        run(config)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    monkeypatch.undo()
    result = run(config)
    assert result["resumed_at"] == [6]
    assert_same(config, result, *undisturbed("method=agzo", "method.refresh_every=5"))


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


def test_data_that_changed_since_the_start_are_refused(tmp_path):
    tiny_run.write_data(tmp_path / "data")
    config = tiny_run.config(tmp_path, "method=sgd", f"data.root={tmp_path / 'data'}")
    run_and_die(config, runner, "sample_batch", 7)
    path = tmp_path / "data" / "sst2" / "train.jsonl"
    path.write_text(path.read_text().replace("film", "book"))
    with pytest.raises(BadInput, match=r"another origin\.json:\n  data\.train_sha256: "):
        run(config)


def test_a_damaged_checkpoint_stops_the_run_with_its_name(tmp_path):
    config = tiny_run.config(tmp_path, "method=sgd")
    run_and_die(config, runner, "sample_batch", 10)
    path = config.folder / "checkpoints" / checkpoint.name(8) / checkpoint.WEIGHTS
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(checkpoint.CheckpointError, match=r"weights\.safetensors: damaged"):
        run(config)
    os.rename(path.parent, tmp_path / "aside")  # what the message says
    assert run(config)["resumed_at"] == [4]


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
    assert [row["step"] for row in rows(config.folder)] == [0, 3, 4, 6]
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
    saved = best_weights(config, result)
    assert all(torch.equal(p, saved[n]) for n, p in model.named_parameters())
    AutoTokenizer.from_pretrained(config.folder / "model")


def test_keep_checkpoint_false_leaves_only_the_record(tmp_path):
    config = tiny_run.config(tmp_path, "method=sgd", "train.keep_checkpoint=false")
    run(config)
    assert checkpoint.steps(config.folder / "checkpoints") == []


def test_only_one_process_at_a_time(tmp_path):
    config = tiny_run.config(tmp_path, "method=sgd")
    config.folder.mkdir(parents=True)
    with record.lock(config.folder), pytest.raises(BadInput, match="another process"):
        run(config)


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
    assert_same(swept, result, alone, run(alone))
