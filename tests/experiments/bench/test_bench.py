"""The benchmark runs whole at a tiny shape; its textbook steps are what they stand for."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from agzo.execution.compiled import CompiledLayers
from experiments import bench
from experiments.bench import __main__ as command
from experiments.bench import apart, evaluation, measure, targets
from experiments.bench.arguments import parse
from experiments.bench.losses import full_logits, label_logits, random_ids
from experiments.bench.methods import METHODS, ON_CPU, Method
from experiments.bench.plan import AXES, SWEEPS
from experiments.bench.profile import PROFILED, WATCHED
from experiments.bench.prompts import LENGTHS, packed, padded
from experiments.bench.rows import Case, Row
from experiments.bench.table import line, verdict
from experiments.bench.textbook import TextbookAGZO, TextbookLOZO, TextbookMeZO
from experiments.methods import registry
from experiments.models.shapes import build
from experiments.records import machine
from tests.networks import mlp, weights

TINY = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
SMALL = ["--batch", "2", "--length", "8", "--rounds", "2"]
CPU = {"device": "cpu", "device_name": "a processor"}
H200 = {"device": "cuda", "device_name": "NVIDIA H200"}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setitem(bench.SHAPES, "60m", TINY)
    quick = partial(CompiledLayers, backend="eager")  # no code is generated
    monkeypatch.setattr(measure, "CompiledLayers", quick)
    monkeypatch.setattr(command, "measure_apart", measure.measure)
    monkeypatch.setattr(measure, "gc", SimpleNamespace(collect=int))  # slow among a suite's objects


def rows(path: Path) -> list[dict]:
    return json.loads(path.read_text())["rows"]


@pytest.mark.slow
def test_every_method_gets_a_row(tmp_path, capsys):
    out = tmp_path / "bench.json"
    assert command.main([*SMALL, "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    assert record["complete"]
    assert record["machine"]["device"] == "cpu"
    assert {"git_commit", "versions", "float32_matmul_precision"} <= record.keys()
    assert [row["method"] for row in record["rows"]] == list(ON_CPU)
    # No split: backpropagation, a prefix that is reused.
    whole = ("sgd", "adamw", "dominant_layer")
    for row in record["rows"]:
        assert row["status"] == "ok"
        assert 0 < row["ratio_least"] <= row["ratio"] <= row["ratio_largest"]
        assert row["peak_gib"] > 0
        assert row["parameters"] > 0
        assert (row["update"] is None) == (row["method"] in (row["textbook"], *whole))
    assert "two plain forwards" in capsys.readouterr().out


def test_every_method_that_trains_is_measured():
    trained = {name for name, method in registry.METHODS.items() if method.about.trains}
    assert trained == {method.family for method in METHODS.values()}


def test_graphs_are_for_cuda():
    with pytest.raises(ValueError, match="--methods=mezo_graphs: allowed are"):
        parse(["--methods", "mezo_graphs"])


def test_lists_make_every_combination_and_ranks_are_for_methods_that_have_one():
    words = "--shape pocket,60m --dtype float32,bfloat16 --batch 1,2 --length 8,16 --rank 1,3"
    cases = parse([*words.split(), "--methods", "lozo,mezo"]).cases
    assert len(cases) == len(set(cases)) == 2 * 2 * 2 * 2 * 3
    assert {case.rank for case in cases if case.method == "lozo"} == {1, 3}
    assert {case.rank for case in cases if case.method == "mezo"} == {None}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_sweeps_vary_one_axis_at_a_time(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    fields = {"length": "length", "batch": "batch", "rank": "rank", "size": "shape"}
    for axis in AXES:
        cases = parse(["--device", device, "--sweep", axis, "--methods", "agzo,mezo"]).cases
        values = [getattr(case, fields[axis]) for case in cases if case.method == "agzo"]
        assert tuple(values) == SWEEPS[device][axis]
        assert any(case.method == "mezo" for case in cases) == (axis != "rank")
        others = {field for field in fields.values() if field != fields[axis]}
        alike = {tuple(getattr(case, field) for field in sorted(others | {"method"}))
                 for case in cases}  # fmt: skip
        assert len(alike) == len({case.method for case in cases})
    every = parse(["--device", device, "--sweep", "all"]).cases
    assert len(every) == len(set(every))
    chosen = parse(["--device", device, "--sweep", "length", "--length", "4,8", "--batch", "2"])
    assert {(case.batch, case.length) for case in chosen.cases} == {(2, 4), (2, 8)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--device tpu", "--device=tpu: allowed are cpu, cuda"),
        ("--shape 3b", "--shape=3b: allowed are, each once, pocket,"),
        ("--dtype int8", "--dtype=int8: allowed are, each once, float32,"),
        ("--batch 0", "--batch=0: allowed are ascending whole numbers from 1 on"),
        ("--length 1", "--length=1: allowed are ascending whole numbers from 2 on"),
        ("--rank two", "--rank=two: allowed are ascending whole numbers from 1 on"),
        ("--methods adam", "--methods=adam: allowed are, each once, agzo_textbook,"),
        ("--sweep depth", "--sweep=depth: allowed are, each once, length, batch, rank, size"),
        ("--rounds 0", "--rounds=0: allowed are whole numbers from 1 on"),
        ("--seconds -1", "--seconds=-1: allowed are ascending numbers above 0"),
        ("--minutes 1,2", "--minutes=1,2: allowed is one number above 0"),
        ("--threads none", "--threads=none: allowed are whole numbers from 1 on"),
        ("--sweep length --batch 1,2", "--batch=1,2: allowed is one value, of the base point"),
        ("--mix middle", "--mix=middle: allowed are short, long"),
        ("--mix short --sweep rank", "--mix=short: not allowed with --sweep"),
        ("--out rows.csv", "--out=rows.csv: allowed is a file whose name ends in .json"),
        ("--rank 500 --methods lozo", "rank=500: the widest matrix"),
    ],
)
def test_bad_arguments_are_one_line(words, message, capsys):
    assert command.main([*SMALL, *words.split()]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"error: {message}")
    assert "\n" not in error


def test_a_gpu_that_is_not_there_is_one_line(capsys):
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    assert command.main(["--device", "cuda"]) == 2
    assert "--device=cuda: no CUDA device is here; allowed is cpu" in capsys.readouterr().err


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_running_out_of_memory_is_a_row(error, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise error("tried to allocate a lot\nand more")

    monkeypatch.setitem(METHODS, "mezo", Method("mezo", full, None, "mezo_textbook"))
    out = tmp_path / "bench.json"
    assert command.main([*SMALL, "--methods", "mezo,lozo", "--out", str(out)]) == 0
    first, second = rows(out)
    assert (first["status"], first["message"]) == ("out_of_memory", "tried to allocate a lot")
    assert first["ratio"] is first["peak_gib"] is None
    assert second["status"] == "ok"
    assert "out of memory: tried to allocate a lot" in capsys.readouterr().out


def test_prompts_of_real_lengths_have_one_loss_however_they_are_laid_out():
    """Published code's rows, padded with all logits, against one packed row with the few needed."""
    model = build("60m", torch.float32, torch.device("cpu"))
    with torch.no_grad():
        (ours, real), (theirs, all_rows) = (
            make(model, "short", torch.device("cpu")) for make in (packed, padded)
        )
        assert ours().item() == pytest.approx(theirs().item(), rel=1e-5)
    assert real.shape == (1, sum(LENGTHS["short"]))
    assert all_rows.shape == (2 * 16, max(LENGTHS["short"]) + 1)


def test_a_mix_has_its_own_table_targets_and_names():
    short, long = (parse(["--mix", mix]).cases for mix in ("short", "long"))
    assert {(case.shape, case.batch, case.length) for case in short} == {("smollm2-135m", 16, 38)}
    assert {case.dtype for case in short} == {"float32", "bfloat16"}
    assert len({case.name for case in (*short, *long)}) == len(short) + len(long)
    assert [targets.target(case, CPU)[0] for case in short if case.method == "mezo"] == [1.2, 1.4]
    assert all(targets.target(case, CPU) == (None, None) for case in long)
    with pytest.raises(ValueError, match="--batch=2: not allowed with --mix"):
        parse(["--mix", "short", "--batch", "2"])


def test_a_profile_says_what_all_of_a_steps_time_went_to(tmp_path, capsys, monkeypatch):
    before = [getattr(owner, name) for own in WATCHED.values() for owner, name in own]
    out = tmp_path / "bench.json"
    words = [*SMALL, "--methods", "agzo,mezo,sgd", "--profile", "--out", str(out)]
    assert command.main(words) == 0
    assert before == [getattr(owner, name) for own in WATCHED.values() for owner, name in own]
    agzo, mezo, sgd = rows(out)
    assert set(agzo["profile"]) == set(PROFILED)
    assert min(agzo["profile"][part] for part in WATCHED) > 0
    assert mezo["profile"]["bases"] == mezo["profile"]["branches"] == 0 < mezo["profile"]["noise"]
    assert agzo["profile"]["forwards"] == pytest.approx(1.0)
    assert sgd["profile"] is None
    assert "bases 0.000" in capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="--profile: on cuda"):
        parse(["--device", "cuda", "--profile"])


@pytest.mark.slow
def test_each_case_has_a_process_of_its_own_and_one_that_is_killed_is_a_row(monkeypatch):
    case = Case("pocket", "float32", 2, 8, "mezo", None)
    effort = measure.Effort(2, 5.0)
    row = apart.measure_apart(case, torch.device("cpu"), effort)
    assert row.status == "ok"
    assert row.ratio is not None
    monkeypatch.setattr(apart, "measure", _killed)
    row = apart.measure_apart(case, torch.device("cpu"), effort)
    assert row.status == "out_of_memory"
    assert "ended from outside" in row.message


def _killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_any_other_error_is_no_row(monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setitem(METHODS, "mezo", Method("mezo", broken))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        command.main([*SMALL, "--methods", "mezo"])


def test_a_stopped_run_goes_on_where_it_was(tmp_path, monkeypatch):
    commit = {"git_commit": "a" * 40, "git_dirty": False}
    monkeypatch.setattr(machine, "git_state", lambda: dict(commit))
    asked: list[str] = []
    real = command.measure_apart

    def measure(case, *rest, stop=None):
        asked.append(case.method)
        if case.method == stop:
            raise KeyboardInterrupt
        return real(case, *rest)

    out = tmp_path / "bench.json"
    words = [*SMALL, "--methods", "lozo,mezo,sgd", "--out", str(out)]
    monkeypatch.setattr(command, "measure_apart", partial(measure, stop="mezo"))
    with pytest.raises(KeyboardInterrupt):
        command.main(words)
    before = rows(out)
    assert [row["method"] for row in before] == ["lozo"]
    assert not json.loads(out.read_text())["complete"]

    asked.clear()
    monkeypatch.setattr(command, "measure_apart", measure)
    assert command.main(words) == 0
    assert asked == ["mezo", "sgd"]
    assert rows(out)[0] == before[0]
    for change in (["--rounds", "3"], []):  # another effort, then another commit
        asked.clear()
        assert command.main([*words, *change]) == 0
        assert asked == ["lozo", "mezo", "sgd"]
        commit["git_commit"] = "b" * 40


def test_out_of_minutes_says_how_to_go_on(tmp_path, capsys):
    out = tmp_path / "bench.json"
    words = [*SMALL, "--methods", "sgd,mezo", "--minutes", "1e-9", "--out", str(out)]
    assert command.main(words) == 1
    assert "0 of 2 rows after 1e-09 minutes; the same command goes on" in capsys.readouterr().err


def test_a_copy_without_a_checkout_is_told_its_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(
        machine, "__file__", str(tmp_path / "experiments" / "records" / "machine.py")
    )
    assert machine.git_state() == {"git_commit": None, "git_dirty": None}
    monkeypatch.setenv(machine.COMMIT, "c" * 40)
    assert machine.git_state() == {"git_commit": "c" * 40, "git_dirty": False}


def row(method: str, rate: float, **found) -> Row:
    case = Case("0.6b", "bfloat16", 16, 64, method, METHODS[method].rank)
    ratio, speedup = targets.target(case, H200)
    family = METHODS[method].family
    return Row(**vars(case), family=family, textbook=METHODS[method].textbook,
               target_ratio=ratio, target_speedup=speedup, steps_per_second=rate,
               **found)  # fmt: skip


def test_the_table_says_whether_a_target_is_met():
    textbook = row("agzo_textbook", 10.0, ratio=4.0)
    fast, slow = row("agzo", 41.0, ratio=1.25), row("agzo", 39.0, ratio=1.26)
    assert verdict(fast, [textbook]) == "<= 1.25 met, >= 4 x textbook met"
    assert verdict(slow, [textbook]) == "<= 1.25 missed, >= 4 x textbook missed"
    assert verdict(fast, []) == "<= 1.25 met"
    assert verdict(textbook, [textbook]) == ""
    assert "4.10" in line(fast, [textbook])


@pytest.mark.parametrize(
    ("machine", "case", "wanted"),
    [
        (CPU, ("60m", "float32", 16, 64, "agzo", 1), (1.06, None)),
        (CPU, ("60m", "float32", 16, 64, "mezo", None), (1.10, None)),
        (CPU, ("60m", "float32", 16, 64, "agzo", 4), (None, None)),
        (CPU, ("60m", "float32", 16, 64, "agzo_in_place", 1), (None, None)),
        (CPU, ("60m", "bfloat16", 16, 64, "agzo", 1), (None, None)),
        (H200, ("1.7b", "float32", 16, 1024, "lozo", 2), (1.08, None)),
        (H200, ("0.6b", "bfloat16", 16, 64, "mezo", None), (None, 4.0)),
        (H200 | {"device_name": "another"}, ("0.6b", "bfloat16", 16, 64, "agzo", 1), (None, None)),
    ],
)
def test_targets_are_those_of_the_machine_the_shape_and_the_family(machine, case, wanted):
    assert targets.target(Case(*case), machine) == wanted


def test_every_kind_of_task_is_evaluated_both_ways(tmp_path):
    out = tmp_path / "bench.json"
    words = ["--shape", "60m", "--examples", "6", "--rounds", "1", "--out", str(out)]
    assert evaluation.main(words) == 0
    found = rows(out)
    assert [row["kind"] for row in found] == [kind.name for kind in evaluation.KINDS]
    for each in found:
        assert each["per_second"] > 0
        assert (each["largest_difference"] is None) == (each["kind"] == "generation")
        assert (each["largest_difference"] or 0) < 1e-5


def test_bad_arguments_of_the_evaluation_are_one_line(capsys):
    assert evaluation.main(["--examples", "0"]) == 2
    assert capsys.readouterr().err == "error: --examples=0: allowed are whole numbers from 1 on\n"


def test_both_forms_of_the_loss_are_equal():
    model = build("60m", torch.float64, torch.device("cpu"))
    ids = random_ids(model, 3, 9, torch.device("cpu"))
    for answer in (1, 4):
        with torch.no_grad():
            label, full = (make(model, ids, answer)() for make in (label_logits, full_logits))
        torch.testing.assert_close(label, full.to(label.dtype), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "textbook", [TextbookMeZO, TextbookLOZO, TextbookAGZO, partial(TextbookAGZO, rank=2)]
)
def test_textbook_steps_lower_a_loss_and_restore_what_they_perturb(textbook):
    net = mlp(torch.float64)
    method = textbook(net.model, lr=2e-2, eps=1e-3)
    before = net.closure().item()
    for _ in range(300):
        method.step(net.closure)
    assert net.closure().item() < before
    still = weights(net.model)
    method.lr = 0.0
    method.step(net.closure)
    for name, parameter in net.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), still[name], rtol=0, atol=1e-12)


@pytest.mark.slow
def test_the_benchmark_needs_no_experiment_packages():
    """It runs on a machine that has torch and transformers only."""
    code = (
        "import sys\n"
        "names = ('hydra', 'omegaconf', 'wandb', 'datasets', 'peft', 'pandas', 'matplotlib')\n"
        "for name in names: sys.modules[name] = None\n"
        "import agzo, baselines, experiments.bench.__main__, experiments.bench.evaluation\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
