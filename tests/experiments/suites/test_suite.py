"""The suite: what it plans, runs, chooses and says, and what it does when things go wrong."""

import copy
import functools
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from omegaconf import OmegaConf

from analysis.tables.table import EQUAL
from analysis.tables.table1 import main as table1
from experiments import suite
from experiments.config import composed as configuration
from experiments.config.composed import CONF, changes, compose
from experiments.config.errors import BadInput
from experiments.config.schema import RunConfig
from experiments.launch import pool, slurm
from experiments.launch.job import Run, State, look
from experiments.models.loading import model_sha256
from experiments.records.lock import lock
from experiments.records.report import Line
from experiments.suites import estimate
from experiments.suites import plan as plans
from experiments.suites.columns import Cell
from experiments.suites.plan import read_suite
from experiments.suites.standing import Standing
from experiments.tasks import TASKS
from experiments.training.runner import NonFiniteLoss
from experiments.training.session import run

PLAN = {
    "title": "Tiny table",
    "paper": None,
    "tasks": ["sst2"],
    "seeds": [0, 1],
    "columns": {
        "first_order": {"method": "sgd", "kind": "first_order", "label": "first order"},
        "agzo": {"method": "agzo", "kind": "zo", "label": "AGZO"},
        "two_sided": {
            "method": "agzo",
            "kind": "zo",
            "label": "AGZO, two-sided",
            "settings": {"method.estimator": "two_sided"},
        },
        "zero_shot": {"method": "zero_shot", "kind": "untrained", "label": "0", "seeds": [0]},
    },
    "scales": {
        "small": {
            "models": ["pocket"],
            "overrides": [
                "data=pocket", "tracking=disabled", "threads=1", "train.num_train=24",
                "train.num_dev=8", "train.num_eval=8", "train.batch_size=2",
                "train.eval_at_start=false", "data.pocket_train=100", "data.pocket_validation=50",
            ],
            "task_overrides": {"rte": ["train.max_length=200"]},
            "default_budget": "steps",
            "budgets": {
                "steps": {
                    "zo": ["train.steps=4", "train.evals=2"],
                    "first_order": ["train.steps=2", "train.evals=2"],
                },
                "forwards": {
                    "zo": [
                        "train.steps=null", "train.forwards=14", "train.evals=1",
                    ]
                },
            },
            "grid": {
                "first_order": {"method.lr": [1e-3, 1e-2]},
                "agzo": {"method.lr": [1e-4, 1e-3], "method.eps": [1e-3]},
                "two_sided": {"method.lr": [1e-3]},
            },
        }
    },
}  # fmt: skip


def composed(words: list[str], text: str) -> RunConfig:
    """What `compose` gives for a preset of this text: a tenth of a second only the first time."""
    (out,) = [word for word in words if word.startswith("out=")] or ["out=runs"]
    config = _composed(tuple(word for word in words if word != out), text)
    return replace(copy.deepcopy(config), out=out.removeprefix("out="))


@functools.cache
def _composed(words: tuple[str, ...], text: str) -> RunConfig:
    return configuration.compose(list(words))


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """A writer of plans: conf/ with a preset `tiny` of the plan above, changed as asked."""
    conf = tmp_path / "conf"
    conf.mkdir()
    for entry in CONF.iterdir():
        if entry.name != "experiment":
            (conf / entry.name).symlink_to(entry)
    (conf / "experiment").mkdir()
    monkeypatch.setattr(configuration, "CONF", conf)
    preset = conf / "experiment" / "tiny.yaml"
    monkeypatch.setattr(plans, "compose", lambda words: composed(words, preset.read_text()))

    def write(**changes):  # one task, for time, unless more are asked for
        changes = {"tasks": ["sst2"]} | changes
        new = OmegaConf.create(PLAN)
        for key, value in changes.items():
            OmegaConf.update(new, key, value, merge=False)
        text = "# @package _global_\n" + OmegaConf.to_yaml(OmegaConf.create({"plan": new}))
        preset.write_text(text)

    write()
    return write


def read(tmp_path: Path, *given: str, budget: str | None = None, tasks=()):
    return read_suite("tiny", "small", budget, tasks, [f"out={tmp_path}", *given])


TWO = ["sst2", "rte"]


def test_a_runs_command_line_gives_its_configuration_back(plan, tmp_path):
    """Words, yes and no, and nothing at all: settings of a plan that are not numbers."""
    odd = {"method.basis": "exact", "method.include_padding": True, "method.refresh_every": None}
    column = {"method": "agzo", "kind": "zo", "label": "odd", "settings": odd}
    plan(**{"columns": {"odd": column}, "scales.small.grid": {"odd": {"method.lr": [1e-3]}}})
    job = read(tmp_path).groups[0].search[0]
    again = compose(list(job.overrides))
    assert changes(job.config.as_dict(), again.as_dict()) == []
    assert again.method["refresh_every"] is None


def test_the_plan_has_every_cell_with_the_first_seed_and_its_other_seeds(plan, tmp_path):
    plan(tasks=TWO)
    found = read(tmp_path)
    groups = {group.name: group for group in found.groups}
    assert list(groups) == [
        f"pocket/{task}/{name}" for task in ("sst2", "rte") for name in PLAN["columns"]
    ]
    agzo = groups["pocket/rte/agzo"]
    assert [job.seed for job in agzo.search] == [0, 0]
    assert [job.cell.variant for job in agzo.search] == ["lr0.0001-eps0.001", "lr0.001-eps0.001"]
    assert [job.seed for job in agzo.others(agzo.search[1].cell)] == [1]
    assert agzo.search[0].config.train.max_length == 200
    job = agzo.search[1]
    assert job.folder == tmp_path / "tiny-small-steps/pocket/rte/agzo+lr0.001-eps0.001/seed0"
    assert configuration.compose(list(job.overrides)) == job.config  # its log's command is the run
    (both,) = groups["pocket/sst2/two_sided"].search
    assert both.cell.variant == "two_sided-lr0.001"
    assert both.config.method["estimator"] == "two_sided"
    assert groups["pocket/sst2/first_order"].search[0].config.train.steps == 2
    assert groups["pocket/sst2/zero_shot"].others(Cell(None, {})) == ()
    some = read(tmp_path, tasks=["rte"])
    assert [group.task for group in some.active] == ["rte"] * 4
    assert some.about == found.about  # what is worked on changes no plan


def test_equal_forwards_make_a_third_forward_cost_steps(plan, tmp_path):
    for budget, wanted in (("forwards", [12, 14, 14, 0]), ("steps", [6, 10, 14, 0])):
        found = read(tmp_path, budget=budget, tasks=["sst2"])
        assert [group.forwards for group in found.active] == wanted
    seconds = estimate.measure(found.active, lambda line: None)
    assert list(seconds) == [group.name for group in found.active]
    assert all(value > 0 for value in seconds.values())


def test_a_column_that_has_a_run_is_not_measured_again(plan, tmp_path, monkeypatch, capsys):
    found = read(tmp_path, tasks=["sst2"])
    for group, seconds in zip(found.active[:3], (40.0, 50.0, 60.0), strict=True):
        finish(group.search[0], 0.5, total_seconds=seconds)
    measured: list[str] = []

    def measure(groups, say):
        measured.extend(group.name for group in groups)
        return {group.name: 1.0 for group in groups}

    monkeypatch.setattr(suite, "measure", measure)
    assert suite.run_suite(found, jobs=1, dry=True) == 0
    standing = Standing(found)
    done, new = found.active[:3], found.active[3:]
    assert measured == [group.name for group in new if standing.missing(group)] != []
    known = zip(map(standing.missing, done), (40, 50, 60), strict=True)
    left = sum(count * each for count, each in known) + sum(map(standing.missing, new))
    assert left > len(new)
    assert f"about {suite.clock(left)} with 1 at once" in capsys.readouterr().out


LORA = {"method": "mezo", "kind": "zo", "label": "LoRA", "adapter": "lora"}
RANK2 = {"adapter.rank": 2, "adapter.targets": ["q_proj", "v_proj"], "method.queries": 2}
ADAPTED = {
    "columns": {
        "mezo": {"method": "mezo", "kind": "zo", "label": "all weights"},
        "lora": LORA,
        "rank2": LORA | {"settings": RANK2},
    },
    "scales.small.grid": {name: {"method.lr": [1e-3, 1e-2]} for name in ("mezo", "lora", "rank2")},
}


def test_columns_with_adapters_are_columns_of_one_model(plan, tmp_path):
    plan(**ADAPTED)
    found = read(tmp_path)
    assert [group.name for group in found.groups] == [
        f"pocket/sst2/{name}" for name in ("mezo", "lora", "rank2")
    ]
    assert found.about["models"] == ["pocket"]
    assert [column["adapter"] for column in found.about["columns"]] == ["none", "lora", "lora"]
    root = tmp_path / "tiny-small-steps"
    mezo, lora, rank2 = (group.search[0] for group in found.groups)
    assert mezo.folder == root / "pocket/sst2/mezo+lr0.001/seed0"
    assert lora.folder == root / "pocket+lora/sst2/mezo+lr0.001/seed0"
    assert rank2.folder == root / "pocket+lora/sst2/mezo+rank2-lr0.001/seed0"
    assert "adapter=lora" in lora.overrides
    assert not any(word.startswith("adapter") for word in mezo.overrides)
    assert (lora.config.adapter.rank, rank2.config.adapter.rank) == (8, 2)
    assert rank2.config.adapter.targets == ["q_proj", "v_proj"]
    assert rank2.config.method["queries"] == 2
    assert rank2.cell.settings == RANK2 | {"method.lr": 1e-3}
    for job in (mezo, lora, rank2):
        assert compose(list(job.overrides)) == job.config
    assert (mezo.config.tuned, lora.config.tuned) == ("none/pocket_sst2_mezo", None)


@pytest.mark.slow
def test_each_adapter_is_measured_on_a_model_of_its_own(plan, tmp_path):
    plan(**ADAPTED)
    told: list[str] = []
    seconds = estimate.measure(read(tmp_path).active, told.append)
    titles, columns = told[::2], told[1::2]
    assert titles == ["measuring pocket/sst2", *["measuring pocket+lora/sst2"] * 2]
    assert columns == [f"  {group.column.label}" for group in read(tmp_path).active]
    assert list(seconds) == [f"pocket/sst2/{name}" for name in ("mezo", "lora", "rank2")]
    assert all(value > 0 for value in seconds.values())


BAD = {
    "an unknown scale": ({}, {"scale": "big"}, "scale=big: unknown; allowed are small"),
    "an unknown budget": ({}, {"budget": "time"}, "budget=time: unknown; allowed are steps, forw"),
    "a task not planned": ({}, {"tasks": ["cb"]}, "tasks=cb: not in the plan; .* sst2"),
    "no grid": (
        {"scales.small.grid.agzo": {}}, {}, "grid of column agzo is missing; needed: method.lr",
    ),
    "a grid over the data": (
        {"scales.small.grid.agzo": {"train.num_dev": [1]}}, {}, "train.num_dev; .*method.",
    ),
    "a grid over the adapter": (
        {"scales.small.grid.agzo": {"adapter.rank": [1, 2]}}, {},
        "grid of column agzo varies adapter.rank; allowed are keys of method",
    ),
    "a setting of the data": (
        {"columns.two_sided.settings": {"train.num_dev": 1}}, {},
        "two_sided sets train.num_dev; allowed are keys of method.*, adapter.*, prec",
    ),
    "an unknown adapter": (
        {"columns.agzo.adapter": "lorra"}, {}, "adapter=lorra: unknown; allowed are lora, none, p",
    ),
    "no adapter": ({"columns.agzo.adapter": None}, {}, "plan: adapter is None; needed: a str"),
    "an adapter that the method cannot tune": (
        {"columns.zero_shot.adapter": "lora"}, {}, "adapter.name=lora: method=zero_shot trains no",
    ),
    "a setting of no adapter": (
        {"columns.two_sided.settings": {"adapter.rank": 2}}, {},
        "adapter.rank=2: adapter=none has no such key",
    ),
    "a setting of another adapter": (
        {"columns.two_sided.adapter": "lora", "columns.two_sided.settings": {"adapter.tokens": 2}},
        {}, "adapter.tokens=2: adapter=lora has no such key; allowed are name, rank",
    ),
    "an unknown key of a column": (
        {"columns.agzo.adaptor": "lora"}, {},
        "plan.columns.agzo=adaptor: unknown; allowed are method, kind, label, adapter",
    ),
    "a wrong setting": (
        {"scales.small.grid.agzo": {"method.lr": [-1.0]}}, {}, "method.lr=-1.0: allowed .* above 0",
    ),
    "an unknown key": (
        {"scales.small.grid.agzo": {"method.rnk": [1]}}, {}, "method.rnk=1: agzo has no such key",
    ),
    "an unknown method": ({"columns.agzo.method": "azgo"}, {}, "method=azgo: unknown; allowed"),
    "an unknown kind": ({"columns.agzo.kind": "zero"}, {}, "columns.agzo.kind=zero: allowed"),
    "no seed": ({"seeds": []}, {}, "plan.seeds=.*one or more different"),
    "a seed twice": ({"seeds": [1, 1]}, {}, "plan.seeds=.*one or more different"),
    "a seed below zero": ({"seeds": [-1]}, {}, "plan.seeds=.*one or more different"),
    "a grid of another column": (
        {"scales.small.grid.gazo": {}}, {}, "plan.grid=gazo: unknown; allowed are first_order",
    ),
    "an empty grid": ({"scales.small.grid.agzo": {"method.lr": []}}, {}, "method.lr is ..; needed"),
    "one value twice": (
        {"scales.small.grid.agzo": {"method.lr": [1e-3, 0.00100000001]}}, {},
        "two runs .* would share .*agzo.lr0.001/seed0",
    ),
    "no budgets": ({"scales.small.budgets": {}}, {}, "plan: budgets is {}; needed"),
    "no models": ({"scales.small.models": []}, {}, "plan: models is ..; needed"),
    "no label": ({"columns.agzo.label": None}, {}, "plan: label is None; needed"),
    "a method for all": ({}, {"given": ["method=mezo"]}, "method=mezo: the plan sets it"),
    "another choice": ({}, {"given": ["train.select_by=dev_metric"]}, "the plan sets it"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_plan_that_cannot_be_run(plan, tmp_path, name):
    changes, asked, said = BAD[name]
    plan(**changes)
    words = {"scale": "small", "given": [f"out={tmp_path}"]} | asked
    with pytest.raises(BadInput, match=said):
        read_suite("tiny", **words)


def test_a_preset_without_a_plan(tmp_path):
    with pytest.raises(BadInput, match="experiment=demo: it has no plan"):
        read_suite("demo", "small")


SCALES = [
    (name, scale, budget)
    for name in (
        *("table1", "table2", "table_all", "table_field", "table_adapters", "agzo_variants"),
        *("lozo_refresh", "probes_or_steps", "aim_zo_check", "aim_zo_variants", "bf16_master"),
    )
    for scale, at in OmegaConf.load(CONF / "experiment" / f"{name}.yaml").plan.scales.items()
    for budget in at.budgets
]
FAST = [
    ("table_adapters", "pocket", "forwards"),
]


@pytest.mark.parametrize(
    ("name", "scale", "budget"),
    [pytest.param(*at, marks=[] if at in FAST else pytest.mark.slow) for at in SCALES],
)
def test_the_committed_plans_at_every_scale_and_budget(name, scale, budget):
    given = ["model.path=m", "data.root=d"] if scale == "local" else []
    found = read_suite(name, scale, budget, given=given)
    assert len({group.name for group in found.groups}) == len(found.groups)
    assert {group.task for group in found.active} == set(found.about["tasks"])
    trained = [group for group in found.groups if group.column.kind != "untrained"]
    for task in found.about["tasks"]:
        own = [group for group in trained if group.task == task]
        if budget == "steps":
            steps = {g.search[0].config.train.steps for g in own if g.column.kind == "zo"}
            assert len(steps) == 1
            continue
        batches = [g.search[0].config.train.batch_size if budget == "examples" else 1 for g in own]
        spent = [group.forwards * batch for group, batch in zip(own, batches, strict=True)]
        assert max(spent) - min(spent) <= EQUAL * max(spent)
    if budget != "steps":
        assert all(g.column.kind != "untrained" for g in found.groups if g.column.adapter != "none")


def test_a_column_may_spend_its_examples_in_a_way_of_its_own(plan, tmp_path):
    spending = {"train.batch_size": 4, "train.forwards": 9}
    plan(**{"columns.two_sided.settings": spending})
    at = read(tmp_path, budget="forwards").groups
    train = {group.column.name: group.search[0].config.train for group in at}
    assert (train["two_sided"].batch_size, train["two_sided"].forwards) == (4, 9)
    assert (train["agzo"].batch_size, train["agzo"].forwards) == (2, 14)


@pytest.mark.slow
def test_a_column_is_timed_in_its_own_micro_batches(plan, tmp_path):
    of_each = {"method.estimator": "per_piece", "train.accumulation": 2}  # refuses a whole batch
    plan(**{"columns.two_sided.settings": of_each})
    groups = [g for g in read(tmp_path).active if g.column.name in ("agzo", "two_sided")]
    assert all(value > 0 for value in estimate.measure(groups, lambda line: None).values())


def main(tmp_path: Path, *words: str) -> int:
    return suite.main(["tiny", "--scale", "small", "--jobs", "1", f"out={tmp_path}", *words])


@pytest.mark.slow  # a process and sixteen small runs
def test_run_choose_export_and_find_again(plan, tmp_path, capsys, monkeypatch):
    plan(tasks=TWO)
    monkeypatch.setattr(pool.Worker, "command", worker_with(configuration.CONF))
    assert main(tmp_path, "--dry") == 0
    out = capsys.readouterr().out
    assert out.startswith("SCALE=small (as asked)\n")
    assert "0 runs done, 18 missing" in out
    assert "missing: 152 forward passes" in out  # each task: 3 x 6 + 3 x 10 + 2 x 14
    assert not (tmp_path / "tiny-small-steps").exists()

    assert main(tmp_path) == 0
    assert "all runs done" in capsys.readouterr().out
    folder = tmp_path / "tiny-small-steps"
    choice = json.loads((folder / "choice.json").read_text())
    for task in ("sst2", "rte"):
        entry = choice[f"pocket/{task}/first_order"]
        best = min(entry["cells"], key=lambda cell: cell["dev"]["loss"])
        assert entry["chosen"] == best["variant"]
        seeds = sorted(
            p.parent.parent.name for p in folder.glob(f"pocket/{task}/sgd*/seed1/result*")
        )
        assert seeds == [f"sgd+{best['variant']}"]
    assert table1([str(folder)]) == 0
    capsys.readouterr()

    assert main(tmp_path) == 0
    assert "18 runs done, 0 missing" in capsys.readouterr().out
    assert main(tmp_path, "--export", str(tmp_path / "kept")) == 0
    assert table1([str(tmp_path / "kept")]) == 0
    assert "Tiny table" in capsys.readouterr().out


def worker_with(conf: Path) -> list[str]:
    """The worker's command, with its conf/ somewhere else."""
    code = (
        "import pathlib, sys; from experiments.config import composed; "
        f"composed.CONF = pathlib.Path({str(conf)!r}); "
        "from experiments.launch.worker import main; sys.exit(main())"
    )
    return [sys.executable, "-c", code]


def finish(job, loss: float, **changes) -> None:
    """Write the result that a run would leave."""
    job.folder.mkdir(parents=True, exist_ok=True)
    dev = {"loss": loss, "accuracy": 0.5, "n": 8}
    result = {"status": "finished", "dev": dev, "config": job.config.as_dict()} | {
        "task_version": TASKS[job.task].version,
        "model": {"sha256": model_sha256(job.config.model)},
        **changes,
    }
    (job.folder / "result.json").write_text(json.dumps(result))


def diverge(job) -> None:
    job.folder.mkdir(parents=True, exist_ok=True)
    failure = {"error": "NonFiniteLoss: step 3", "diverged": True, "config": job.config.as_dict()}
    (job.folder / "failed.json").write_text(json.dumps(failure))


def test_the_lowest_dev_loss_is_chosen_and_a_diverged_cell_never(plan, tmp_path):
    plan(**{"scales.small.grid.agzo": {"method.lr": [1e-4, 1e-3, 1e-2]}})
    found = read(tmp_path)
    agzo = found.groups[1]
    first, second, third = agzo.search
    finish(first, 0.6)
    finish(second, 0.5)
    progress = Standing(found)
    assert progress.chosen(agzo) is None  # a cell is missing
    assert progress.wanted(agzo) == [first, second, third]
    assert progress.missing(agzo) == 2  # it, and the other seed of the choice to come
    diverge(third)
    progress = Standing(found)
    assert progress.chosen(agzo) is second
    assert progress.wanted(agzo)[-1].folder == agzo.others(second.cell)[0].folder
    assert progress.missing(agzo) == 1
    cells = progress.choice()[agzo.name]["cells"]
    assert [cell["status"] for cell in cells] == ["finished", "finished", "diverged"]
    assert [cell["dev"] and cell["dev"]["loss"] for cell in cells] == [0.6, 0.5, None]
    assert not any(str(third.folder) in line for line in progress.problems())
    for job in (first, second):
        (job.folder / "result.json").unlink()
        diverge(job)
    progress = Standing(found)
    assert progress.chosen(agzo) is None
    assert any("every cell of its grid" in line for line in progress.problems())


def test_a_grid_is_widened_until_the_best_cell_has_neighbours(plan, tmp_path):
    """Half a decade at a time, on the side of the edge; a cell that diverged is a neighbour."""
    plan(**{"scales.small.widen": 3, "scales.small.grid.agzo": {"method.lr": [1e-4, 3e-4]}})
    found = read(tmp_path)
    agzo = found.groups[1]

    def rates(jobs) -> list[float]:
        return [job.cell.settings["method.lr"] for job in jobs]

    for job, loss in zip(agzo.search, (0.6, 0.5), strict=True):
        finish(job, loss)
    progress = Standing(found)
    assert progress.chosen(agzo) is None  # the edge is looked beyond first
    assert rates(progress.wanted(agzo)) == [1e-4, 3e-4, 1e-3]
    finish(progress.wanted(agzo)[-1], 0.4)
    progress = Standing(found)
    assert rates(progress.search(agzo)) == [1e-4, 3e-4, 1e-3, 3e-3]
    assert progress.missing(agzo) == 2  # the new cell, and the other seed of the choice to come
    diverge(progress.search(agzo)[-1])
    progress = Standing(found)
    chosen = progress.chosen(agzo)
    assert chosen is not None
    assert chosen.cell == Cell("lr0.001", {"method.lr": 1e-3})
    assert progress.wanted(agzo)[-1].seed == 1
    assert progress.choice()[agzo.name]["edges"] == []


def test_a_grid_is_widened_so_often_and_then_says_that_it_ends_at_an_edge(plan, tmp_path):
    plan(**{"scales.small.widen": 1, "scales.small.grid.agzo": {"method.lr": [1e-4, 3e-4]}})
    found = read(tmp_path)
    agzo = found.groups[1]
    for job, loss in zip(agzo.search, (0.5, 0.6), strict=True):
        finish(job, loss)
    finish(Standing(found).search(agzo)[-1], 0.4)
    progress = Standing(found)
    assert [job.cell.settings["method.lr"] for job in progress.search(agzo)] == [1e-4, 3e-4, 3e-5]
    assert progress.choice()[agzo.name]["edges"] == ["lower"]


def test_where_every_cell_diverged_a_smaller_learning_rate_is_tried(plan, tmp_path):
    plan(**{"scales.small.widen": 2, "scales.small.grid.agzo": {"method.lr": [1e-2, 3e-2]}})
    found = read(tmp_path)
    agzo = found.groups[1]
    for job in agzo.search:
        diverge(job)
    assert Standing(found).search(agzo)[-1].cell.settings == {"method.lr": 3e-3}
    diverge(Standing(found).search(agzo)[-1])
    diverge(Standing(found).search(agzo)[-1])
    progress = Standing(found)
    assert progress.hopeless(agzo)
    assert len(progress.search(agzo)) == 4


@pytest.mark.parametrize("widen", [-1, 1.5, True, "2"])
def test_a_wrong_number_to_widen_by_is_refused(plan, tmp_path, widen):
    plan(**{"scales.small.widen": widen})
    with pytest.raises(BadInput, match=r"plan\.widen=.*: allowed are whole numbers"):
        read(tmp_path)


def test_a_grid_that_is_widened_has_half_decades(plan, tmp_path):
    plan(**{"scales.small.widen": 1, "scales.small.grid.agzo": {"method.lr": [5e-4]}})
    with pytest.raises(BadInput, match=r"method\.lr=0\.0005; .* 1 or 3 times a power of ten"):
        read(tmp_path)


def test_a_failure_is_tried_again_by_the_next_suite_and_a_divergence_is_not(plan, tmp_path):
    found = read(tmp_path)
    job = found.groups[0].search[0]
    diverge(job)
    assert look(job).status == "diverged"
    other = read(tmp_path, "train.batch_size=3").groups[0].search[0]
    assert look(other).status == "missing"  # it diverged with other settings
    failure = {"error": "OSError: disk full", "diverged": False, "config": job.config.as_dict()}
    (job.folder / "failed.json").write_text(json.dumps(failure))
    assert look(job).status == "missing"


def test_a_divergence_on_files_that_lie_elsewhere_is_tried_again(plan, tmp_path):
    diverge(read(tmp_path, "train.forgetting=a.txt").groups[0].search[0])
    first, other = (read(tmp_path, f"train.forgetting={name}.txt").groups[0] for name in "ab")
    assert look(first.search[0]).status == "diverged"
    assert look(other.search[0]).status == "missing"


def test_a_divergence_on_files_that_have_changed_since_is_tried_again(tmp_path, monkeypatch):
    """Data, model and unrelated text, by the hashes that the run itself wrote."""
    tiny_run.write_data(tmp_path / "data")
    model = shutil.copytree(tiny_run.world() / "model", tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("Words of no task. " * 40)
    words = ("method=mezo", "method.lr=1e300", f"data.root={tmp_path / 'data'}")
    words += (f"model.path={model}", f"train.forgetting={text}")
    job = Run((), tiny_run.config(tmp_path, *words))
    with pytest.raises(NonFiniteLoss):
        run(job.config)
    assert look(job).status == "diverged"
    data = tmp_path / "data" / "sst2" / "train.jsonl"
    for path in (data, model / "config.json", text):
        before = path.read_text()
        path.write_text(before + "\n")
        assert look(job).status == "missing", path
        path.write_text(before)
        assert look(job).status == "diverged", path
    (model / "own.py").write_text("one = 1")
    assert look(job).status == "missing"
    failed = json.loads((job.folder / "failed.json").read_text())
    old = {key: failed[key] for key in ("status", "error", "diverged", "config")}
    (job.folder / "failed.json").write_text(json.dumps(old))  # of a run from before the hashes
    assert look(job).status == "diverged"


def test_a_result_of_another_configuration_stops_the_suite(plan, tmp_path, capsys):
    finish(read(tmp_path).groups[0].search[0], 0.5)
    assert main(tmp_path, "train.batch_size=3") == 2
    err = capsys.readouterr().err
    assert "a result of another configuration stands in this cell" in err
    assert "train.batch_size: 2 -> 3" in err


WRONG = [
    "", '{"dev": {"lo', "[]", '{"dev": {}}',
    '{"status": "running", "config": {}, "dev": {"loss": 1}}',
    '{"status": "finished", "config": {}, "dev": {}}',
    '{"status": "finished", "config": {}, "dev": {"loss": NaN}}',
    '{"status": "finished", "config": {}, "dev": null}',
]  # fmt: skip


@pytest.mark.parametrize("changes", [{"task_version": 0}, {"model": {"sha256": "0"}}])
def test_a_result_of_another_task_version_or_model_stops_the_suite(plan, tmp_path, changes):
    job = read(tmp_path).groups[0].search[0]
    finish(job, 0.5, **changes)
    with pytest.raises(BadInput, match=f"(?s)another configuration.*{next(iter(changes))}"):
        look(job)


def test_a_run_that_another_process_held_is_looked_at_again(plan, tmp_path):
    found = read(tmp_path, tasks=["sst2"])
    standing, (first, second) = Standing(found), found.groups[0].search
    for job, status in ((first, "finished"), (second, "busy")):
        standing.states[job.folder] = State(status, dev={"loss": 0.5})
    assert not standing.look_at_busy()
    assert standing.chosen(found.groups[0]) is None
    finish(second, 0.4)
    assert standing.look_at_busy()
    assert standing.chosen(found.groups[0]) is second


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_one_line_says_how_all_runs_stand(plan, tmp_path, stream, monkeypatch):
    """Rewritten on a terminal; elsewhere lines that stay, without carriage returns."""
    monkeypatch.setenv("COLUMNS", "120")
    found = read(tmp_path)
    found.folder.mkdir()
    watcher = suite.Watcher(Standing(found), {g.name: 60.0 for g in found.groups}, jobs=2)
    watcher.line = Line(stream())
    first, second = watcher.next_job(), watcher.next_job()
    assert first is not None
    assert second is not None
    assert watcher.all_runs() == "all runs: 0 done, 2 running, 7 left, about 4m30s"
    finish(first, 0.5)
    watcher.ended(pool.End(first, "finished", None, 3.0))
    watcher.ended(pool.End(second, "failed", "OSError: disk full", 4.0))
    watcher.line.close()
    said = watcher.line.stream.getvalue()
    if stream is Terminal:
        lines = [line.split("\r")[-1].rstrip() for line in said.split("\n") if line]
        assert lines[0] == f"[1] {first.name}: dev loss 0.5000, 3 s"
        assert lines[-1].startswith("all runs: 1 done, 1 failed, 0 running, 6 left, about ")
        assert "\rall runs: 1 done, 1 running, 7 left" in said
    else:
        lines = said.splitlines()
        assert "\r" not in said
        assert lines[0].startswith(
            f"[1] {first.name}: dev loss 0.5000, 3 s; all runs: 1 done, 1 running, 7 left, about "
        )
        assert "1 failed, 0 running, 6 left" in lines[1]
        assert len(lines) == 2


def test_no_run_is_left_where_a_failed_cell_leaves_nothing_to_choose(plan, tmp_path):
    found = read(tmp_path)
    standing, group = Standing(found), found.groups[0]
    first, second = group.search
    assert len(group.column.seeds) == 2
    assert standing.left(group) == standing.missing(group) == 3
    standing.states[first.folder] = State("failed", error="OSError: disk full")
    assert standing.left(group) == 1  # the other cell; no cell can be chosen for the other seed
    standing.states[second.folder] = State("finished", dev={"loss": 0.5}, seconds=1.0)
    assert standing.left(group) == 0
    assert standing.missing(group) == 2
    standing.states[first.folder] = State("finished", dev={"loss": 0.4}, seconds=1.0)
    other = group.others(first.cell)[0]
    standing.states[other.folder] = State("failed", error="OSError: disk full")
    assert standing.left(group) == 0


def test_the_time_left_follows_what_runs_took_and_what_is_in_progress(plan, tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(suite.time, "perf_counter", lambda: now)
    plan(**{"scales.small.widen": 3, "scales.small.grid.agzo": {"method.lr": [1e-4, 3e-4]}})
    found = read(tmp_path)
    found.folder.mkdir()
    agzo = found.groups[1]
    standing = Standing(found)
    for group in [each for each in found.groups if each is not agzo]:
        while standing.missing(group):
            for job in standing.wanted(group):
                done = State("finished", dev={"loss": 0.5}, seconds=120.0)
                standing.states[job.folder] = done
    watcher = suite.Watcher(standing, {group.name: 60.0 for group in found.groups}, jobs=2)
    watcher.line = Line(io.StringIO())
    planned = 2 + len(agzo.column.seeds) - 1
    assert watcher.seconds_left() == planned * 120 / 2  # twice what was measured, as the others
    first, second = watcher.next_job(), watcher.next_job()
    now = 100.0
    assert watcher.seconds_left() == (planned * 120 - 2 * 100) / 2
    finish(first, 0.5, total_seconds=200.0)
    watcher.ended(pool.End(first, "finished", None, 100.0))  # it was resumed, and took 200 in all
    assert watcher.seconds_left() == ((planned - 1) * 200 - 100) / 2
    finish(second, 0.4, total_seconds=200.0)  # at the upper edge: one more cell
    watcher.ended(pool.End(second, "finished", None, 100.0))
    assert watcher.seconds_left() == (planned - 1) * 200 / 2


def test_a_second_suite_in_the_folder_is_refused(plan, tmp_path, capsys):
    folder = tmp_path / "tiny-small-steps"
    folder.mkdir()
    with lock(folder):
        assert main(tmp_path, "--tasks", "sst2") == 2
    assert "another process is running" in capsys.readouterr().err


def test_a_suite_on_a_cluster_submits_in_two_rounds(plan, tmp_path, capsys, monkeypatch):
    """What Slurm would do is done by hand; tests/slurm has the real one."""
    said = {"squeue": "", "sbatch": "5\n"}
    monkeypatch.setattr(slurm, "_ask", lambda program, *rest: said[program])
    words = ["--launcher", "slurm", "hydra.launcher.partition=long"]
    assert main(tmp_path, *words) == 0
    out = capsys.readouterr().out
    assert "6 runs submitted (job 5)" in out
    assert "3 more follow once the cells are chosen" in out
    (script,) = (tmp_path / ".slurm").glob("*/script.sh")
    assert "#SBATCH --partition=long" in script.read_text()
    said["squeue"] = "".join(f"5_{index} PENDING\n" for index in range(6))
    assert main(tmp_path, *words) == 0
    assert "0 done, 0 running, 6 queued, 0 failed, 0 missing" in capsys.readouterr().out
    said["squeue"] = ""
    for group in read(tmp_path).groups:
        for job in group.search:
            finish(job, 0.5)
    assert main(tmp_path, "--status") == 0
    assert "6 done, 0 running, 0 queued, 0 failed, 3 missing" in capsys.readouterr().out
    assert main(tmp_path, *words) == 0
    out = capsys.readouterr().out
    assert "3 runs submitted" in out
    assert "more follow" not in out
    assert suite.main(["tiny", *words]) == 2
    assert "--scale=auto: " in capsys.readouterr().err


@pytest.mark.parametrize("jobs", ["-1", "0"])
def test_no_worker_at_all_is_refused(plan, tmp_path, capsys, jobs):
    assert main(tmp_path, "--jobs", jobs) == 2
    assert f"--jobs={jobs}: allowed is 1 or more" in capsys.readouterr().err


@pytest.mark.slow
def test_files_of_ones_own_tasks_take_the_place_of_the_plans(plan, tmp_path):
    (tmp_path / "data.csv").write_text("text,mood\n" + "fine,pos\ndull,neg\n" * 30)
    overrides = [w for w in PLAN["scales"]["small"]["overrides"] if "pocket" not in w]
    here = ["data=local", f"data.root={tmp_path / 'data.csv'}"]
    plan(**{"scales.small.overrides": overrides + here})
    text = 'prompt: "{text} It was"\noptions: [bad, good]\nlabel: mood\nlabels: [neg, pos]\n'
    files = [str(tmp_path / name) for name in ("it's one.yaml", "other.yml", "third.yaml")]
    for file, name in zip(files, ("one", "two", "one"), strict=True):
        Path(file).write_text(f"name: {name}\n{text}")
    found = read(tmp_path, tasks=files[:2])
    assert found.about["tasks"] == ["one", "two"]
    assert found.folder.name == "tiny-small-steps-it_s_one-other"
    assert len(found.active) == len(found.groups) == 8
    job = found.groups[1].search[0]
    assert job.folder.parts[-3:] == ("one", "agzo+lr0.0001-eps0.001", "seed0")
    assert changes(job.config.as_dict(), compose(list(job.overrides)).as_dict()) == []
    with pytest.raises(BadInput, match=r"tasks=sst2: not in the plan beside files; allowed are Y"):
        read(tmp_path, tasks=["sst2", files[0]])
    with pytest.raises(BadInput, match=r"their names are one; allowed is another name: in each"):
        read(tmp_path, tasks=[files[0], files[2]])
    with pytest.raises(BadInput, match=r"tasks=trec: not in the plan; allowed are sst2; or YAML f"):
        read(tmp_path, tasks=["trec"])


def test_a_setting_of_the_cluster_is_refused_here(plan, tmp_path, capsys):
    assert main(tmp_path, "hydra.launcher.at_once=2") == 2
    assert "hydra.launcher.at_once=2: allowed with --launcher=slurm" in capsys.readouterr().err


def test_a_method_that_cannot_be_timed_is_left_to_its_runs(plan, tmp_path, monkeypatch):
    said: list[str] = []
    steps = estimate._step_seconds

    def short_of_memory(parts, optimizer, *rest):
        if type(optimizer).__name__ == "SGD":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return steps(parts, optimizer, *rest)

    monkeypatch.setattr(estimate, "_step_seconds", short_of_memory)
    seconds = estimate.measure(read(tmp_path, tasks=["sst2"]).active, said.append)
    assert [name.rpartition("/")[2] for name in seconds] == ["agzo", "two_sided", "zero_shot"]
    assert any("first_order cannot be timed: CUDA out of memory" in line for line in said)


@pytest.mark.parametrize("text", WRONG)
def test_a_truncated_result_stops_the_suite(plan, tmp_path, capsys, text):
    job = read(tmp_path).groups[0].search[0]
    finish(job, 0.5)
    (job.folder / "result.json").write_text(text)
    assert main(tmp_path) == 2
    err = capsys.readouterr().err
    assert f"{job.folder / 'result.json'}: truncated or damaged" in err
    assert "remove it to do this run again" in err


def test_what_no_run_could_use_is_found_before_the_first(plan, tmp_path, capsys):
    plan(tasks=TWO)
    words = [f"data.root={tmp_path}", "data=local"]
    assert main(tmp_path / "out", *words) == 2
    err = capsys.readouterr().err
    assert "nothing was started" in err
    assert "pocket/sst2: " in err
    assert "pocket/rte: " in err  # every task's problem, not only the first's
    assert not (tmp_path / "out").exists()
    assert main(tmp_path / "out", "train.num_dev=3000") == 2
    assert "train.num_dev=3000 leaves nothing to train on" in capsys.readouterr().err
    assert main(tmp_path / "out", "train.num_dev=0") == 2  # a grid without a dev split
    assert "train.num_dev=0: allowed is 1 or more" in capsys.readouterr().err


def test_an_unreachable_hub_says_what_to_do(plan, tmp_path, capsys, monkeypatch):
    import datasets
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "empty"))
    assert main(tmp_path, "data=hub", "--tasks", "sst2") == 2
    err = capsys.readouterr().err
    assert "nyu-mll/glue" in err
    assert "data=local with data.root" in err


@pytest.mark.slow  # starts real processes
def test_a_stopped_suite_goes_on_where_it_was(plan, tmp_path):
    plan(**{"scales.small.budgets.steps.zo": ["train.steps=400", "train.evals=4"]})
    code = (
        "import pathlib, sys; from experiments import suite; "
        "from experiments.config import composed; from experiments.launch import pool; "
        f"composed.CONF = pathlib.Path({str(configuration.CONF)!r}); "
        f"pool.Worker.command = {worker_with(configuration.CONF)!r}; "
        "sys.exit(suite.main(sys.argv[1:]))"
    )
    words = ["tiny", "--scale", "small", "--jobs", "2", "--tasks", "sst2", f"out={tmp_path}"]
    command = [sys.executable, "-c", code, *words]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    saved = tmp_path / "tiny-small-steps" / "pocket" / "sst2"
    for _ in range(600):
        if list(saved.glob("agzo+lr*/seed0/checkpoints/*")):
            break
        time.sleep(0.1)
    os.kill(first.pid, signal.SIGUSR2)  # and a SIGTERM that follows it must not cut off saving
    os.kill(first.pid, signal.SIGTERM)
    _, err = first.communicate(timeout=120)
    assert first.returncode == 128 + signal.SIGUSR2
    assert "the same command goes on" in err
    second = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert second.returncode == 0, second.stderr
    results = [json.loads(p.read_text()) for p in saved.glob("agzo+lr*/seed0/result.json")]
    assert any(result["resumed_at"] for result in results)


@pytest.mark.slow
def test_methods_that_add_to_the_model_leave_the_next_column_the_model_as_it_was(
    plan, tmp_path, monkeypatch
):
    """ZO-Act freezes what it is given, a dominant layer is held in float32."""
    seen = []
    build = estimate.registry.build

    def watched(name, model, values, *others):
        named = {n: (p.dtype, p.requires_grad) for n, p in model.named_parameters()}
        seen.append((named, [n for n, m in model.named_modules() if m._forward_hooks]))
        return build(name, model, values, *others)

    monkeypatch.setattr(estimate.registry, "build", watched)
    layer = {"method.layer": 1, "method.scan_batches": 1}
    columns = {
        "zo_act": {"method": "zo_act", "kind": "zo", "label": "ZO-Act",
                   "settings": {"method.large_state": True}},
        "dominant": {"method": "dominant_layer", "kind": "zo", "label": "D", "settings": layer},
        "agzo": PLAN["columns"]["agzo"],
    }  # fmt: skip
    grid = {name: {"method.lr": [1e-3]} for name in columns}
    small = PLAN["scales"]["small"]
    overrides = [*small["overrides"], "precision=bf16"]
    plan(columns=columns, scales={"small": {**small, "overrides": overrides, "grid": grid}})
    said = []
    seconds = estimate.measure(read(tmp_path).active, said.append)
    assert len(seconds) == 3
    assert min(seconds.values()) > 0
    assert not any("cannot be timed" in line for line in said)
    assert all(each == seen[0] for each in seen)


@pytest.mark.parametrize("given", ["adapter=lora", "train.objective=metric"])
def test_what_is_tuned_and_minimised_comes_from_the_plan(plan, tmp_path, given):
    with pytest.raises(BadInput, match=f"{given}: the plan sets it"):
        read(tmp_path, given)


@pytest.mark.parametrize("override", ["adapter=lora", "adapter.rank=2"])
@pytest.mark.parametrize("where", ["overrides", "task_overrides", "budget"])
def test_adapters_are_named_by_columns_alone(plan, tmp_path, override, where):
    small: dict[str, Any] = OmegaConf.to_container(OmegaConf.create(PLAN["scales"]["small"]))  # pyright: ignore
    at = {"overrides": small["overrides"], "budget": small["budgets"]["steps"]["zo"]}
    (at | {"task_overrides": small["task_overrides"].setdefault("sst2", [])})[where].append(
        override
    )
    plan(scales={"small": small})
    with pytest.raises(BadInput, match=f"{override}: allowed is the key adapter of a column"):
        read(tmp_path)


def test_a_plan_of_streamed_layers_has_no_backpropagation(plan, tmp_path):
    with pytest.raises(BadInput, match=r"model\.offload=layers: method=sgd needs all weights"):
        read(tmp_path, "model.offload=layers", tasks=["sst2"])


@pytest.mark.slow
def test_a_plan_of_streamed_layers_is_timed(plan, tmp_path):
    columns = {name: column for name, column in PLAN["columns"].items() if name != "first_order"}
    grid = {name: PLAN["scales"]["small"]["grid"][name] for name in ("agzo", "two_sided")}
    plan(**{"columns": columns, "scales.small.grid": grid})
    found = read(tmp_path, "model.offload=layers", tasks=["sst2"])
    seconds = estimate.measure(found.active, lambda line: None)
    assert all(value > 0 for value in seconds.values())
