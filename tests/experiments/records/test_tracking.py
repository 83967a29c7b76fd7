"""The W&B mirror: offline without a key, a fixed id, all in the run folder, never in the way."""

import json
import os
import signal
import sys
import threading
import types
from pathlib import Path

import pytest
import real_run
import tiny_run

from experiments.config.errors import BadInput
from experiments.records import tracking
from experiments.records.interrupt import Interrupted
from experiments.training import parts as parts_of_a_run
from experiments.training.session import run


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
    return module


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch):
    """Begin with none of W&B's variables set."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("key", "mode"), [(None, "offline"), ("k" * 40, "online")])
def test_auto_is_online_only_with_a_key(monkeypatch, key, mode):
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    assert tracking.resolve_mode("auto") == mode
    assert tracking.resolve_mode("disabled") == "disabled"


@pytest.mark.parametrize(
    ("name", "said", "mode"),
    [
        ("WANDB_MODE", "offline", "offline"),
        ("WANDB_MODE", "dryrun", "offline"),
        ("WANDB_MODE", "disabled", "disabled"),
        ("WANDB_MODE", "ONLINE", "online"),
        ("WANDB_MODE", "run", "online"),
        ("WANDB_MODE", "", "online"),
        ("WANDB_DISABLED", "true", "disabled"),
        ("WANDB_DISABLED", "false", "online"),
    ],
)
def test_auto_follows_the_clients_own_variables(monkeypatch, name, said, mode):
    """Whether there is a key or not; a mode on the command line goes before them."""
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv(name, said)
    assert tracking.resolve_mode("auto") == mode
    assert tracking.resolve_mode("offline") == "offline"
    if mode != "online":
        monkeypatch.delenv("WANDB_API_KEY")
        assert tracking.resolve_mode("auto") == mode


def test_a_mode_the_client_has_not_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "of line")
    config = tiny_run.config(tmp_path, "tracking=auto", "model.path=/nowhere")
    with pytest.raises(BadInput, match="WANDB_MODE='of line': allowed are online, offline"):
        run(config)


def test_a_run_that_the_environment_says_is_offline_stays_so(tmp_path, fake, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert run(tiny_run.config(tmp_path, "tracking=auto"))["tracking"]["mode"] == "offline"
    assert [call["mode"] for call in fake.calls] == ["offline"]
    monkeypatch.setenv("WANDB_MODE", "disabled")
    run(tiny_run.config(tmp_path, "tracking=auto", "seed=1"))
    assert len(fake.calls) == 1


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


def test_a_service_that_dies_leaves_a_mirror_written_again_whole(tmp_path, fake, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    logged = []

    def log(row, step):
        logged.append(step)
        if len(logged) == 3:
            fake.run = FakeRun()  # what a new `init` gets
            raise BrokenPipeError("the service was killed")

    monkeypatch.setattr(fake.run, "log", log)
    result = run(tiny_run.config(tmp_path, "tracking=auto"))
    assert [call["mode"] for call in fake.calls] == ["online", "offline"]
    assert len({call["id"] for call in fake.calls}) == 1
    assert [step for step, _ in fake.run.rows] == [row["step"] for row in result["metrics"]]
    assert fake.run.summary["best_step"] == result["best_step"]
    assert fake.run.finished == 0
    assert "the service was killed" in result["tracking"]["error"]
    assert result["tracking"]["complete"] is True


def test_a_service_that_never_answers_is_not_waited_for(tmp_path, fake, monkeypatch):
    monkeypatch.setattr(tracking, "CLOSE_SECONDS", 0.2)
    answer = threading.Event()
    monkeypatch.setattr(fake.run, "finish", lambda exit_code: answer.wait())
    result = run(tiny_run.config(tmp_path, "tracking=offline"))
    answer.set()
    assert result["status"] == "finished"
    assert result["tracking"]["error"] == "TimeoutError: no answer in 0 s"
    assert result["tracking"]["complete"] is False


def test_a_run_that_goes_on_mirrors_what_was_before(tmp_path, fake, monkeypatch):
    config = tiny_run.config(tmp_path, "tracking=offline")
    real, calls = parts_of_a_run.sample_batch, []

    def interrupt(*arguments):
        calls.append(1)
        if len(calls) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(parts_of_a_run, "sample_batch", interrupt)
    with pytest.raises(Interrupted):
        run(config)
    fake.run = FakeRun()
    result = run(config)
    assert result["resumed_at"] == [6]
    assert [step for step, _ in fake.run.rows] == [row["step"] for row in result["metrics"]]


def kill_service(at):
    """Kill the client's service process at the row of this number; for use in a child."""
    real, rows = tracking.Tracker.log, []

    def log(self, row):
        rows.append(row)
        if len(rows) == at:
            for status in Path("/proc").glob("[0-9]*/stat"):
                name, _, rest = status.read_text().partition(") ")
                if "wandb-core" in name and rest.split()[1] == str(os.getpid()):
                    os.kill(int(status.parent.name), signal.SIGKILL)
        real(self, row)

    tracking.Tracker.log = log


@pytest.mark.slow
@pytest.mark.parametrize("how", ["service killed", "unreachable"])
def test_the_real_client_without_its_service(tmp_path, how, monkeypatch):
    overrides = ["tracking=offline"] if how == "service killed" else ["tracking=online"]
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("HOME", str(tmp_path))
    ready = (lambda: kill_service(3)) if how == "service killed" else None
    end = real_run.fork(tmp_path / "out", *overrides, prepare=ready)
    assert end.code == 0, end.said
    assert end.said.count("W&B failed") == 1
    folder = tiny_run.config(tmp_path / "out", *overrides).folder
    about = json.loads((folder / "result.json").read_text())["tracking"]
    assert about["error"]
    assert about["complete"] is True
    newest = max((folder / "wandb").glob("offline-run-*/*.wandb"), key=lambda p: p.stat().st_size)
    assert newest.read_bytes().count(b"dev.loss") >= 4  # every dev evaluation is in it


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
