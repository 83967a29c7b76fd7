"""Runs on several processes and in micro-batches: the numbers of one, one end for all."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import tiny_run
import torch

from agzo.distributed.group import Group
from agzo.distributed.pieces import Joint
from experiments.config.errors import BadInput
from experiments.data.batches import collate
from experiments.data.shares import Shares, cut, pieces
from experiments.methods import registry
from experiments.models.device_map import check_device_map
from experiments.models.loss import classification_losses, loss, mean_log_probs, option_log_probs
from experiments.records import checkpoint, record
from experiments.run import main
from experiments.training import parts as parts_of_a_run
from experiments.training import prepare, ranks, runner
from experiments.training.parts import Parts
from experiments.training.session import run
from tests.agzo.test_group import free_port
from tests.quick import quick

SLOW = pytest.mark.slow
UNEVEN = "train.batch_size=5"
AGZO = ("method=agzo", UNEVEN)


def on(size, given, prepare_child=lambda rank: None):
    """Run the command line on forked processes; return their exit codes and errors."""
    port, children = free_port(), []
    for rank in range(size):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            code = 99
            try:
                os.close(reader)
                os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size)}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                ranks._joined.clear()
                sys.argv = ["run", *given]
                with open(writer, "w", buffering=1) as errors:
                    sys.stderr = errors
                    prepare_child(rank)
                    code = main()
            finally:
                os._exit(code)
        os.close(writer)
        children.append((child, reader))
    said = []
    for _, reader in children:
        with open(reader) as pipe:
            said.append(pipe.read())
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child, _ in children]
    return codes, said


def arguments(out, *overrides):
    return tiny_run.arguments(out, *overrides)


def result_of(config):
    return json.loads((config.folder / "result.json").read_text())


def assert_near(found, wanted, **near):
    near = near or {"rel": 1e-4, "abs": 1e-6}
    assert [r["step"] for r in found["metrics"]] == [r["step"] for r in wanted["metrics"]]
    for one, other in zip(found["metrics"], wanted["metrics"], strict=True):
        if one["step"]:
            assert one["loss"] == pytest.approx(other["loss"], **near)
        assert one["forwards"] == other["forwards"]
    assert found["eval"]["loss"] == pytest.approx(wanted["eval"]["loss"], **near)
    pairs = list(zip(found["metrics"][1:], wanted["metrics"][1:], strict=True))
    apart = max(abs(one["loss"] - other["loss"]) for one, other in pairs)
    print(f"mean losses of the rows differ by at most {apart:.1e}")


@pytest.mark.parametrize(
    ("size", "overrides"),
    [
        (2, AGZO),
        (2, ("method=mezo", "train.accumulation=2", UNEVEN)),
        pytest.param(2, (*AGZO, "method.estimator=two_sided", "train.packing=always"), marks=SLOW),
        pytest.param(3, ("method=zo_act", "method.large_state=true", UNEVEN), marks=SLOW),
        pytest.param(2, (*AGZO, "model.offload=layers"), marks=SLOW),
        pytest.param(2, ("method=adamw", UNEVEN), marks=SLOW),
    ],
    ids=str,
)
def test_processes_have_the_result_of_one(tmp_path, size, overrides):
    codes, said = on(size, arguments(tmp_path / "several", *overrides))
    assert codes == [0] * size, said
    several = result_of(tiny_run.config(tmp_path / "several", *overrides))
    assert several["shares"]["processes"] == size
    print(several["shares"])
    alone = run(tiny_run.config(tmp_path / "alone", *overrides, "train.accumulation=1"))
    assert alone["shares"] is None
    assert_near(several, alone)
    folders = [tiny_run.config(tmp_path / kind, *overrides).folder for kind in ("several", "alone")]
    files = [sorted(str(p.relative_to(f)) for p in f.rglob("*")) for f in folders]
    assert files[0] == files[1]


@pytest.mark.parametrize("basis", quick(["gram", "first"], "gram"))
def test_micro_batches_have_the_result_of_the_whole_batch(tmp_path, basis):
    given = (*AGZO, f"method.accumulated_basis={basis}", "method.rank=2")
    cut_up = run(tiny_run.config(tmp_path / "cut", *given, "train.accumulation=3"))
    whole = run(tiny_run.config(tmp_path / "whole", *given))
    if basis == "first":
        assert cut_up["shares"]["basis"] == "the first micro-batch alone"
    else:
        assert cut_up["shares"]["basis"].startswith("all micro-batches")
        assert cut_up["forwards"] == whole["forwards"]
        for one, other in zip(cut_up["metrics"][1:], whole["metrics"][1:], strict=True):
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def stop_at(step, rank_to_stop):
    def child(rank):
        real = parts_of_a_run.sample_batch

        def interrupt(*given):
            if rank == rank_to_stop and given[3] == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(*given)

        parts_of_a_run.sample_batch = interrupt

    return child


@pytest.mark.slow
def test_a_stop_of_one_process_stops_all_and_they_go_on_together(tmp_path):
    codes, said = on(2, arguments(tmp_path / "two", *AGZO), stop_at(6, 1))
    assert codes == [143, 143], said
    assert "process 0: " in said[0]
    assert "checkpoint of step 7 is kept; the same command goes on" in said[0]
    assert said[1] == "process 1: stopped with process 0\n"
    stopped = tiny_run.config(tmp_path / "two", *AGZO)
    assert checkpoint.steps(stopped.folder / "checkpoints")[-1] == 7
    assert on(2, arguments(tmp_path / "two", *AGZO))[0] == [0, 0]
    assert on(2, arguments(tmp_path / "one", *AGZO))[0] == [0, 0]
    straight = tiny_run.config(tmp_path / "one", *AGZO)
    results = [result_of(config) for config in (stopped, straight)]
    assert results[0]["resumed_at"] == [7]
    for result in results:
        result.pop("shares")  # bytes since the process began
    tiny_run.assert_same(stopped, results[0], straight, results[1])
    (stopped.folder / "result.json").unlink()
    with pytest.raises(BadInput, match="processes: 2 -> <absent>"):
        run(stopped)


def test_a_stop_while_process_0_evaluates_stops_all(tmp_path):
    def child(rank):
        real = runner.evaluate

        def interrupt(*given):
            os.kill(os.getpid(), signal.SIGTERM)
            return real(*given)

        runner.evaluate = interrupt

    codes, said = on(2, arguments(tmp_path, *AGZO), child)
    assert codes == [143, 130], said


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_with_a_line_and_the_run_goes_on(tmp_path):
    def child(rank):
        real = parts_of_a_run.sample_batch

        def die(*given):
            if rank == 1 and given[3] == 9:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*given)

        parts_of_a_run.sample_batch = die

    codes, said = on(2, arguments(tmp_path, *AGZO), child)
    assert codes == [1, -signal.SIGKILL]
    assert said[0].startswith("process 0: error: process 0 of 2: another process is gone")
    config = tiny_run.config(tmp_path, *AGZO)
    assert not (config.folder / record.FAILED).exists()
    assert on(2, arguments(tmp_path, *AGZO))[0] == [0, 0]
    assert result_of(config)["resumed_at"] == [8]


@pytest.mark.slow
def test_a_process_that_hangs_is_given_up_and_the_run_goes_on(tmp_path):
    def child(rank):
        real = parts_of_a_run.sample_batch

        def hang(*given):
            if rank == 1 and given[3] == 9:
                time.sleep(6.0)
            return real(*given)

        parts_of_a_run.sample_batch = hang

    given = (*AGZO, "peer_timeout=3")
    codes, said = on(2, arguments(tmp_path, *given), child)
    assert codes == [1, 1]
    assert said[0].startswith("process 0: error: process 0 of 2: another process did not answer")
    assert "within peer_timeout=3 seconds" in said[0]
    assert said[1].startswith("process 1: error: process 1 of 2: another process is gone")
    config = tiny_run.config(tmp_path, *AGZO)
    assert not (config.folder / record.FAILED).exists()
    assert on(2, arguments(tmp_path, *AGZO))[0] == [0, 0]
    assert result_of(config)["resumed_at"] == [8]


@pytest.mark.slow
def test_a_process_that_never_comes_is_waited_for_as_long_as_said(tmp_path):
    def child(rank):
        if rank == 1:
            os._exit(7)

    codes, said = on(2, arguments(tmp_path, *AGZO, "peer_timeout=1"), child)
    assert codes == [1, 7]
    assert "process 0 of 2: another process did not answer within peer_timeout=1" in said[0]


def test_evaluation_says_that_it_goes_on(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(Group, "still_busy", lambda self: said.append(1))
    run(tiny_run.config(tmp_path, "train.eval_batch_size=2"))
    assert len(said) >= 4 * 4  # 8 examples of two options a time, and 3 times dev


def test_replicas_that_drift_end_the_run(tmp_path):
    def child(rank):
        real = Parts.take

        def take(self, optimizer, *given):
            if rank == 1:
                with torch.no_grad():
                    optimizer.tuned[0].parameter.view(-1)[0] += 1e-4
            return real(self, optimizer, *given)

        Parts.take = take

    codes, said = on(2, arguments(tmp_path, "method=mezo"), child)
    assert codes == [1, 1]
    assert "at step 3 differs between the processes" in said[0]


def test_what_cannot_be_divided_is_refused_on_every_process(tmp_path):
    codes, said = on(2, arguments(tmp_path, "train.batch_size=1"))
    assert codes == [2, 2]
    assert "error: train.batch_size=1: allowed with 2 process(es)" in said[1]
    metric = tiny_run.config(tmp_path, "train.accumulation=2", "train.objective=metric")
    with pytest.raises(BadInput, match=r"train\.objective=metric"):
        run(metric)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_cut_batches_hold_the_examples_losses(tmp_path, share, packed):
    parts = prepare.prepare(tiny_run.config(tmp_path))
    whole = collate(parts.train[:5], parts.task, parts.encoder.pad_id, share=share)

    def losses(batch):
        batch = batch.pack() if packed else batch
        found = mean_log_probs(option_log_probs(parts.model, batch), batch.target_mask)
        return classification_losses(found, batch)

    cuts = [cut(whole, each)[0] for each in Shares(accumulation=3).ranges(5)]
    assert [len(piece.labels) for piece in cuts] == [1, 2, 2]
    torch.testing.assert_close(torch.cat([losses(piece) for piece in cuts]), losses(whole))


@pytest.mark.parametrize("kind", ["classification", "lm"])
@pytest.mark.parametrize("packed", [True, False])
def test_pieces_together_have_the_loss_and_the_places_of_the_batch(tmp_path, kind, packed):
    parts = prepare.prepare(tiny_run.config(tmp_path))
    task = replace(parts.task, loss=kind)
    longer = [
        replace(e, ids=[[*row, *row[-1:] * (i % 2)] for row in e.ids],
                option_lengths=[n + i % 2 for n in e.option_lengths])
        for i, e in enumerate(parts.train[:5])
    ]  # fmt: skip
    whole = collate(longer, task, parts.encoder.pad_id, share=False)
    ranges = Shares(accumulation=3).ranges(5)
    of_model = partial(loss, parts.model)
    found = pieces(of_model, whole, ranges, packed, parts.device, lambda mask: mask)
    torch.testing.assert_close(Joint(found)(), loss(parts.model, whole))
    rows = [0, 2, 6] if kind == "classification" else [0, 1, 3]
    assert [piece.rows for piece in found] == rows
    masks = [piece.token_mask for piece in found]
    if packed:
        tokens = [mask.numel() for mask in masks]
        assert [piece.before[n] for piece, n in zip(found, tokens, strict=True)] == [
            0, tokens[0], tokens[0] + tokens[1]
        ]  # fmt: skip
    else:
        assert torch.equal(torch.cat(masks), whole.token_mask)


def test_a_method_that_knows_no_pieces_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(registry.METHODS, "sgd", tiny_run.StandIn)
    config = tiny_run.config(tmp_path, "method=sgd", "train.accumulation=2")
    config.method = {"name": "sgd", "lr": 1e-3}
    with pytest.raises(BadInput, match="method=sgd: its constructor takes no group"):
        run(config)


def children_of(pid):
    return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
def test_torchrun_starts_them_and_ends_them_all(tmp_path):
    # looked at so often that the SIGTERM after one death meets the other while it unwinds
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--monitor-interval=0.002"]
    command += [f"--master-port={free_port()}", "-m", "experiments.run"]
    command += arguments(tmp_path, *AGZO, "train.steps=5000", "train.eval_every=5000")
    torchrun = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    metrics = tiny_run.config(tmp_path, *AGZO).folder / record.METRICS
    workers: list[int] = []
    until = time.monotonic() + 240
    while time.monotonic() < until and torchrun.poll() is None:
        if metrics.exists() and len(metrics.read_text().splitlines()) > 3:
            workers = children_of(torchrun.pid)
            break
        time.sleep(0.1)
    assert len(workers) == 2, torchrun.communicate()[1].decode()[-2000:]
    os.kill(workers[1], signal.SIGKILL)
    _, errors = torchrun.communicate(timeout=120)
    assert torchrun.returncode == 1
    assert "process 0: error: process 0 of 2: another process is gone" in errors.decode()
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, 0)
            pytest.fail(f"process {worker} is still there")


@pytest.mark.gpu
def test_two_gpus_have_the_result_of_one(tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    results = []
    for size in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={size}"]
        command += [f"--master-port={free_port()}", "-m", "experiments.run"]
        given = arguments(tmp_path / str(size), *AGZO, "device=cuda")
        subprocess.run([*command, *given], check=True, timeout=300)
        results.append(result_of(tiny_run.config(tmp_path / str(size), *AGZO)))
    assert results[1]["shares"]["processes"] == 2
    assert_near(results[1], results[0], rel=1e-3, abs=1e-4)


def test_a_spread_model_is_refused_what_it_cannot_do(tmp_path):
    for given, word in (
        (("model.offload=layers",), "model.offload=layers"),
        (("method=mezo", "method.execution=batched"), "method.execution=batched"),
        (("train.packing=always",), "train.packing=always"),
    ):
        with pytest.raises(BadInput, match=word):
            run(tiny_run.config(tmp_path, "model.device_map=auto", *given))
    with pytest.raises(BadInput, match="with 2 processes"):
        check_device_map(tiny_run.config(tmp_path, "model.device_map=auto"), 2)
