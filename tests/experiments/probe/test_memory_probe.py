"""The memory probe: its counter against hand counts, real tensors and the resident set."""

import argparse
import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

from agzo import AGZO
from agzo.kernels import native
from baselines import MeZO
from experiments import bench
from experiments.bench.losses import random_ids
from experiments.probe import memory, memory_point
from experiments.probe.memory_count import BLOCK, LiveBytes, fused_attention
from experiments.probe.memory_point import METHODS, SERIES, Point, count
from experiments.records import tidy
from experiments.records.machine import GIB

DEVICES = ("cpu", "meta")
MIB = 2**20


def point(**changes) -> Point:
    base = Point("counted", "pocket", "float32", "fused", "ours", "agzo", 2, 32)
    return replace(base, **changes)


# -- the counter ------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_a_known_sequence_of_allocations(device):
    held = torch.zeros(1000, device=device)  # 4,000 bytes: 8 blocks
    with LiveBytes(device, [held, held.view(10, 100)]) as live:
        assert live.now == live.peak == 8 * BLOCK
        x = torch.zeros(256, device=device)  # 2 blocks
        y = torch.ones(1, device=device)  # 1 block
        assert live.now == 11 * BLOCK
        x.view(16, 16).t()[2:4].add_(y)  # views and writes in place
        held.mul_(2)
        assert live.peak == 11 * BLOCK
        z = x + y  # 2 blocks
        assert live.now == live.peak == 13 * BLOCK
        del x, z
        assert live.now == 9 * BLOCK
        (held + 1).sum()  # 8 blocks and 1, gone afterwards
        assert live.now == 9 * BLOCK
        assert live.peak == 18 * BLOCK
        view = y.expand(100)
        del y
        assert live.now == 9 * BLOCK  # the view keeps the storage
        del view, held
        assert live.now == 0


@pytest.mark.parametrize("device", DEVICES)
def test_what_autograd_saves_lives_until_the_backward(device):
    weight = torch.ones(128, 128, device=device, requires_grad=True)  # 64 KiB
    with LiveBytes(device, [weight]) as live:
        loss = (weight.exp() * 2).sum()  # exp keeps its result, the product is gone
        assert live.now == 2 * 2**16 + BLOCK
        loss.backward()
        assert live.now == 2 * 2**16 + BLOCK  # the weight, its gradient, the loss
        # The weight, the saved result, the gradients of product and exp; loss and its gradient.
        assert live.peak == 4 * 2**16 + 2 * BLOCK


def test_the_largest_at_the_peak_are_named():
    with LiveBytes("meta", keep_largest=True) as live:
        torch.empty(1000, device="meta")
        big = torch.empty(3000, 2, device="meta")
        one, _ = live.largest(2)[0], big + 1
    assert one.shape == (3000, 2)
    assert one.made_by == "aten.empty.memory_format"
    assert [held.made_by for held in live.largest(2)] == [
        "aten.empty.memory_format",
        "aten.add.Tensor",
    ]


def test_a_value_that_could_be_a_size_is_refused():
    with LiveBytes("meta"):
        assert bool(torch.ones(3, device="meta").isfinite().all())
        with pytest.raises(RuntimeError, match=r"torch.int64 was read from a meta tensor"):
            torch.ones(3, device="meta").count_nonzero().item()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("series", SERIES)
@pytest.mark.skipif(native.library is None, reason="plain torch makes noise with more tensors")
def test_meta_tensors_count_as_real_ones(series, method):
    real = count(point(series=series, method=method), torch.device("cpu"))[0]
    assert count(point(series=series, method=method), torch.device("meta"))[0] == real


def test_the_fused_kernel_allocates_what_torchs_own_does():
    def bytes_of(attend, dtype, kv_heads) -> int:
        q = torch.empty(2, 4, 64, 32, dtype=dtype, device="meta", requires_grad=True)
        k, v = (torch.empty(2, kv_heads, 64, 32, dtype=dtype, device="meta") for _ in range(2))
        with LiveBytes("meta", [q, k, v]) as live:
            before = live.now
            kept = attend(q, k, v)
            assert kept is not None
            return live.now - before

    def ours(q, k, v):
        with fused_attention():
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    def efficient(q, k, v):
        return torch.ops.aten._scaled_dot_product_efficient_attention(
            q, k, v, None, True, 0.0, True
        )

    def flash(q, k, v):
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True)

    seeds = 2 * BLOCK  # of a dropout that is not used
    out = 2 * 4 * 64 * 32
    assert bytes_of(efficient, torch.float32, 4) - bytes_of(ours, torch.float32, 4) in (0, seeds)
    assert bytes_of(flash, torch.bfloat16, 4) - bytes_of(ours, torch.bfloat16, 4) in (0, seeds)
    # Fewer key/value heads: repeated, and kept for the backward, in float32 only.
    repeated = bytes_of(ours, torch.float32, 2) - bytes_of(ours, torch.float32, 4)
    assert repeated == 2 * out * 4
    assert bytes_of(ours, torch.bfloat16, 2) == bytes_of(ours, torch.bfloat16, 4)


def test_a_masked_attention_is_refused():
    q = torch.empty(1, 1, 4, 8, device="meta")
    with fused_attention(), pytest.raises(ValueError, match="causal attention alone"):
        F.scaled_dot_product_attention(q, q, q, attn_mask=torch.empty(4, 4, device="meta"))
    assert F.scaled_dot_product_attention(q, q, q).shape == q.shape


# -- the points -------------------------------------------------------------------------------


@pytest.mark.slow  # a system short of memory takes pages from a process: the set is smaller then
def test_counts_agree_with_the_resident_set():
    one = point(kind="resident", attention="torch's choice", method="sgd", batch=16, length=256)
    found = memory.child(one)
    assert found["status"] == "ok", found
    counted = count(replace(one, attention="fused"), torch.device("meta"))[0] / GIB
    resident = found["peak_gib"] - found["baseline_gib"]
    assert counted > 0.1
    assert resident == pytest.approx(counted, rel=0.05)


@pytest.mark.parametrize(
    ("method", "batch", "length"),
    [
        ("inference", 8, 64),
        ("agzo", 1, 16),
        *(
            pytest.param(method, *size, marks=pytest.mark.slow)
            for method in METHODS
            for size in ((1, 16), (1, 64), (8, 64), (16, 128))
            if (method, size) not in (("inference", (8, 64)), ("agzo", (1, 16)))
        ),
    ],
)
def test_counts_agree_with_torchs_own_record_of_allocations(method, batch, length):
    """Outside any mode of ours: the profiler hears of every block of the CPU's allocator."""
    one = point(method=method, batch=batch, length=length)
    model = memory_point.build(one.shape, one.dtype, torch.device("cpu"))
    ids = random_ids(model, one.batch, one.length, torch.device("cpu"))
    held = LiveBytes("cpu", [*model.parameters(), *model.buffers(), ids]).now
    with (
        fused_attention(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record,
    ):
        memory_point.steps(one, model, ids)
    assert record.profiler is not None
    assert record.profiler.kineto_results is not None
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = held
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    assert len(events) > 500
    assert count(one, torch.device("meta"))[0] == pytest.approx(peak, rel=0.01)


@pytest.mark.parametrize(
    ("shape", "dtype", "batch", "length"),
    [
        *(
            pytest.param(*true, marks=pytest.mark.slow)
            for true in (
                ("60m", "float32", 1, 32),
                ("60m", "bfloat16", 16, 64),
                ("0.6b", "float32", 4, 128),
                ("0.6b", "float32", 4, 1024),
                ("0.6b", "float32", 32, 256),
                ("pangu-1b", "bfloat16", 4, 128),
                ("pangu-1b", "bfloat16", 4, 2048),
                ("pangu-1b", "bfloat16", 64, 256),
            )
        ),
    ],
)
def test_agzo_needs_the_memory_of_mezo_and_inference(shape, dtype, batch, length):
    """The criterion: within 1 % of MeZO and 5 % of inference, logits at label positions."""
    agzo, mezo, inference = (
        count(
            point(shape=shape, dtype=dtype, batch=batch, length=length, method=method),
            torch.device("meta"),
        )[0]
        for method in ("agzo", "mezo", "inference")
    )
    assert agzo <= 1.01 * mezo
    assert agzo <= 1.05 * inference


def test_bases_of_half_precision_need_no_float32_copy_of_an_input():
    # Where nothing is gated, a float32 copy of the second layer's input would be the peak.
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(64, 4096), nn.ReLU(), nn.Linear(4096, 1)).bfloat16()
        x = torch.empty(2**15, 64, dtype=torch.bfloat16)
    peaks = []
    for optimizer in (None, AGZO(model, lr=0.1, eps=0.1)):
        with LiveBytes("meta", [*model.parameters(), x]) as live, torch.no_grad():
            if optimizer is None:
                model(x).float().mean()
            else:
                optimizer.step(lambda: model(x).float().mean())
        peaks.append(live.peak)
    assert peaks[0] > 512 * MIB  # the input and the output of the ReLU
    assert peaks[1] < 1.01 * peaks[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_chunk_of_noise_is_alive_at_a_time(dtype):
    with torch.device("meta"):
        model = nn.Linear(1024, 2**14, bias=False, dtype=dtype)  # 16 chunks
        x = torch.empty(1, 1024, dtype=dtype)
    with LiveBytes("meta", [*model.parameters(), x]) as live:
        weights = live.now
        MeZO(model, lr=0.1, eps=0.1, queries=2).step(lambda: model(x).float().mean())
    several = 2 if dtype == torch.float32 else 2.5  # two queries; bfloat16: its copy of the rows
    assert 4 * MIB < live.peak - weights < several * 4 * MIB + MIB


def test_published_losses_need_more_and_checkpoints_less():
    peak = {
        (series, method): count(
            point(series=series, method=method, batch=8, length=64), torch.device("meta")
        )[0]
        for series in SERIES
        for method in ("inference", "sgd", "sgd_checkpointed")
    }
    assert peak["ours", "inference"] < peak["ours", "sgd_checkpointed"] < peak["ours", "sgd"]
    logits = 8 * 64 * 1500 * 4
    more = peak["published", "inference"] - peak["ours", "inference"]
    assert 2.5 * logits < more < 4 * logits


# -- the table --------------------------------------------------------------------------------


def options(out: Path, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=out)
    memory.arguments(parser)
    parser.add_argument("overrides", nargs="*")
    small = ["--shape", "pocket", "--batch", "1", "--lengths", "16,32", "--length", "32"]
    given = parser.parse_args([*small, "--batches", "1,2", *words])
    given.kept = tidy.Kept(out, {"words": words})
    return given


def test_a_sweep_leaves_a_table_and_goes_on_where_it_was(tmp_path, monkeypatch):
    said = []
    given = options(tmp_path, "--methods", "inference", "--largest", "1")
    about, tables = memory.run(given, said.append)
    tidy.write(tmp_path, about, tables)
    with (tmp_path / "memory.csv").open() as file:
        rows = list(csv.DictReader(file))
    at = [(row["batch"], row["length"]) for row in rows]
    assert list(dict.fromkeys(at)) == [("1", "16"), ("1", "32"), ("2", "32")]  # one is in both
    assert len(rows) == 3 * 2
    assert {row["method"] for row in rows} == {"inference"}
    assert all(row["status"] == "ok" and float(row["peak_gib"]) > 0 for row in rows)
    assert list(rows[0]) == list(memory.COLUMNS)
    assert about["parameters"] * 4 == weights_of("pocket")
    assert "6/6 ours-inference-2x32: ok" in "\n".join(said)
    assert "MiB torch.float32 1500x96 by held before" in "\n".join(said)

    monkeypatch.setattr(tidy.machine, "git_state", lambda: {"git_commit": "a", "git_dirty": False})
    real, tried = memory.measure, []

    def measure(one: Point) -> dict:
        tried.append(one.name)
        if tried.count("ours-inference-1x32") == 1 and one.name == "ours-inference-1x32":
            raise memory.PointFailed("out of luck")
        return real(one)

    monkeypatch.setattr(memory, "measure", measure)
    with pytest.raises(ValueError, match="1 of 6 points failed, ours-inference-1x32: out of luck"):
        memory.run(options(tmp_path, "--methods", "inference"), said.append)
    again = memory.run(options(tmp_path, "--methods", "inference"), said.append)[1]
    assert again == tables
    assert len(tried) == 6 + 1


def test_bad_options_are_named(tmp_path):
    for words, message in (
        (["model=pocket"], "model=pocket: the memory probe looks at random weights"),
        (["--lengths", "32,16"], "--lengths=32,16: allowed are ascending"),
        (["--lengths", "8,16"], "lengths above the answer's 8 tokens"),
        (["--batches", "0,1"], "--batches=0,1"),
        (["--methods", "adam"], "--methods=adam: allowed are, each once, inference, sgd"),
        (["--series", "mine"], "--series=mine: allowed are, each once, published, ours"),
    ):
        with pytest.raises(ValueError, match=message):
            memory.run(options(tmp_path, *words), print)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device"):
            memory.run(options(tmp_path, "--kind", "cuda"), print)


def test_running_out_of_memory_is_a_row(monkeypatch):
    def ends(code: int, error: str):
        result = subprocess.CompletedProcess([], code, stdout="", stderr=error)
        monkeypatch.setattr(memory.subprocess, "run", lambda *_, **__: result)
        return memory.child(point(kind="resident"))

    assert ends(-9, "")["status"] == "out_of_memory"
    with pytest.raises(memory.PointFailed, match="KeyError: 'x'"):
        ends(1, "Traceback ...\nKeyError: 'x'\n")

    def too_much(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nMore words")

    monkeypatch.setattr(memory_point, "build", too_much)
    monkeypatch.setattr(memory_point, "_warm_up", lambda: 0.1)
    found = memory_point.measure(point(kind="resident"))
    assert found["status"] == "out_of_memory"
    assert found["message"] == "CUDA out of memory. Tried to allocate 9 GiB."


def test_the_child_prints_one_object(monkeypatch, capsys):
    words = json.dumps(memory.asdict(point(method="inference")))
    monkeypatch.setattr(sys, "argv", ["memory_point", words])
    memory_point.main()
    found = json.loads(capsys.readouterr().out)
    assert found["status"] == "ok"
    assert found["method"] == "inference"
    assert found["peak_gib"] * GIB > weights_of("pocket")


def weights_of(shape: str) -> int:
    model = memory_point.build(shape, "float32", torch.device("meta"))
    assert shape in bench.SHAPES
    return sum(p.numel() * 4 for p in model.parameters())


def test_true_shapes_have_their_sizes():
    sizes = {}
    for shape, dtype in (("0.6b", "float32"), ("pangu-1b", "bfloat16")):
        model = memory_point.build(shape, dtype, torch.device("meta"))
        parameters = list(model.parameters())
        assert {p.dtype for p in parameters} == {getattr(torch, dtype)}
        sizes[shape] = sum(p.numel() for p in parameters)
    assert sizes["0.6b"] == 596_049_920  # the published checkpoint's
    assert sizes["pangu-1b"] == pytest.approx(1.157e9, rel=1e-3)
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.gpu
def test_on_cuda_counts_agree_with_the_allocator():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for method in METHODS:
        one = point(
            kind="cuda", shape="60m", dtype="bfloat16", attention="torch's choice",
            method=method, batch=8, length=256,
        )  # fmt: skip
        found = memory.child(one)
        assert found["status"] == "ok", found
        counted = count(replace(one, attention="fused"), torch.device("meta"))[0] / GIB
        # Beside kernels' workspaces: cuBLAS alone keeps up to 32 MiB.
        assert found["peak_gib"] == pytest.approx(counted, rel=0.05, abs=64 * MIB / GIB)
        assert found["reserved_gib"] >= found["peak_gib"]
