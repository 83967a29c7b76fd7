"""The W&B mirror: offline without a key, a fixed id, all in the run folder, never in the way."""

import os
import sys
import types
from pathlib import Path

import pytest
import tiny_run

from experiments import tracking
from experiments.session import run


class FakeRun:
    def __init__(self, failing=False):
        self.rows, self.summary, self.finished, self.failing = [], {}, None, failing

    def log(self, row, step):
        if self.failing:
            raise ConnectionError("the network is down")
        self.rows.append((step, row))

    def finish(self, exit_code):
        self.finished = exit_code


@pytest.fixture
def fake(monkeypatch):
    """A stand-in for the wandb module that remembers how it was called."""
    module = types.ModuleType("wandb")
    module.calls, module.run, module.seen = [], FakeRun(), {}  # pyright: ignore

    def init(**settings):
        module.calls.append(settings)  # pyright: ignore
        module.seen.update(os.environ)  # pyright: ignore
        return module.run  # pyright: ignore

    module.init, module.Settings = init, dict  # pyright: ignore
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    return module


@pytest.mark.parametrize(("key", "mode"), [(None, "offline"), ("k" * 40, "online")])
def test_auto_is_online_only_with_a_key(monkeypatch, key, mode):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    assert tracking.resolve_mode("auto") == mode
    assert tracking.resolve_mode("disabled") == "disabled"


def test_id_is_fixed_by_what_makes_the_numbers(tmp_path):
    first = tiny_run.config(tmp_path).as_dict()
    elsewhere = tiny_run.config(tmp_path / "b", "tracking=online").as_dict()
    other = tiny_run.config(tmp_path, "seed=1").as_dict()
    assert tracking.run_id(first) == tracking.run_id(elsewhere)
    assert tracking.run_id(first) != tracking.run_id(other)


def test_a_run_is_mirrored(tmp_path, fake):
    config = tiny_run.config(tmp_path, "tracking=auto")
    result = run(config)
    (call,) = fake.calls
    assert call["mode"] == "offline"
    assert call["id"] == tracking.run_id(config.as_dict()) == result["tracking"]["id"]
    assert Path(call["dir"]) == config.folder
    assert Path(fake.seen["WANDB_CACHE_DIR"]).is_relative_to(config.folder)
    assert "WANDB_CACHE_DIR" not in os.environ
    assert [step for step, _ in fake.run.rows] == [row["step"] for row in result["metrics"]]
    assert fake.run.rows[-1][1]["dev.loss"] == result["metrics"][-1]["dev"]["loss"]
    assert fake.run.summary["eval.accuracy"] == result["eval"]["accuracy"]
    assert fake.run.finished == 0


def test_a_failing_mirror_is_said_and_does_not_stop_the_run(tmp_path, fake, capfd):
    fake.run.failing = True
    result = run(tiny_run.config(tmp_path, "tracking=offline"))
    assert result["status"] == "finished"
    assert "the network is down" in result["tracking"]["error"]
    assert capfd.readouterr().err.count("W&B failed") == 1


def test_disabled_does_not_even_import_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import would fail
    assert run(tiny_run.config(tmp_path, "tracking=disabled"))["tracking"]["error"] is None


@pytest.mark.slow
def test_the_real_client_writes_offline_under_the_run_folder_only(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    config = tiny_run.config(tmp_path / "out", "tracking=offline")
    assert run(config)["tracking"]["error"] is None
    assert list((config.folder / "wandb").glob("offline-run-*"))
    assert list(home.iterdir()) == []
