"""The suite's table: from fabricated suites whose numbers are known, whole and incomplete."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from analysis.reading.cells import Cell
from analysis.reading.load import ResultError
from analysis.reading.suite import Column, GridCell
from analysis.reading.suite_settings import edges
from analysis.tables import table1
from analysis.tables.latex import escape, latex
from analysis.tables.table import SANITY
from analysis.tables.tabular import Table

GRID = (("lr0.001", 0.001, 0.25), ("lr0.003", 0.003, 0.5))  # variant, lr, dev loss: the first wins
COLUMNS = [
    ("first_order", "sgd", "first_order"), ("agzo", "agzo", "zo"), ("mezo", "mezo", "zo"),
    ("lozo", "lozo", "zo"), ("zero_shot", "zero_shot", "untrained"), ("icl", "icl", "untrained"),
]  # fmt: skip
SCORES = {  # task -> column -> score by seed
    "sst2": {
        "first_order": [0.95, 0.96, 0.97], "agzo": [0.90, 0.91, 0.92], "mezo": [0.88, 0.88, 0.91],
        "lozo": [0.90, 0.91, 0.92], "zero_shot": [0.59], "icl": [0.61],
    },
    "copa": {
        "first_order": [0.70, 0.72, 0.74], "agzo": [0.60, 0.62, 0.61], "mezo": [0.63, 0.63, 0.63],
        "lozo": [0.58, 0.60, 0.59], "zero_shot": [0.50], "icl": [0.52],
    },
}  # fmt: skip
STEPS = {"first_order": (133, 399), "zo": (399, 800), "untrained": (0, 0)}  # and forwards


def run(task: str, column: str, seed: int, variant: str | None = None) -> dict[str, Any]:
    """One result as the runner writes it, with all keys that the table reads."""
    method, kind = next((m, k) for name, m, k in COLUMNS if name == column)
    steps, forwards = STEPS[kind]
    settings: dict[str, Any] = {"name": method}
    loss = 0.25
    if variant is not None:
        _, lr, loss = next(point for point in GRID if point[0] == variant)
        settings |= {"lr": lr} if kind == "first_order" else {"lr": lr, "eps": 0.01}
    score = SCORES[task][column][min(seed, len(SCORES[task][column]) - 1)]
    return {
        "status": "finished", "suite": "table1", "method": method, "variant": variant,
        "task": task, "task_version": 1, "seed": seed, "pocket": True,
        "model": {"name": "pocket", "source": "pocket", "parameters": 549472,
                  "class": "Qwen3ForCausalLM", "sha256": "f0174b8c5c"},
        "data": {"source": "pocket", "world_seed": 0, "examples_sha256": f"hash of {task}",
                 "sizes": {"requested": {"eval": 1000}, "used": {"eval": 100}}},
        "embeddings": "tuned", "rounding": "nearest", "steps": steps, "forwards": forwards,
        "best_step": steps, "dev": {"loss": loss, "n": 40, "seconds": 1.0, "accuracy": 0.75},
        "eval": {"loss": 0.5, "n": 100, "seconds": 1.0, "accuracy": score},
        "train_seconds": 1.0, "total_seconds": 2.0, "peak_memory_gib": 0.5,
        "git_commit": "0123456789abcdef", "git_dirty": False,
        "machine": {"device": "cpu", "device_name": "a core"},
        "config": {
            "method": settings, "task": {"name": task, "revision": None},
            "precision": {"dtype": "fp32"}, "model": {"prompt": "plain"},
            "train": {"batch_size": 16, "steps": steps},
            "tracking": {"mode": "disabled"}, "seed": seed, "suite": "table1", "variant": variant,
            "out": "runs", "threads": 1 + seed, "traceback": False,
        },
    }  # fmt: skip


def cells_of(kind: str) -> list[dict[str, Any]]:
    if kind == "untrained":
        return [{"variant": None, "settings": {}}]
    return [{"variant": variant, "settings": {"method.lr": lr}} for variant, lr, _ in GRID]


def write_json(path: Path, record: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


def folder_of(root: Path, task: str, column: str, seed: int, variant: str | None = None) -> Path:
    method = next(m for name, m, _ in COLUMNS if name == column)
    return root / "pocket" / task / (method + (f"+{variant}" if variant else "")) / f"seed{seed}"


def write_suite(root: Path) -> Path:
    """Write a whole suite: two tasks, six columns, a grid of two, seeds 0 to 2."""
    plan = {
        "format": 1, "name": "table1", "scale": "pocket", "budget": "steps", "title": "Table 1",
        "models": ["pocket"], "tasks": list(SCORES), "seeds": [0, 1, 2], "search_seed": 0,
        "select_by": "dev_loss", "paper": "table1",
        "columns": [
            {"name": name, "method": method, "kind": kind, "cells": cells_of(kind)}
            | ({"seeds": [0]} if kind == "untrained" else {})
            for name, method, kind in COLUMNS
        ],
    }  # fmt: skip
    write_json(root / "suite.json", plan)
    choice: dict[str, Any] = {}
    for task in SCORES:
        for column, _, kind in COLUMNS:
            tried = []
            for point in cells_of(kind):
                variant = point["variant"]
                first = run(task, column, 0, variant)
                tried.append(point | {"dev": first["dev"], "status": "finished", "error": None})
                last = variant == "lr0.001"  # the chosen cell runs with all seeds
                for seed in (0, 1, 2) if last else (0,):
                    folder = folder_of(root, task, column, seed, variant)
                    write_json(folder / "result.json", run(task, column, seed, variant))
            chosen = "lr0.001" if kind != "untrained" else None
            choice[f"pocket/{task}/{column}"] = {"chosen": chosen, "cells": tried}
    write_json(root / "choice.json", choice)
    return root


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    return write_suite(tmp_path / "table1")


def edit(path: Path, **changes: Any) -> None:
    """Change a JSON file; `a__b=1` changes the nested key a.b."""
    record = json.loads(path.read_text())
    for key, changed in changes.items():
        *parents, last = key.split("__")
        node = record
        for parent in parents:
            node = node[int(parent) if isinstance(node, list) else parent]
        node[int(last) if isinstance(node, list) else last] = changed
    path.write_text(json.dumps(record))


def edit_choice(root: Path, key: str, **changes: Any) -> None:
    path = root / "choice.json"
    choice = json.loads(path.read_text())
    write_json(path.parent / "one.json", choice[key])
    edit(path.parent / "one.json", **changes)
    choice[key] = json.loads((path.parent / "one.json").read_text())
    (path.parent / "one.json").unlink()
    path.write_text(json.dumps(choice))


def tables(root: Path) -> list[Table]:
    (made,) = table1.documents(root)
    return made.tables


def row_of(table: Table, first: str) -> dict[str, str]:
    row = next(row for row in table.rows if row[0] == first)
    return dict(zip(table.header, row, strict=True))


def test_whole_table(suite: Path) -> None:
    main, comparisons, chosen, costs, grid = tables(suite)
    assert main.title == "Table 1: scale pocket, model pocket, pocket data, equal steps"
    assert list(main.header) == [
        "task", "first order", "AGZO", "MeZO", "LOZO", "zero-shot", "in-context",
    ]  # fmt: skip
    # sst2: AGZO and LOZO tie and are both bold; first order is higher but is no ZO method
    assert list(main.rows[0]) == [
        "sst2", "96.0 ± 1.0", "**91.0 ± 1.0**", "89.0 ± 1.7", "**91.0 ± 1.0**", "59.0", "61.0",
    ]  # fmt: skip
    assert row_of(main, "copa")["MeZO"] == "**63.0 ± 0.0**"
    # per seed, AGZO's mean over tasks is 75, 76.5, 76.5; MeZO's 75.5, 75.5, 77
    assert row_of(main, "mean") == {
        "task": "mean", "first order": "84.0 ± 1.5", "AGZO": "**76.0 ± 0.9**",
        "MeZO": "**76.0 ± 0.9**", "LOZO": "75.0 ± 0.9", "zero-shot": "54.5", "in-context": "56.5",
    }  # fmt: skip
    text = main.text()
    for part in (
        SANITY,
        "Steps and forwards of each run: first order 133 and 399; AGZO 399 and 800;",
        "Seeds: 0, 1, 2 (n = 3); zero-shot: 0 (n = 1); in-context: 0 (n = 1).",
        "embeddings: tuned; dev: 40 examples. Evaluation: sst2 100 (accuracy, version 1)",
        "sha256 f0174b8c5c", "Precision: fp32. Device: cpu (a core). Code: 0123456789.",
        "are not shown: model.source is 'pocket' here and 'hub' in the paper.",
    ):  # fmt: skip
        assert part in text
    for part in ("†", "NOT at equal", "Not used"):
        assert part not in text
    assert list(chosen.rows[0]) == [
        "sst2", "first order", "lr0.001", "0.001", "-", "0.2500", "75.0", "lr"
    ]  # fmt: skip
    assert chosen.rows[1][3:5] == ["0.001", "0.01"]
    assert [row[2:] for row in grid.rows[:2]] == [
        ["lr0.001", "lr=0.001", "finished", "0.2500", "75.0", "chosen"],
        ["lr0.003", "lr=0.003", "finished", "0.5000", "75.0", ""],
    ]
    assert list(costs.rows[0]) == [
        *("sst2", "first order", "3", "96.0 ± 1.0", "0.2500 ± 0.0000"),
        *("399", "1.0", "0.50", "-"),
    ]
    assert len(comparisons.rows) == 4


def test_the_state_of_an_optimizer_is_what_its_summary_says(suite: Path) -> None:
    folder = folder_of(suite, "sst2", "agzo", 1, "lr0.001")
    edit(folder / "result.json", summary={"state_bytes": 3 * 2**19})
    costs = tables(suite)[3]
    assert [row[-1] for row in costs.rows[:3]] == ["-", "1.5 MiB", "-"]


def test_comparisons_by_hand(suite: Path) -> None:
    rows = [dict(zip(t.header, r, strict=True)) for t in tables(suite)[1:2] for r in t.rows]
    # AGZO - MeZO: 2, 3, 1 on sst2; -3, -1, -2 on copa: the sum is 0, so every sum is as far
    assert (rows[0]["comparison"], rows[0]["n"], rows[0]["p"]) == ("AGZO - MeZO", "6", "1.0000")
    assert rows[0]["mean difference"] == "+0.00"
    # AGZO - LOZO: 0, 0, 0 and 2, 2, 2: |sum| = 6 for +++ and --- of the last three: 2/8
    assert (rows[1]["p"], rows[1]["p (Holm)"], rows[1]["test"]) == ("0.2500", "0.5000", "exact")
    # sample deviation of 0, 0, 0, 2, 2, 2 is 1.0954, half a width 2.5706 * 1.0954 / sqrt(6)
    assert rows[1]["95 % interval"] == "-0.15 to +2.15"
    assert [row["n"] for row in rows[2:]] == ["2", "2"]
    assert rows[3]["pair"] == "task"


def test_a_missing_seed_is_shown_and_never_averaged_away(suite: Path) -> None:
    shutil.rmtree(folder_of(suite, "sst2", "agzo", 2, "lr0.001"))
    main, comparisons, *_ = tables(suite)
    assert row_of(main, "sst2")["AGZO"] == "90.5 (n=2/3) †"
    assert row_of(main, "sst2")["LOZO"] == "**91.0 ± 1.0**"
    assert row_of(main, "mean")["AGZO"] == "- †"
    assert row_of(main, "mean")["MeZO"] == "**76.0 ± 0.9**"
    assert "† sst2, AGZO: seed 2 has not run: pocket/sst2/agzo+lr0.001/seed2" in main.notes
    assert "† mean, AGZO: not given, incomplete: sst2" in main.notes
    assert [row[2] for row in comparisons.rows] == [
        "5/6 †", "5/6 †", "1/2 †", "1/2 †",
    ]  # fmt: skip
    assert "favours the method that lost them" in comparisons.text()


def test_failed_seeds_and_grids_say_why(suite: Path) -> None:
    folder = folder_of(suite, "copa", "lozo", 1, "lr0.001")
    (folder / "result.json").rename(folder / "failed.json")
    edit(
        folder / "failed.json", status="failed", error="NonFiniteLoss: loss is inf\nat step 3",
        diverged=True,
    )  # fmt: skip
    begun = folder_of(suite, "copa", "mezo", 2, "lr0.001")
    (begun / "result.json").unlink()
    for variant in ("lr0.001", "lr0.003"):
        shutil.rmtree(folder_of(suite, "sst2", "first_order", 0, variant).parent)
    failed = {"dev": None, "status": "diverged", "error": "NonFiniteLoss: loss is nan"}
    edit_choice(
        suite, "pocket/sst2/first_order", chosen=None,
        cells=[point | failed for point in cells_of("first_order")],
    )  # fmt: skip
    main, _, chosen, _, grid = tables(suite)
    assert row_of(main, "copa")["LOZO"] == "58.5 (n=2/3) †"
    assert row_of(main, "sst2")["first order"] == "- †"
    words = "\n".join(main.notes)
    assert "† copa, LOZO: seed 1 diverged (NonFiniteLoss: loss is inf at step 3): pocket/" in words
    assert "† copa, MeZO: seed 2 has begun but not finished: pocket/copa/mezo+lr0.001" in words
    assert "† sst2, first order: all 2 grid cells failed, first with NonFiniteLoss: loss" in words
    assert chosen.rows[0][2:] == ["-"] * 6
    assert "sst2, first order, lr0.001 diverged: NonFiniteLoss: loss is nan" in grid.notes


def test_an_unfinished_grid_shows_no_number(suite: Path) -> None:
    key = "pocket/copa/agzo"
    shutil.rmtree(folder_of(suite, "copa", "agzo", 0, "lr0.003").parent)
    edit_choice(suite, key, chosen=None, cells__1__status="missing", cells__1__dev=None)
    main, *_ = tables(suite)
    assert row_of(main, "copa")["AGZO"] == "- †"
    words = "\n".join(main.notes)
    assert (
        "grid not finished: 1 of 2 cells not done, first pocket/copa/agzo+lr0.003/seed0 (missing)"
        in (words)
    )
    assert "Not used, since no cell of the plan has them: pocket/copa/agzo+lr0.001/seed1" in words
    edit_choice(suite, key, cells__1__status="failed", cells__1__error="MemoryError")
    assert "1 of 2 cells not done, first pocket/copa/agzo+lr0.003/seed0 (failed)" in (
        "\n".join(tables(suite)[0].notes)
    )
    edit_choice(suite, key, cells__1__status="diverged", cells__1__error="x")
    assert "names no choice (pocket/copa/agzo)" in "\n".join(tables(suite)[0].notes)


def test_a_suite_that_has_only_begun(suite: Path) -> None:
    (suite / "choice.json").unlink()
    shutil.rmtree(suite / "pocket")
    (made,) = table1.documents(suite)
    main, comparisons, _, costs, grid = made.tables
    assert made.stem == "table1_pocket_pocket_no_steps"
    assert {cell for row in main.rows for cell in row[1:]} == {"- †"}
    assert [row[2:] for row in comparisons.rows] == [
        [n, "-", "-", "-", "-", "-"] for n in ("0/6 †", "0/6 †", "0/2 †", "0/2 †")
    ]
    assert not grid.rows
    assert not costs.rows
    assert "choice.json has no entry pocket/sst2/agzo" in main.text()
    assert "seed 0 has not run: pocket/sst2/zero_shot/seed0" in main.text()
    assert "nothing has run yet" in main.text()
    assert latex(grid)


def test_results_that_no_cell_plans_are_listed(suite: Path) -> None:
    stray = suite / "pocket" / "sst2" / "agzo+lr9" / "seed0" / "result.json"
    write_json(stray, {"status": "finished"})
    write_json(folder_of(suite, "sst2", "agzo", 1, "lr0.003") / "result.json", {})
    main, *_ = tables(suite)
    assert row_of(main, "sst2")["AGZO"] == "**91.0 ± 1.0**"
    note = next(note for note in main.notes if note.startswith("Not used"))
    assert "pocket/sst2/agzo+lr0.003/seed1/result.json" in note
    assert "pocket/sst2/agzo+lr9/seed0/result.json" in note


def test_a_copy_without_the_losing_grid_runs(suite: Path) -> None:
    shutil.rmtree(folder_of(suite, "sst2", "agzo", 0, "lr0.003").parent)
    main, _, _, _, grid = tables(suite)
    assert row_of(main, "sst2")["AGZO"] == "**91.0 ± 1.0**"
    assert "The dev scores of 1 grid cell(s) are those noted in choice.json" in grid.notes[0]


CHOSEN = "pocket/sst2/agzo+lr0.001"


@pytest.mark.parametrize(
    ("where", "changes", "message"),
    [
        ("suite.json", {"format": 2}, r"key format is 2; allowed: 1"),
        ("suite.json", {"budget": "time"}, r"key budget is 'time'; allowed: 'steps', 'forwards'"),
        ("suite.json", {"select_by": "acc"}, r"key select_by is 'acc'"),
        ("suite.json", {"tasks": []}, r"key tasks is \[\]"),
        ("suite.json", {"seeds": [0, 0]}, r"key seeds names 0 twice"),
        ("suite.json", {"seeds": ["0"]}, r"key seeds is \['0'\]; expected whole numbers"),
        ("suite.json", {"paper": "table7"}, r"key paper is 'table7'; allowed: null, table1"),
        ("suite.json", {"columns__1__kind": "x"}, r"key kind is 'x'.*\(in columns\[1\]\)"),
        ("suite.json", {"columns__2__method": "agzo"}, r"\('none', 'agzo', 'lr0.001'\) twice"),
        ("suite.json", {"columns__1__cells__0__settings": {"method.lr": 1.0}},
         r"agzo\+lr0.001/seed0.*key config\.method\.lr is 0\.001, but the plan has 1\.0"),
        ("suite.json", {"columns__1__cells__0__variant": "lr0.002"}, "the plan has changed"),
        ("choice.json", {"pocket/sst2/agzo": 3}, r"key pocket/sst2/agzo is 3; expected an object"),
        (f"{CHOSEN}/seed1/result.json", {"config__train__batch_size": 8},
         r"seed1.*key config\.train\.batch_size is 8, but .*seed0.* has 16; runs of one cell"),
        (f"{CHOSEN}/seed1/result.json", {"config__method__lr": 0.1},
         r"seed1.*key config\.method\.lr is 0\.1, but the plan has 0\.001"),
        (f"{CHOSEN}/seed1/result.json", {"seed": 3}, r"key seed is 3, but the plan has 1"),
        (f"{CHOSEN}/seed1/result.json", {"task_version": 2},
         r"agzo.*key task_version is 2, but .* has 1; columns of a task"),
        (f"{CHOSEN}/seed1/result.json", {"data__examples_sha256": "z"},
         r"key data\.examples_sha256 is 'z', but .*sgd"),
        (f"{CHOSEN}/seed1/result.json", {"model__sha256": "z"}, r"key model\.sha256 is 'z'"),
        (f"{CHOSEN}/seed1/result.json", {"eval__n": 99}, r"key eval\.n is 99"),
        (f"{CHOSEN}/seed1/result.json", {"eval": {"f1": 0.5, "loss": 1.0, "n": 100},
                                         "dev": {"f1": 0.5, "loss": 1.0, "n": 40}},
         r"key metric is 'f1', but"),
        (f"{CHOSEN}/seed1/result.json", {"status": "failed"}, r"key status is 'failed'"),
        (f"{CHOSEN}/seed0/result.json", {"dev__loss": 0.3},
         r"cell lr0.001 has dev.loss 0.25, .*seed0/result.json has 0.3; choose again"),
        (f"{CHOSEN}/seed0/result.json", {"dev__accuracy": 0.3}, r"has dev.accuracy 0.75"),
    ],
)  # fmt: skip
def test_contradictions_are_errors(
    suite: Path, where: str, changes: dict[str, Any], message: str
) -> None:
    edit(suite / where, **changes)
    with pytest.raises(ResultError, match=message) as caught:
        table1.documents(suite)
    assert str(suite) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chosen": "lr0.003"}, r"chooses lr0.003 with dev loss 0.5, but lr0.001 has 0.25"),
        ({"chosen": "lr7"}, r"chooses 'lr7', which is no cell of the plan"),
        ({"cells__1__status": "missing", "cells__1__dev": None}, r"lr0.003 is missing, but .* is"),
        ({"cells__1__status": "odd"}, r"has status 'odd'; allowed"),
        ({"cells__1__dev": None}, r"cell lr0.003 is finished but its dev is null"),
        ({"cells__1__status": "failed"}, r"cell lr0.003 is failed but has dev numbers"),
        ({"cells": []}, r"lists the cells \{\}"),
        ({"cells__1__variant": "lr0.001"}, r"lists 2 cells, 1 of them different"),
        ({"cells__0__dev": {"n": 40}}, r"key dev\.loss is missing"),
    ],
)
def test_a_wrong_choice_is_an_error(suite: Path, changes: dict[str, Any], message: str) -> None:
    edit_choice(suite, "pocket/sst2/agzo", **changes)
    with pytest.raises(ResultError, match=message) as caught:
        table1.documents(suite)
    assert str(suite / "choice.json") in str(caught.value)
    assert "pocket/sst2/agzo" in str(caught.value)


def test_a_choice_without_its_grid_is_an_error(suite: Path) -> None:
    shutil.rmtree(folder_of(suite, "sst2", "agzo", 0, "lr0.003").parent)
    edit_choice(suite, "pocket/sst2/agzo", cells__1__status="missing", cells__1__dev=None)
    with pytest.raises(ResultError, match=r"chooses lr0.001 although cell lr0.003 is missing"):
        table1.documents(suite)


def test_unequal_budgets_are_said(suite: Path) -> None:
    for seed in (0, 1, 2):
        path = folder_of(suite, "copa", "mezo", seed, "lr0.001") / "result.json"
        edit(path, steps=300, forwards=602)
    note = "copa: NOT at equal steps (AGZO 399, MeZO 300, LOZO 399): no comparison of methods."
    assert note in tables(suite)[0].notes
    edit(suite / "suite.json", budget="forwards")
    main = tables(suite)[0]
    assert "equal forwards" in main.title
    assert any("sst2: NOT at equal forwards (first order 399" in note for note in main.notes)


def test_columns_may_spend_equal_examples_in_batches_of_their_own(suite: Path) -> None:
    """Half the batch and twice the forwards: equal examples, and no other protocol."""
    edit(suite / "suite.json", budget="examples")
    plan = json.loads((suite / "suite.json").read_text())
    own = {"train.batch_size": 8}
    for i, column in enumerate(plan["columns"]):
        if column["name"] != "agzo":
            continue
        for j, cell in enumerate(column["cells"]):
            edit(
                suite / "suite.json",
                **{f"columns__{i}__cells__{j}__settings": cell["settings"] | own},
            )
    for path in suite.glob("pocket/*/agzo*/*/result.json"):
        edit(path, config__train__batch_size=8, forwards=1600)
    choice = json.loads((suite / "choice.json").read_text())
    for key in ("pocket/sst2/agzo", "pocket/copa/agzo"):
        cells = [cell | {"settings": cell["settings"] | own} for cell in choice[key]["cells"]]
        edit_choice(suite, key, cells=cells)
    for path in suite.glob("pocket/*/sgd*/*/result.json"):
        edit(path, forwards=800)
    main = tables(suite)[0]
    assert "Budget: equal numbers of examples" in main.text()
    assert "NOT at equal" not in main.text()
    edit(suite / "pocket" / "sst2" / "agzo+lr0.001" / "seed1" / "result.json", forwards=800)
    assert "sst2: NOT at equal examples" in tables(suite)[0].text()


def to_hub(root: Path, **changes: Any) -> None:
    for path in root.rglob("result.json"):
        size = 872 if "sst2" in path.parts else 100
        edit(
            path, pocket=False, eval__n=size,  model__source="hub", model__path="Qwen/Qwen3-0.6B",
            data__source="hub", **changes,
        )  # fmt: skip


def test_the_paper_stands_beside_ours_only_on_its_own_model_and_data(suite: Path) -> None:
    to_hub(suite)
    main, *_ = tables(suite)
    assert row_of(main, "sst2")["AGZO"] == "**91.0 ± 1.0 [87.7, +3.3]**"
    assert row_of(main, "sst2")["zero-shot"] == "59.0 [54.0, +5.0]"
    assert row_of(main, "mean")["AGZO"] == "**76.0 ± 0.9**"
    assert SANITY not in main.notes
    assert "In brackets: the paper's number (arXiv 2601.17261, Table 1" in main.text()
    assert "its evaluation examples, inferred: sst2 872, copa 100)" in main.text()
    shutil.rmtree(folder_of(suite, "sst2", "agzo", 2, "lr0.001"))
    assert row_of(tables(suite)[0], "sst2")["AGZO"] == "90.5 (n=2/3) †"
    to_hub(suite, config__precision__dtype="bf16")
    main, *_ = tables(suite)
    assert "[" not in row_of(main, "sst2")["zero-shot"]
    assert "config.precision.dtype is 'bf16' here and 'fp32' in the paper" in main.text()


@pytest.mark.parametrize(
    "changes",
    [
        {"model__source": "local"},
        {"model__path": "Qwen/Qwen3-0.6B-Base"},
        {"data__source": "local"},
        {"config__model__prompt": "chat"},
        {"eval__n": 50},
    ],
)
def test_any_difference_hides_the_paper(suite: Path, changes: dict[str, Any]) -> None:
    to_hub(suite)
    for path in suite.rglob("result.json"):
        edit(path, **changes)
    main, *_ = tables(suite)
    assert "[" not in "".join(cell for row in main.rows for cell in row)
    assert "are not shown" in main.text()


def test_columns_under_another_protocol_are_not_compared(suite: Path) -> None:
    for path in (suite / "pocket").rglob("mezo*/seed*/result.json"):
        edit(path, config__train__batch_size=4)
    with pytest.raises(ResultError, match=r"batch_size is 4, .*columns of a task must"):
        table1.documents(suite)


def test_a_score_that_is_no_fraction_is_an_error(suite: Path) -> None:
    edit(folder_of(suite, "sst2", "agzo", 1, "lr0.001") / "result.json", eval__accuracy=93.0)
    with pytest.raises(ResultError, match=r"eval\.accuracy is 93\.0; expected 0 to 1"):
        table1.documents(suite)


def test_tasks_on_which_first_order_stays_at_chance_are_told(suite: Path) -> None:
    for task, chance in (("sst2", 0.509), ("copa", 0.7)):
        edit(folder_of(suite, task, "zero_shot", 0) / "result.json", chance=chance)
    told = tables(suite)[0].text()
    assert "Chance, the best single answer for all examples: sst2 50.9, copa 70.0." in told
    assert "standard errors of it on copa: what" in told  # first order: 96 and 72 of 100


def test_overrides_of_a_plan_are_told(suite: Path) -> None:
    edit(suite / "suite.json", given=["train.num_eval=100"])
    assert "Overrides of the plan, for every run: train.num_eval=100." in tables(suite)[0].text()


def test_one_seed_with_other_steps_is_told(suite: Path) -> None:
    edit(folder_of(suite, "sst2", "agzo", 1, "lr0.001") / "result.json", steps=5)
    assert "sst2: NOT at equal steps (AGZO 5 and 399" in tables(suite)[0].text()


def test_one_model_means_one_model_over_all_tasks(suite: Path) -> None:
    for path in (suite / "pocket" / "copa").rglob("result.json"):
        edit(path, model__sha256="another")
    with pytest.raises(ResultError, match=r"copa.*key model\.sha256 is 'another', but .*sst2"):
        table1.documents(suite)


def test_mixed_metrics_cut_examples_and_own_seeds_are_said(suite: Path) -> None:
    for path in (suite / "pocket" / "copa").rglob("result.json"):
        record = json.loads(path.read_text())
        for split in ("dev", "eval"):
            record[split]["f1"] = record[split].pop("accuracy")
        if record["method"] == "icl":
            record["truncated"] = {"train": 0, "dev": 0, "eval": 7}
        path.write_text(json.dumps(record))
    choice = json.loads((suite / "choice.json").read_text())
    for key in (key for key in choice if "/copa/" in key):
        for point in choice[key]["cells"]:
            point["dev"]["f1"] = point["dev"].pop("accuracy")
    write_json(suite / "choice.json", choice)
    edit(suite / "suite.json", columns__5__seeds=[0, 1])
    main, _, chosen, _, _ = tables(suite)
    text = main.text()
    assert "means (of F1 and accuracy alike)." in text
    assert "Evaluation examples cut to the maximal length: copa, in-context 7." in text
    assert "in-context: 0, 1 (n = 2)" in text
    assert row_of(chosen, "copa")["dev score %"] == "75.0"


def test_no_paper_is_said(suite: Path) -> None:
    edit(suite / "suite.json", paper=None)
    assert "No table of the paper belongs to this suite" in tables(suite)[0].text()


def test_edges_are_named_for_the_setting_that_has_them() -> None:
    points = tuple(
        GridCell(f"lr{lr}-eps{eps}", {"method.lr": lr, "method.eps": eps})
        for lr in (1.0, 2.0, 3.0)
        for eps in (0.1, 0.2)
    )
    column = Column("agzo", "AGZO", "agzo", "zo", points, (0,), 0)
    cell = Cell("m", "t", column, points[2], {}, (), (), 0)
    assert edges(cell) == ["eps"]


def test_command_prints_and_writes_markdown_and_latex(
    suite: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.rmtree(folder_of(suite, "sst2", "agzo", 2, "lr0.001"))
    assert table1.main([str(suite)]) == 0
    assert "90.5 (n=2/3) †" in capsys.readouterr().out
    stem = "table1_pocket_pocket_pocket_steps"
    markdown = (suite / f"{stem}.md").read_text()
    assert "| sst2 | 96.0 ± 1.0 | 90.5 (n=2/3) † | 89.0 ± 1.7 | **91.0 ± 1.0** |" in markdown
    assert str(suite) not in markdown
    tex = (suite / f"{stem}.tex").read_text()
    assert r"sst2 & 96.0 $\pm$ 1.0 & 90.5 (n=2/3) $\dagger$ & 89.0 $\pm$ 1.7 & \textbf{91.0" in tex
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == 5
    assert table1.main([str(suite), "--out", str(tmp_path / "made")]) == 0
    assert (tmp_path / "made" / f"{stem}.md").read_text() == markdown


@pytest.mark.parametrize("name", ["suite.json", "choice.json", f"{CHOSEN}/seed1/result.json"])
def test_command_names_a_truncated_file(
    suite: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = suite / name
    path.write_text(path.read_text()[:100])
    assert table1.main([str(suite)]) == 1
    error = capsys.readouterr().err
    assert f"{path}: not valid JSON" in error
    assert "delete it and run again" in error


def test_command_wants_a_suite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert table1.main([str(tmp_path)]) == 1
    assert "suite.json: no such file; expected the folder of a suite" in capsys.readouterr().err


def test_latex_escapes_what_tex_would_read() -> None:
    assert escape("50 % of a_b & #1 {x} ~ ^ \\ <|>\n") == (
        r"50 \% of a\_b \& \#1 \{x\} \textasciitilde{} \textasciicircum{} \textbackslash{} "
        r"\textless{}\textbar{}\textgreater{} "
    )
    made = latex(Table("t_1", ["a", "b"], [["x", "**1 ± 2**"]], ["note"]))
    assert r"x & \textbf{1 $\pm$ 2} \\" in made
    assert r"\caption{t\_1}" in made


def test_two_models_make_two_documents(suite: Path) -> None:
    edit(suite / "suite.json", models=["pocket", "other"])
    made = table1.documents(suite)
    assert [one.stem for one in made] == [
        "table1_pocket_pocket_pocket_steps",
        "table1_pocket_other_no_steps",
    ]


def adapt(root: Path, column: str, adapter: str) -> None:
    """Make a column of a suite one that tunes an adapter."""
    plan = json.loads((root / "suite.json").read_text())
    at = next(i for i, one in enumerate(plan["columns"]) if one["name"] == column)
    edit(root / "suite.json", **{f"columns__{at}__adapter": adapter})
    for task in SCORES:
        for folder in (root / "pocket" / task).glob(f"{plan['columns'][at]['method']}+*"):
            target = root / f"pocket+{adapter}" / task / folder.name
            target.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(target)
            for path in target.rglob("result.json"):
                edit(path, model__name=f"pocket+{adapter}")
    for path in root.rglob("result.json"):
        edit(path, tuned_parameters=120 if f"+{adapter}" in str(path) else 549472)


def test_a_column_that_tunes_an_adapter_stands_in_its_models_table(suite: Path) -> None:
    (plain,) = table1.documents(suite)
    adapt(suite, "lozo", "lora")
    (found,) = table1.documents(suite)
    assert found.stem == plain.stem
    assert found.tables[0].rows == plain.tables[0].rows
    assert found.tables[1:] == plain.tables[1:]
    told = [note for note in found.tables[0].notes if note not in plain.tables[0].notes]
    assert told == ["Tuned parameters: first order 549,472; AGZO 549,472; MeZO 549,472; LOZO 120."]
    lora = suite / "pocket+lora/sst2/lozo+lr0.001/seed1"
    edit(lora / "result.json", model__name="pocket")
    with pytest.raises(
        ResultError, match=r"model.name is 'pocket', but the plan has 'pocket\+lora"
    ):
        table1.documents(suite)
    shutil.rmtree(lora)
    (found,) = table1.documents(suite)
    assert any("has not run: pocket+lora/sst2/lozo" in note for note in found.tables[0].notes)


def test_an_adapter_that_is_no_name_is_an_error(suite: Path) -> None:
    edit(suite / "suite.json", columns__1__adapter=3)
    with pytest.raises(ResultError, match=r"key adapter is 3; expected str \(in columns\[1\]\)"):
        table1.documents(suite)


def test_torch_is_not_imported() -> None:
    code = (
        "import sys, analysis.tables.table1, analysis.paper.__main__; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_many_methods_become_rows():
    rows = [["sst2", "1", "2"], ["mean", "3", "4"]]
    assert table1.turned(["method", "A", "B"], rows) == [
        ["method", "sst2", "mean"], ["A", "1", "3"], ["B", "2", "4"],
    ]  # fmt: skip
