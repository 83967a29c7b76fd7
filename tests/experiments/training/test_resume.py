"""Resume: after kill -9 at any moment a run gives the bits of an undisturbed one, or says why."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import tiny_run

from analysis.reading import load
from analysis.tables.table import commits
from experiments.config.errors import BadInput
from experiments.methods import registry
from experiments.methods.registry import METHODS
from experiments.records import checkpoint
from experiments.records.interrupt import Interrupted
from experiments.records.progress import Progress
from experiments.training import parts as parts_of_a_run
from experiments.training import runner, session
from experiments.training.session import run
from tests.quick import quick

# Where the process is killed: a function of the package, and at which of its calls.
KILLS = {
    "at the first step": (parts_of_a_run, "sample_batch", 1),
    "in mid-training": (parts_of_a_run, "sample_batch", 7),
    "while files are hashed": (checkpoint, "file_sha256", 2),
    "in the second checkpoint": (checkpoint, "_flush", 8),
    "before old checkpoints go": (checkpoint, "prune", 3),
    "in the last dev evaluation": (runner, "evaluate", 4),
    "in the final evaluation": (runner, "evaluate", 5),
    "before the result is there": (session, "result_of", 1),
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
    tiny_run.assert_same(config, result, *undisturbed("method=agzo", "method.refresh_every=5"))
    assert not list((config.folder / "checkpoints").glob(".*"))


def test_a_killed_run_goes_on_with_data_that_have_moved(tmp_path, undisturbed):
    options = ("method=mezo", "train.checkpoint_every=1")
    config = tiny_run.config(tmp_path, *options)
    run_and_die(config, *KILLS["in mid-training"])
    elsewhere = shutil.copytree(config.data.root, tmp_path / "elsewhere")
    result = run(tiny_run.config(tmp_path, *options, f"data.root={elsewhere}"))
    assert result["resumed_at"] == [6]
    _, other = undisturbed(*options)
    assert result["eval"]["loss"] == other["eval"]["loss"]


def test_a_result_names_the_code_of_each_of_its_processes(tmp_path, monkeypatch):
    config = tiny_run.config(tmp_path, "method=mezo", "train.checkpoint_every=2")
    for call, commit in ((4, "a"), (1, "a"), (4, "b")):  # the second one dies before its first step
        code = {"git_commit": commit * 40, "git_dirty": commit == "b"}
        monkeypatch.setattr(runner.machine, "git_state", lambda code=code: code)
        run_and_die(config, parts_of_a_run, "sample_batch", call)
    result = run(config)
    assert result["resumed_at"] == [2, 4]
    assert result["code"] == [
        {"step": 0, "git_commit": "a" * 40, "git_dirty": False},
        {"step": 2, "git_commit": "b" * 40, "git_dirty": True},
    ]
    run_row = load.row(result, config.folder / "result.json")
    assert commits([run_row]) == "aaaaaaaaaa, bbbbbbbbbb+"


def test_a_checkpoint_that_does_not_name_its_code_leaves_it_unknown():
    progress = Progress(step=5)
    progress.ran_by({"git_commit": "a", "git_dirty": False})
    assert [(each["step"], each["git_commit"]) for each in progress.code] == [(0, None), (5, "a")]


TRAINED = [name for name, method in METHODS.items() if method.about.trains]  # pyright: ignore


@pytest.mark.parametrize("method", quick(TRAINED, "agzo", "zo_act", "adamw"))
def test_every_method_goes_on_exactly_after_two_kills(tmp_path, undisturbed, method):
    config = tiny_run.config(tmp_path, f"method={method}", "train.checkpoint_every=5")
    rehearsed = registry.rehearse(method, registry.settings(config.method, "nearest"))
    looked = getattr(rehearsed, "wants_batches", 0)
    run_and_die(config, parts_of_a_run, "sample_batch", 7 + looked)
    run_and_die(config, parts_of_a_run, "sample_batch", 5 + looked)
    result = run(config)
    assert result["resumed_at"] == [5, 8]
    config.train.checkpoint_every = None  # a free key: it changes nothing but how much is lost
    result["config"]["train"]["checkpoint_every"] = None
    tiny_run.assert_same(config, result, *undisturbed(f"method={method}"))


@pytest.mark.parametrize(
    "options",
    quick(
        [
            ("warm_start=true", "estimator=two_sided"),
            ("rank=3", "refresh_every=7"),
            ("rank=3", "update=momentum", "large_state=true"),
            ("rank=2", "refresh_every=3", "update=adam", "large_state=true"),
            ("basis=exact", "rank=2", "refresh_every=null"),
        ],
        "rank=2,refresh_every=3,update=adam,large_state=true",
        name=",".join,
    ),
)
def test_bases_that_are_kept_go_on_exactly(tmp_path, undisturbed, options):
    """Files keep no layout, and products round by it."""
    overrides = ("method=agzo", *(f"method.{option}" for option in options))
    config = tiny_run.config(tmp_path, *overrides, "train.checkpoint_every=5")
    run_and_die(config, parts_of_a_run, "sample_batch", 7)
    result = run(config)
    assert result["resumed_at"] == [5]
    config.train.checkpoint_every = None
    result["config"]["train"]["checkpoint_every"] = None
    tiny_run.assert_same(config, result, *undisturbed(*overrides))


@pytest.mark.parametrize(
    "precision", ["bf16_master", pytest.param("bf16_stochastic", marks=pytest.mark.slow)]
)
def test_rounding_policies_go_on_exactly(tmp_path, undisturbed, precision):
    overrides = ("method=lozo", f"precision={precision}")
    config = tiny_run.config(tmp_path, *overrides)
    run_and_die(config, parts_of_a_run, "sample_batch", 7)
    tiny_run.assert_same(config, run(config), *undisturbed(*overrides))


def test_a_stop_request_leaves_a_checkpoint_and_goes_on_exactly(tmp_path, undisturbed, monkeypatch):
    config = tiny_run.config(tmp_path, "method=agzo", "method.refresh_every=5")
    real = parts_of_a_run.sample_batch
    calls = []

    def interrupt(*arguments):
        calls.append(1)
        if len(calls) == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(parts_of_a_run, "sample_batch", interrupt)
    with pytest.raises(Interrupted, match="checkpoint of step 6 is kept; the same command goes on"):
        run(config)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    monkeypatch.undo()
    result = run(config)
    assert result["resumed_at"] == [6]
    tiny_run.assert_same(config, result, *undisturbed("method=agzo", "method.refresh_every=5"))


@pytest.mark.slow
def test_a_process_killed_at_any_moment_goes_on_exactly(tmp_path, undisturbed):
    config = tiny_run.config(tmp_path, "method=agzo")
    command = [
        sys.executable,
        "-m",
        "experiments.run",
        *tiny_run.arguments(tmp_path, "method=agzo"),
    ]
    lived, kills = 2.0, 0
    while True:
        process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
        try:
            assert process.wait(timeout=lived) == 0
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            lived, kills = lived + 0.15, kills + 1
    result = json.loads((config.folder / "result.json").read_text())
    assert kills > 3
    tiny_run.assert_same(config, result, *undisturbed("method=agzo"))


def test_data_that_changed_since_the_start_are_refused(tmp_path):
    tiny_run.write_data(tmp_path / "data")
    config = tiny_run.config(tmp_path, "method=sgd", f"data.root={tmp_path / 'data'}")
    run_and_die(config, parts_of_a_run, "sample_batch", 7)
    path = tmp_path / "data" / "sst2" / "train.jsonl"
    path.write_text(path.read_text().replace("film", "book"))
    with pytest.raises(BadInput, match=r"another origin\.json:\n  data\.examples_sha256: "):
        run(config)


def test_a_model_s_code_that_changed_is_refused_where_the_run_has_its_hash(tmp_path):
    folder = shutil.copytree(tiny_run.world() / "model", tmp_path / "model")
    (folder / "own.py").write_text("one = 1")
    config = tiny_run.config(tmp_path, "method=mezo", f"model.path={folder}", "train.steps=4")
    run(config)
    (folder / "own.py").write_text("two = 2")
    with pytest.raises(BadInput, match=r"is finished.*\n  model\.side_files_sha256: .* -> "):
        run(config)
    for name in ("result.json", "origin.json"):  # of a run from before there was the hash
        about = json.loads((config.folder / name).read_text())
        del about["model"]["side_files_sha256"]
        (config.folder / name).write_text(json.dumps(about))
    assert "side_files_sha256" not in run(config)["model"]
    (config.folder / "result.json").unlink()  # not finished: it would go on
    assert run(config)["resumed_at"] == [4]


def test_a_damaged_checkpoint_stops_the_run_with_its_name(tmp_path):
    config = tiny_run.config(tmp_path, "method=sgd")
    run_and_die(config, parts_of_a_run, "sample_batch", 10)
    path = config.folder / "checkpoints" / checkpoint.name(8) / checkpoint.WEIGHTS
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(checkpoint.CheckpointError, match=r"weights\.safetensors: damaged"):
        run(config)
    os.rename(path.parent, tmp_path / "aside")  # what the message says
    assert run(config)["resumed_at"] == [4]
