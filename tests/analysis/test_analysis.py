"""Tables and figures: made from small hand-written result files whose numbers are known."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from analysis.figures import curves
from analysis.figures.style import ordered, styles
from analysis.reading.load import ResultError, load_metrics, load_results
from analysis.tables import table

TEMPLATE: dict[str, Any] = {
    "status": "finished", "suite": "demo", "model": {"name": "pocket"},
    "data": {"source": "pocket"}, "task": "sst2", "task_version": 1, "method": "mezo",
    "variant": None, "seed": 0, "pocket": True, "embeddings": "tuned", "rounding": "nearest",
    "config": {"method": {"lr": 1e-3, "eps": 1e-2}, "train": {"batch_size": 16}},
    "steps": 100, "forwards": 201, "best_step": 100, "train_seconds": 2.0, "total_seconds": 3.0,
    "peak_memory_gib": 0.25, "dev": {"accuracy": 0.75, "loss": 0.5, "n": 40},
    "eval": {"accuracy": 0.7, "loss": 0.6, "n": 80}, "machine": {"device": "cpu"},
    "git_commit": "0123456789abcdef", "git_dirty": False,
}  # fmt: skip
# what makes two runs of one method and task two experiments, and how the error names it
OTHERS = [
    ({"model": {"name": "large"}}, r"key model\.name is 'large', but {} has 'pocket'"),
    ({"model__sha256": "z"}, r"key model\.sha256 is 'z', but {} has None"),
    ({"data__examples_sha256": "z"}, r"key data\.examples_sha256 is 'z', but {} has None"),
    ({"task_version": 2}, r"key task_version is 2, but {} has 1"),
    ({"config__method": {"lr": 1e-3, "eps": 1e-2, "queries": 4}},
     r"key config\.method\.queries is 4, but {} has None"),
    ({"config__precision": {"dtype": "bf16"}},
     r"key config\.precision\.dtype is 'bf16', but {} has None"),
    ({"config__train__batch_size": 8}, r"key config\.train\.batch_size is 8, but {} has 16"),
]  # fmt: skip


def named(message: str, what: str) -> str:
    """Complete a message of `OTHERS` with both files and what must agree."""
    where = message.format(r"\S*first/\S*result\.json")
    return rf"second/\S*result\.json: {where}; {what} \(method mezo on task sst2\) must agree"


def write_run(root: Path, **changes: Any) -> Path:
    """Write one run's result; `a__b=1` changes the nested key a.b."""
    record = copy.deepcopy(TEMPLATE)
    for key, value in changes.items():
        *folders, last = key.split("__")
        node = record
        for folder in folders:
            node = node[folder]
        node[last] = value
    if "metrics" not in record:
        record["metrics"] = points(record["steps"], int(record["forwards"]))
    name = f"{record['task']}-{record['method']}-{record['variant']}-{record['seed']}"
    path = root / name / "result.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(record))
    return path


def points(steps: int, forwards: int) -> list[dict[str, Any]]:
    """A falling loss at every step and an evaluation at every twentieth."""
    metrics: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        loss = 0.7 - 0.2 * step / steps + (0.05 if step % 2 else -0.05)
        point: dict[str, Any] = {"step": step, "forwards": forwards * step // steps, "loss": loss}
        if step % 20 == 0:
            point["dev"] = {"accuracy": 0.6, "loss": 0.75 - 0.2 * step / steps, "n": 40}
        metrics.append(point)
    return metrics


def write_demo(root: Path) -> Path:
    """Write zero-shot and four methods on three tasks, one of them scored by F1."""
    for task in ("sst2", "rte", "squad"):
        for method, steps in (("zero_shot", 0), ("sgd", 67), ("mezo", 100), ("agzo", 100)):
            changes: dict[str, Any] = {"forwards": {0: 0, 67: 201, 100: 201}[steps]}
            if task == "squad":
                scores = {"f1": 0.5, "loss": 1.0, "n": 40}
                changes |= {"dev": scores, "eval": scores}
            run = {"task": task, "method": method, "steps": steps, **changes}
            if task == "squad":
                run["metrics"] = [{"step": 1, "forwards": 2, "loss": 1.2}] if steps else []
            write_run(root, **run)
    return root


def test_one_row_per_run_and_one_per_step(tmp_path: Path) -> None:
    write_run(tmp_path, seed=0)
    write_run(tmp_path, seed=1, method="sgd", config__method={"lr": 0.1})
    frame = load_results(tmp_path)
    assert list(frame["method"]) == ["mezo", "sgd"]
    assert list(frame["metric"]) == ["accuracy", "accuracy"]
    assert list(frame["eval_score"]) == [0.7, 0.7]
    assert frame["eps"].isna().tolist() == [False, True]
    steps = load_metrics(tmp_path)
    assert len(steps) == 200
    assert steps["dev_loss"].notna().sum() == 10
    by_list = load_results([tmp_path / "sst2-mezo-None-0", tmp_path / "sst2-sgd-None-1"])
    assert by_list.equals(frame)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "running"}, "key status is 'running'; only 'finished'"),
        ({"model": {}}, r"key model\.name is missing"),
        ({"forwards": "201"}, "key forwards is '201'; expected int"),
        ({"steps": True}, "key steps is True; expected int"),
        ({"eval__loss": float("nan")}, r"key eval\.loss is nan; expected a finite number"),
        ({"eval": {"loss": 1.0, "n": 1}}, r"key eval holds the scores \[\]"),
        ({"config": {"train": {"batch_size": 1}}}, r"key config\.method is missing"),
        ({"metrics": [{"step": 1, "loss": 1.0}]}, r"key forwards is missing \(in metrics\[0\]\)"),
        ({"metrics": [], "steps": 0}, "has logged a step"),
    ],
)
def test_malformed_results_name_path_and_key(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_run(tmp_path, **changes)
    with pytest.raises(ResultError, match=message) as caught:
        load_metrics(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_missing_and_unfinished_runs_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match=r"holds no result\.json"):
        load_results(tmp_path)
    with pytest.raises(ResultError, match="no such file or folder"):
        load_results(tmp_path / "absent")
    with pytest.raises(ResultError, match="list of result folders is empty"):
        load_results([])
    path = write_run(tmp_path)
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "metrics.jsonl").write_text("")
    with pytest.raises(ResultError, match="begun: this run has begun but not finished"):
        load_results(tmp_path)
    path.write_text("{")
    with pytest.raises(ResultError, match="not valid JSON"):
        load_results(path)


def test_demo_table_shows_every_method_and_its_label(tmp_path: Path) -> None:
    shown = table.demo_table(load_results(write_demo(tmp_path)))
    assert [row[0] for row in shown.rows] == ["zero-shot", "SGD", "MeZO", "AGZO"]
    assert list(shown.header).count("forwards") == 3
    assert shown.header[1:5] == ["rte accuracy %", "forwards", "seconds", "peak GiB"]
    assert shown.header[5::4] == ["squad F1 %", "sst2 accuracy %"]
    assert shown.rows[2][1:5] == ["70.0", "201", "3.0", "0.25"]
    for text in (shown.text(), shown.markdown()):
        assert table.SANITY in text
        assert "sst2: equal forward passes (201)" in text


def test_demo_table_refuses_gaps_and_repeats(tmp_path: Path) -> None:
    write_run(tmp_path, task="sst2")
    write_run(tmp_path, task="rte", method="agzo")
    with pytest.raises(ResultError, match="method mezo has no finished run on task rte"):
        table.demo_table(load_results(tmp_path))
    write_run(tmp_path, task="sst2", seed=1)
    with pytest.raises(ResultError, match="a second run of method mezo on task sst2"):
        table.demo_table(load_results(tmp_path))


def test_seeds_table_gives_mean_sample_deviation_and_n(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.70, 0.72, 0.77)):
        write_run(tmp_path, seed=seed, pocket=False, eval__accuracy=accuracy)
    write_run(
        tmp_path, method="zero_shot", steps=0, forwards=0, config__method={}, pocket=False,
        embeddings=None,
    )  # fmt: skip
    write_run(tmp_path, method="sgd", forwards=300, config__method={"lr": 0.1}, pocket=False)
    (shown,) = table.seeds_table(load_results(tmp_path))
    zero, sgd, mezo = (dict(zip(shown.header, row, strict=True)) for row in shown.rows)
    assert (zero["lr"], zero["eps"], zero["embeddings"], zero["n"]) == ("-", "-", "-", "1")
    assert (sgd["lr"], sgd["eps"]) == ("0.1", "-")
    # deviations from the mean 73: -3, -1, 4, so the sample variance is 26 / 2
    assert mezo["eval accuracy %"] == "73.0 ± 3.6"
    assert (mezo["n"], mezo["lr"], mezo["eps"], mezo["embeddings"]) == (
        "3",
        "0.001",
        "0.01",
        "tuned",
    )
    assert "NOT at equal forward passes (201 to 300)" in shown.text()
    assert table.SANITY not in shown.text()


def test_seeds_table_keeps_settings_apart_and_counts_a_seed_once(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", config__method={"lr": 1e-4, "eps": 1e-2})
    (shown,) = table.seeds_table(load_results(tmp_path))
    assert [row[1] for row in shown.rows] == ["0.0001", "0.001"]
    write_run(tmp_path / "c")
    with pytest.raises(ResultError, match="seed 0 of method mezo on task sst2 is already counted"):
        table.seeds_table(load_results(tmp_path))


@pytest.mark.parametrize(("changes", "message"), OTHERS[1:])  # another model has another table
def test_a_row_over_seeds_is_one_experiment(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_run(tmp_path / "first")
    write_run(tmp_path / "second", seed=1, **changes)
    with pytest.raises(ResultError, match=named(message, "runs of one row")):
        table.seeds_table(load_results(tmp_path))


def test_table_command_writes_markdown_or_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made" / "table.md"
    assert table.main([str(tmp_path / "absent"), "--out", str(out)]) == 1
    assert "no such file or folder" in capsys.readouterr().err
    write_demo(tmp_path / "runs")
    assert table.main([str(tmp_path / "runs"), "--out", str(out)]) == 0
    assert out.read_text().count("| MeZO |") == 3
    assert str(out) in capsys.readouterr().out


def test_curves_are_drawn_with_their_caption(tmp_path: Path) -> None:
    source = write_demo(tmp_path / "runs")
    png, pdf, words = curves.draw(source, tmp_path / "figure")
    with Image.open(png) as image:
        assert image.width > 1000
        assert image.convert("L").getextrema()[0] < 100
    assert pdf.read_bytes().startswith(b"%PDF")
    text = words.read_text()
    for part in ("running mean over 20 forwards", "pocket", "Seeds: 0 (n = 1", "cpu", "0123456789"):
        assert part in text
    assert table.SANITY in text
    first = pdf.read_bytes()
    curves.draw(source, tmp_path / "figure")
    assert pdf.read_bytes() == first


def test_a_dot_in_the_name_of_a_figure_stays(tmp_path: Path) -> None:
    write_run(tmp_path / "runs")
    written = curves.draw(tmp_path / "runs", tmp_path / "loss_0.6b")
    assert [path.name for path in written] == [f"loss_0.6b.{x}" for x in ("png", "pdf", "txt")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *OTHERS,
        ({"config__method": {"lr": 1e-4, "eps": 1e-2}},
         r"key config\.method\.lr is 0\.0001, but {} has 0\.001"),
        ({"variant": "b"}, "key variant is 'b', but {} has None"),
    ],
)  # fmt: skip
def test_a_line_of_curves_is_one_experiment(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_run(tmp_path / "first")
    write_run(tmp_path / "second", seed=1, **changes)
    with pytest.raises(ResultError, match=named(message, "runs of one line")):
        curves.draw(tmp_path, tmp_path / "figure")


def test_a_line_of_curves_has_each_seed_once(tmp_path: Path) -> None:
    write_run(tmp_path / "first")
    places = {"suite": "again", "out": "elsewhere", "device": "cpu", "threads": 2, "seed": 1}
    config = TEMPLATE["config"] | places | {"data": {"root": "/there"}, "model": {"path": "/m"}}
    config["train"] = TEMPLATE["config"].get("train", {}) | {"log_every": 7, "save_model": True}
    write_run(tmp_path / "second", seed=1, config=config)  # what is no part of the experiment
    assert curves.draw(tmp_path, tmp_path / "figure")
    write_run(tmp_path / "third")
    with pytest.raises(ResultError, match=r"third.*: seed 0 of .*mezo .* counted from .*first"):
        curves.draw(tmp_path, tmp_path / "figure")


def test_smoothing_is_a_centred_mean_where_the_window_fits() -> None:
    line = [(float(x), float(x * x)) for x in range(5)]
    assert curves.smooth(line, 2) == [(1, 5 / 3), (2, 14 / 3), (3, 29 / 3)]


def test_every_method_has_a_look_of_its_own() -> None:
    assert ordered(["agzo", "new", "sgd"]) == ["sgd", "agzo", "new"]
    looks = styles(["agzo", "sgd", "mezo", "lozo", "new", "newer"])
    assert len({look.colour for look in looks.values()}) == 6
    assert len({look.marker for look in looks.values()}) == 6
    assert looks["new"].label == "new"
    with pytest.raises(ValueError, match="no style is left"):
        styles(["a", "b", "c", "d"])
