"""~ in every path that a user gives: keys of a run, sweeps, options of every command."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import real_run
import tiny_run
from hypothesis import given
from hypothesis import strategies as st

from analysis.reading.command import place
from experiments import merge, replay
from experiments.config.composed import compose
from experiments.config.errors import BadInput
from experiments.config.paths import NoHome, home, quoted, user_path
from experiments.models import wheel
from experiments.models.loading import locate
from experiments.records.provenance import changes_since
from experiments.training.session import run

REPOSITORY = Path(__file__).resolve().parents[3]
NOBODY = "~no-such-user-here/x"


@pytest.fixture
def at_home(tmp_path, monkeypatch):
    """A home folder with the tiny world in it."""
    (tmp_path / "home").mkdir()
    for name in ("model", "data"):
        (tmp_path / "home" / name).symlink_to(tiny_run.world() / name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


AT_HOME = ("model.path=~/model", "data.root=~/data", "method=mezo", "train.steps=4")


def test_home_is_meant_in_front_alone(at_home):
    assert user_path("~") == at_home
    assert user_path("~/a/~") == at_home / "a" / "~"
    assert user_path(f"~{os.environ.get('USER', 'root')}").is_absolute()
    for word in ("a/~", "./~", "/a", "./~no-such-user-here", ""):
        assert user_path(word) == place(word) == Path(word)
        assert home(home(word)) == word
    with pytest.raises(NoHome, match=r"~no-such-user-here is no user's home .*allowed is another"):
        user_path(NOBODY)


@pytest.mark.parametrize("quote", ["", '"', "'"])
def test_a_run_with_all_its_paths_at_home(at_home, quote):
    words = [word.replace("=~", f"={quote}~") + quote * ("~" in word) for word in AT_HOME]
    end = real_run.fork(Path("~/runs") if not quote else Path(f"{quote}~/runs{quote}"), *words)
    assert end.code == 0, end.said
    folder = at_home / "runs" / "main" / "model" / "sst2" / "mezo" / "seed0"
    result = json.loads((folder / "result.json").read_text())
    assert not Path("~").exists()
    assert result["config"]["out"] == str(at_home / "runs")
    assert result["config"]["data"]["root"] == "~/data"  # what a run was begun with stays so
    config = tiny_run.config(at_home / "runs", *AT_HOME)
    assert changes_since(config, result) == []
    (at_home / "data").unlink()
    tiny_run.write_data(at_home / "data", salt="!")
    assert changes_since(config, result)[0].startswith("data.train_sha256: ")


def test_a_model_at_home_is_named_by_its_folder(at_home):
    def config(path):
        return compose(["model=local", f"model.path={path}"])

    assert config("~/model").model.name == "model"
    assert config("~").model.name == "home"
    assert locate(config("~/model").model) == str(at_home / "model")


@pytest.mark.parametrize(
    "words",
    [
        (f"out={NOBODY}",),
        ("data=local", f"data.root={NOBODY}"),
        ("model=local", f"model.path={NOBODY}"),
        (f"train.forgetting={NOBODY}",),
    ],
)
def test_the_home_of_nobody_is_refused_by_key(words):
    with pytest.raises(BadInput) as caught:
        compose(list(words))
    assert str(caught.value).startswith(f"{words[-1]}: ~no-such-user-here is no user's home")


def test_a_path_that_no_file_of_a_run_could_hold():
    with pytest.raises(BadInput, match=r"out='a.udcff': allowed is text that UTF-8 can write"):
        compose(['out="a\udcff"'])


@given(st.text(st.characters(codec="utf-8"), max_size=20), st.text("~ab/=", max_size=8))
def test_only_a_value_that_begins_with_home_is_quoted(text, path):
    assert quoted(f"key={path.lstrip('~')}") == f"key={path.lstrip('~')}"
    assert quoted(f"~{text}".replace("=", "")) == f"~{text}".replace("=", "")  # Hydra's deletion
    assert quoted('out="~/x"') == 'out="~/x"'
    assert quoted("out=~/x") == 'out="~/x"'


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "local"])
def test_a_sweep_at_home(at_home, launcher):
    words = (*AT_HOME, "seed=0,1", f"hydra/launcher={launcher}", "-m")
    end = real_run.fork(Path("~/runs"), *words)
    assert end.code == 0, end.said
    assert not Path("~").exists()
    assert (at_home / "runs" / "multirun.yaml").is_file()
    assert len(list((at_home / "runs").rglob("result.json"))) == 2


# Commands: each takes its paths through the same function.


def test_no_command_takes_a_path_as_it_is():
    for folder in ("experiments", "analysis"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            text = path.read_text()
            assert "type=Path" not in text, path
            assert ".expanduser(" not in text or path.name in ("paths.py", "command.py"), path


def test_options_and_arguments_at_home(at_home):
    bench = importlib.import_module("experiments.bench.arguments")
    assert bench.parse(["--out=~/a.json"]).out == at_home / "a.json"
    probe = importlib.import_module("experiments.probe.__main__")
    assert probe.parse(["slope", "--out=~/a"]).out == at_home / "a"
    suite = importlib.import_module("experiments.suite")
    assert suite.parse(["table1", "--export=~/a"]).export == at_home / "a"
    assert place("~/a") == at_home / "a"


@pytest.mark.parametrize("program", [replay, merge])
def test_programs_at_home(at_home, program, monkeypatch, capsys):
    run(tiny_run.config(at_home / "runs", *AT_HOME))
    folder = "~/runs/main/model/sst2/mezo/seed0"
    words = [folder, "--out=~/new"] if program is replay else [folder, "~/new"]
    monkeypatch.setattr(sys, "argv", ["program", *words])
    code = program.main()
    said = capsys.readouterr()
    if program is replay:
        assert code == 0
        assert (at_home / "new" / "config.json").is_file()
    else:  # which found the run, and in it nothing to merge
        assert code == 2
        assert f"error: {at_home}" in said.err


def test_an_option_with_the_home_of_nobody_is_one_line(at_home):
    command = [sys.executable, "-m", "analysis.tables.table", f"--out={NOBODY}", "x"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 2
    assert f"argument --out: {NOBODY}: no such user" in done.stderr


def test_the_cache_folder_may_be_written_with_home(at_home, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "~/cached")
    assert wheel.cache() == at_home / "cached" / "agzo"
    assert home("~/x") == str(at_home / "x")
