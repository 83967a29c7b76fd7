"""The figures of the step's cost, from JSON alone: what is missing is named, nothing is guessed."""

import json
from pathlib import Path
from typing import Any

import pytest

from analysis.figures import step_cost, step_cost_scaling
from analysis.figures.step_cost_rows import MEASURED, load, name
from analysis.reading.load import ResultError

METHODS = {  # method -> (family, textbook, rank, ratio)
    "agzo_textbook": ("agzo", "agzo_textbook", 1, 1.9),
    "agzo": ("agzo", "agzo_textbook", 1, 1.05),
    "agzo_warm": ("agzo", "agzo_textbook", 1, 1.03),
    "mezo_textbook": ("mezo", "mezo_textbook", None, 2.4),
    "mezo": ("mezo", "mezo_textbook", None, 1.1),
    "sgd": ("sgd", None, None, 1.5),
}
SIZES = {"pocket": 600_000, "60m": 60_000_000, "smollm2-135m": 134_515_008}


def row(method: str, **changes: Any) -> dict:
    family, textbook, rank, ratio = METHODS[method]
    split = method not in (textbook, "sgd")
    found = {
        "shape": "60m", "dtype": "float32", "batch": 16, "length": 64, "method": method,
        "rank": rank, "family": family, "textbook": textbook,
        "target_ratio": 1.06 if method == "agzo" else None, "target_speedup": None,
        "status": "ok", "message": "", "rounds": 5, "ratio": ratio, "ratio_least": ratio - 0.02,
        "ratio_largest": ratio + 0.02, "steps_per_second": 1.0, "two_forwards": 1.0,
        "forwards": 1.0 if split else None, "basis": 0.03 if split else None,
        "perturb": -0.01 if split else None, "update": 0.01 if split else None,
        "peak_gib": 0.5, "peak_of_forward": 1.01,
    } | changes  # fmt: skip
    return found | {"parameters": SIZES[found["shape"]]}


def lost(method: str, **changes: Any) -> dict:
    nothing = dict.fromkeys((*MEASURED, "forwards", "basis", "perturb", "update"))
    return row(method, **changes) | nothing | {"status": "out_of_memory", "message": "no room"}


def write(path: Path, rows: list[dict], sweep: tuple[str, ...] = (), **changes: Any) -> Path:
    record = {
        "command": "python -m experiments.bench",
        "arguments": {"sweep": list(sweep)},
        "git_commit": "0123456789abcdef",
        "git_dirty": False,
        "machine": {"device": "cpu", "device_name": "a processor", "threads": 2},
        "versions": {"torch": "2.13.0", "transformers": "5.1.0"},
        "complete": True,
        "planned": len(rows),
        "rows": rows,
    }
    path.write_text(json.dumps(record | changes))
    return path


@pytest.fixture
def table(tmp_path) -> Path:
    return write(tmp_path / "steps.json", [row(method) for method in METHODS])


@pytest.fixture
def sweeps(tmp_path) -> Path:
    rows = [row(m, length=x, batch=4) for x in (32, 64, 128) for m in METHODS]
    rows[-2] = lost("mezo", length=128, batch=4)
    rows += [row(m, batch=x) for x in (1, 16) for m in METHODS]
    rows += [row(m, rank=x, batch=4) for x in (4, 16) for m in ("agzo", "agzo_textbook")]
    rows += [row(m, shape="pocket", batch=4) for m in METHODS]
    return write(tmp_path / "scaling.json", rows, ("length", "batch", "rank", "size"))


def test_the_figures_are_drawn_twice_the_same_and_say_what_they_are(table, sweeps, tmp_path):
    first, second = (
        step_cost.draw([table, sweeps], tmp_path / each / "cost") for each in ("a", "b")
    )
    assert [path.name for path in first] == [
        *("cost.png", "cost.pdf", "cost.txt"),
        *("cost_scaling.png", "cost_scaling.pdf", "cost_scaling.txt"),
    ]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    bars, curves = (" ".join(path.read_text().split()) for path in (first[2], first[5]))
    assert "random weights of the Qwen3 60m shape, float32" in bars
    for words in (bars, curves):
        assert (
            "a processor, 2 thread(s), torch 2.13.0, transformers 5.1.0, commit 0123456." in words
        )
    assert "(a) over sequence length: 60m, float32, batch 4; (b) over batch size: 60m" in curves
    assert "(d) over parameters: float32, batch 4, length 64" in curves
    assert "random weights. Shapes: Qwen3 pocket, Qwen3 60m. (a)" in curves


def test_each_shape_and_precision_has_its_own_bars(tmp_path):
    rows = [row("agzo", dtype=dtype, length=64) for dtype in ("float32", "bfloat16")]
    written = step_cost.draw([write(tmp_path / "steps.json", rows)], tmp_path / "cost")
    assert [path.name for path in written if path.suffix == ".png"] == [
        "cost_60m_float32.png",
        "cost_60m_bfloat16.png",
    ]


def test_a_dot_in_the_name_of_a_model_cuts_no_file_name(tmp_path):
    rows = [row("agzo", dtype=dtype, length=64) for dtype in ("float32", "bfloat16")]
    rows = [one | {"shape": shape} for shape in ("0.6b", "1.7b") for one in rows]
    written = step_cost.draw([write(tmp_path / "steps.json", rows)], tmp_path / "v1.2")
    models = [f"{shape}_{dtype}" for shape in ("0.6b", "1.7b") for dtype in ("float32", "bfloat16")]
    assert [path.name for path in written[:12]] == [
        f"v1.2_{model}.{ending}" for model in models for ending in ("png", "pdf", "txt")
    ]
    assert all(path.is_file() for path in written)
    assert "Qwen3 0.6b shape, float32" in " ".join(written[2].read_text().split())


def test_the_fullest_group_of_an_axis_comes_first(table, sweeps):
    found = step_cost_scaling.groups(load([table, sweeps]).rows, "length")
    assert found[0].values == [32, 64, 128]
    assert found[0].fixed == {"shape": "60m", "dtype": "float32", "batch": 4, "mix": None}
    ranks = step_cost_scaling.groups(load([sweeps]).rows, "rank")
    assert ranks[0].values == [1, 4, 16]
    assert {method for method, _ in ranks[0].curves} == {"agzo", "agzo_textbook"}
    sizes = step_cost_scaling.groups(load([sweeps]).rows, "size")
    assert sizes[0].values == [600_000, 60_000_000]


def test_a_mix_of_prompts_is_no_length(tmp_path):
    rows = [row(m, length=x, mix=mix) for x, mix in ((38, "short"), (192, "long")) for m in METHODS]
    rows += [row(m, length=64) for m in METHODS]
    rows += [row("agzo", length=38, mix="short", rank=4)]
    bench = load([write(tmp_path / "steps.json", rows)])
    assert not step_cost_scaling.groups(bench.rows, "length")
    (ranks,) = step_cost_scaling.groups(bench.rows, "rank")
    assert ranks.words() == "60m, float32, 16 short prompts"
    assert [one["mix"] for one in ranks.curves["agzo", None]] == ["short", "short"]


def test_shapes_have_their_names_in_the_caption_of_the_curves(tmp_path):
    rows = [row("agzo", shape=shape) for shape in ("smollm2-135m", "60m")]
    written = step_cost.draw([write(tmp_path / "steps.json", rows)], tmp_path / "cost")
    said = " ".join(written[-1].read_text().split())
    assert "Shapes: Qwen3 60m, smollm2-135m. (a) over parameters" in said


def test_memory_that_ran_out_is_drawn_as_that(tmp_path):
    rows = [row("agzo"), lost("mezo")]
    assert step_cost.draw([write(tmp_path / "steps.json", rows)], tmp_path / "cost")


def test_names_and_ticks():
    assert name(row("agzo_warm")) == "AGZO, warm start"
    assert name(row("agzo_textbook", rank=4), several_ranks=True) == "AGZO, textbook, r = 4"
    assert name(row("sgd")) == "SGD"
    assert [step_cost_scaling.short(x) for x in (64, 587_488, 5.1e6, 5.96e8, 1.72e9)] == [
        *("64", "0.6M", "5.1M", "596M", "1.7B")
    ]


def without(key: str) -> dict:
    return {name: value for name, value in row("agzo").items() if name != key}


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ([], {}, r"key rows is \[\]; expected at least one row"),
        ([without("family")], {}, r"key family is missing \(in rows\[0\]\)"),
        ([without("peak_gib")], {}, r"key peak_gib is missing \(in rows\[0\]\)"),
        ([row("agzo") | {"ratio": None}], {}, r"key ratio is None; expected int or float"),
        ([row("agzo") | {"status": "odd"}], {}, "key status is 'odd'; expected 'ok' or 'out_of_m"),
        ([row("agzo")], {"complete": False, "planned": 9}, "has 1 of 9 rows; run the same command"),
        ([row("agzo")], {"command": "another"}, "key command is 'another'; expected"),
        ([row("agzo")], {"versions": {}}, "key versions.torch is missing"),
    ],
)
def test_what_is_missing_is_named(rows, changes, message, tmp_path):
    with pytest.raises(ResultError, match=message):
        step_cost.draw([write(tmp_path / "steps.json", rows, **changes)], tmp_path / "cost")


def test_files_of_two_machines_are_no_figure(table, tmp_path):
    machine = {"device": "cuda", "device_name": "NVIDIA H200", "threads": 8}
    other = write(tmp_path / "other.json", [row("agzo")], machine=machine)
    with pytest.raises(ResultError, match=r"files of several machines: .*a processor.*H200"):
        step_cost.draw([table, other], tmp_path / "cost")


def test_files_of_other_threads_are_no_figure(table, tmp_path):
    machine = {"device": "cpu", "device_name": "a processor", "threads": 1}
    other = write(tmp_path / "other.json", [row("agzo")], machine=machine)
    words = (
        r"steps.json \(a processor, 2 thread\(s\)\), .*other.json \(a processor, 1 thread\(s\)\)"
    )
    with pytest.raises(ResultError, match=words):
        step_cost.draw([table, other], tmp_path / "cost")


@pytest.mark.parametrize("sweep", [(), ("length",)])
def test_what_was_measured_twice_is_no_figure(sweep, tmp_path):
    rows = [row(method, length=x) for x in (32, 64) for method in ("agzo", "mezo")]
    first = write(tmp_path / "steps.json", rows, sweep)
    again = write(tmp_path / "again.json", [row("mezo", length=64, ratio=3.0)], sweep)
    words = r"steps.json and .*again.json both measured mezo \(60m, float32, batch 16 x 64\)"
    with pytest.raises(ResultError, match=words):
        step_cost.draw([first, again], tmp_path / "cost")


@pytest.mark.parametrize("order", [1, -1])
def test_a_curve_is_of_its_sweep_and_a_bar_of_the_table(order, tmp_path):
    table = write(tmp_path / "steps.json", [row("agzo", length=64, ratio=1.5)])
    rows = [row("agzo", length=x, ratio=1.1) for x in (32, 64)]
    sweep = write(tmp_path / "scaling.json", rows, ("length",))
    bench = load([table, sweep][::order])
    (group,) = step_cost_scaling.groups(bench.rows, "length")
    assert [one["ratio"] for one in group.curves["agzo", 1]] == [1.1, 1.1]
    assert [one["ratio"] for one in bench.tables] == [1.5]


def test_a_missing_file_is_one_line(tmp_path, capsys):
    words = [str(tmp_path / "absent.json"), "--out", str(tmp_path / "cost")]
    assert step_cost.main(words) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'absent.json'}: no such file\n"
