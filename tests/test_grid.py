"""Choosing settings on dev and running the seeds of the choice; the demo's runs."""

import json

import pytest
from omegaconf import OmegaConf

from analysis.load import load_results
from analysis.table import seeds_table
from experiments import demo, grid
from experiments.config import CONF, BadInput

TINY = [
    "task=sst2",
    "model=pocket",
    "data=pocket",
    "tracking=disabled",
    "threads=1",
    "train.steps=null",
    "train.eval_every=null",
    "train.num_train=16",
    "train.num_dev=8",
    "train.num_eval=8",
    "train.batch_size=2",
]
PLAN = {
    "suite": "tiny",
    "overrides": TINY,
    "search": {
        "overrides": ["seed=0", "train.forwards=8", "train.evals=1"],
        "methods": {"mezo": {"method.lr": [1e-4, 1e300], "method.eps": [1e-3]}},
    },
    "final": {
        "overrides": ["train.forwards=8", "train.evals=2"],
        "seeds": [0, 1],
        "untrained": ["zero_shot"],
    },
}


@pytest.mark.parametrize("path", sorted((CONF / "grid").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_committed_plan_composes(path):
    plan = grid.read_plan(path.stem)
    given = [] if "model=pocket" in plan["overrides"] else ["model.path=m", "data.root=d"]
    searched = grid.search_jobs(plan, given)
    assert len({one.folder for one in searched}) == len(searched)
    choice = {one.method: {"chosen": one.point} for one in searched}
    finals = grid.final_jobs(plan, given, choice)
    assert len({one.folder for one in finals}) == len(finals)


@pytest.mark.slow  # five processes
def test_search_choose_final_and_export(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(grid, "CONF", tmp_path)
    (tmp_path / "grid").mkdir()
    OmegaConf.save(OmegaConf.create(PLAN), tmp_path / "grid" / "tiny.yaml")
    words = ["grid", "tiny", f"out={tmp_path / 'runs'}", "--export", str(tmp_path / "kept")]
    monkeypatch.setattr("sys.argv", words)
    assert grid.main() == 0
    first = capsys.readouterr().out
    assert "2 runs, 0 done, 2 to do" in first
    choice = json.loads((tmp_path / "kept" / "choice.json").read_text())
    assert choice["mezo"]["chosen"] == {"method.lr": 1e-4, "method.eps": 1e-3}
    tried = {entry["point"]["method.lr"]: entry for entry in choice["mezo"]["tried"]}
    assert "NonFiniteLoss" in tried[1e300]["error"]  # a point that diverges is kept, not hidden
    frame = load_results(tmp_path / "kept")
    assert sorted(zip(frame["method"], frame["seed"], strict=True)) == [
        ("mezo", 0),
        ("mezo", 1),
        ("zero_shot", 0),
    ]
    assert seeds_table(frame)

    assert grid.main() == 0  # everything that finished is found
    assert "3 runs, 3 done, 0 to do" in capsys.readouterr().out


def test_the_lowest_dev_loss_is_chosen_and_failures_are_kept(tmp_path):
    jobs = []
    for lr, loss in ((1e-4, 0.6), (1e-3, 0.5), (1e-2, None)):
        folder = tmp_path / str(lr)
        folder.mkdir()
        jobs.append(grid.Job("mezo", {"method.lr": lr}, (), folder))
        if loss is None:
            (folder / "failed.json").write_text(json.dumps({"error": "NonFiniteLoss: step 3"}))
        else:
            result = {"dev": {"loss": loss, "accuracy": 0.5}, "forwards": 8}
            (folder / "result.json").write_text(json.dumps(result))
    choice = grid.choose(jobs)["mezo"]
    assert choice["chosen"] == {"method.lr": 1e-3}
    assert [entry.get("error") for entry in choice["tried"]] == [
        None,
        None,
        "NonFiniteLoss: step 3",
    ]
    with pytest.raises(RuntimeError, match="every grid point failed"):
        grid.choose(jobs[2:])


def test_an_unknown_plan_names_the_known_ones():
    with pytest.raises(BadInput, match=r"grid=nothing: unknown; allowed are .*sst2_reviews"):
        grid.read_plan("nothing")


def test_demo_runs_each_method_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "TASKS", ("sst2",))
    small = [word for word in TINY if word.startswith("train.num") or "batch" in word]
    words = [f"out={tmp_path}", "train.forwards=6", "train.evals=1", *small]
    assert demo.main(words) == 0
    frame = load_results(tmp_path / "demo")
    assert set(frame["method"]) == set(demo.METHODS)
    assert demo.main(words) == 0
    assert "finished already" in capsys.readouterr().out
    assert demo.main([*words, "method.lr=-1"]) == 2  # zero_shot has no lr
    assert "method.lr: no such key" in capsys.readouterr().err
