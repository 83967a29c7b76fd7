"""Evaluation of a task on a model against the forwards inside it: what all else of it costs.

    python -m experiments.bench.evaluation --tasks sst2,rte,copa --examples 200 \\
        model=smollm2-135m-wheel data=local data.root=/path/to/data

The unit: plain forwards over as many tokens as the evaluation passes through the model, call by
call: as many rows as the call has, each of the mean length, without padding and without caches, and
as many logits. Ids are random; no row is collated, no option scored. Padding is no token, so an
evaluation that computes any falls behind its unit, as does one that computes a token twice behind
one that does not, in examples/s. Both are timed in turn, round by round, and a share is the median
of the rounds' forwards / evaluation; that of the processor's time depends less on what else a
machine does.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experiments.bench.measure import Clock
from experiments.config.composed import compose
from experiments.config.errors import BadInput
from experiments.config.schema import RunConfig
from experiments.data.packing import active
from experiments.evaluation.evaluate import evaluate
from experiments.training.parts import Parts
from experiments.training.prepare import prepare

GOAL = 0.90  # of what the forwards alone would give
HEADER = (
    f"{'task':8} {'examples':>8} {'tokens':>7} {'examples/s':>11} {'tokens/s':>9} "
    f"{'forward':>9} {'share':>6} {'least':>6} {'most':>6} {'of CPU':>6}  goal"
)


@dataclass(frozen=True)
class TaskRow:
    """One task. Tokens are those the model computes, padding apart; shares are of `GOAL`'s kind."""

    model: str
    dtype: str
    task: str
    examples: int
    batch: int  # rows of a forward at most
    tokens: int
    rounds: int
    accuracy: float
    per_second: float  # examples
    tokens_per_second: float
    forward_tokens_per_second: float
    share: float
    share_least: float
    share_largest: float
    share_of_cpu: float | None  # of the process's CPU time; None on another device
    met: bool  # by `share`


@dataclass(frozen=True)
class Call:
    """What one call of the model computed."""

    rows: int
    tokens: int
    logits: int  # positions that have them


@contextmanager
def watched(model: nn.Module) -> Iterator[list[Call]]:
    """Note the calls of a model meanwhile."""
    calls: list[Call] = []

    def note(_: nn.Module, given: tuple[Tensor, ...], words: dict[str, Any], output: Any) -> None:
        ids, mask, layout = given[0], words.get("attention_mask"), active()
        tokens = ids.numel() if mask is None else int(mask[:, -ids.shape[1] :].sum())
        logits = output if isinstance(output, Tensor) else output.logits
        rows = len(ids) if layout is None else layout.rows
        calls.append(Call(rows, tokens, logits.shape[:2].numel()))

    hook = model.register_forward_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


def forwards(model: nn.Module, calls: list[Call], vocabulary: int) -> tuple[Callable[[], Any], int]:
    """Return the unit, a function that runs it, and how many tokens it has."""
    generator = torch.Generator().manual_seed(0)
    device = next(model.parameters()).device
    batches: list[tuple[Tensor, int]] = []
    for call in calls:
        length = max(1, round(call.tokens / call.rows))
        ids = torch.randint(0, vocabulary, (call.rows, length), generator=generator).to(device)
        batches.append((ids, min(length, max(1, round(call.logits / call.rows)))))

    @torch.no_grad()
    def run() -> None:
        for ids, kept in batches:
            model(ids, logits_to_keep=kept, use_cache=False)

    return run, sum(ids.numel() for ids, _ in batches)


def measure(task: str, overrides: list[str], rounds: int) -> TaskRow:
    """Measure the evaluation split of a task, see the module."""
    config = compose([f"task={task}", "method=zero_shot", *overrides])
    parts = prepare(config)
    if parts.task.kind == "generation":
        raise BadInput(f"--tasks={task}: allowed are tasks with options; this one generates text")
    return _timed(config, parts, rounds)


def _timed(config: RunConfig, parts: Parts, rounds: int) -> TaskRow:
    model, size = parts.model, config.train.eval_batch_size

    def work() -> Any:
        return evaluate(
            model, parts.encoder, parts.task, parts.eval, size, parts.device, asking=parts.asking
        )

    with watched(model) as calls:
        found = work()
    unit, unit_tokens = forwards(model, calls, next(model.parameters()).shape[0])
    unit()
    clock, tokens = Clock(parts.device), sum(call.tokens for call in calls)
    scale = tokens / unit_tokens  # rows of whole tokens: near 1
    seconds, shares, of_cpu = [], [], []
    for _ in range(rounds):
        start = time.process_time()
        whole = clock(work)
        between = time.process_time()
        plain = clock(unit) * scale
        of_cpu.append((time.process_time() - between) * scale / (between - start))
        seconds.append((whole, plain))
        shares.append(plain / whole)
    whole, plain = (statistics.median(each) for each in zip(*seconds, strict=True))
    share = statistics.median(shares)
    return TaskRow(
        model=config.model_label,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        task=parts.task.name,
        examples=found["n"],
        batch=size,
        tokens=tokens,
        rounds=rounds,
        accuracy=found["accuracy"],
        per_second=found["n"] / whole,
        tokens_per_second=tokens / whole,
        forward_tokens_per_second=tokens / plain,
        share=share,
        share_least=min(shares),
        share_largest=max(shares),
        share_of_cpu=statistics.median(of_cpu) if parts.device.type == "cpu" else None,
        met=share >= GOAL,
    )


def line(row: TaskRow) -> str:
    """Return a row's line."""
    of_cpu = "-" if row.share_of_cpu is None else f"{row.share_of_cpu:.2f}"
    return (
        f"{row.task:8} {row.examples:8} {row.tokens:7} {row.per_second:11.2f} "
        f"{row.tokens_per_second:9.0f} {row.forward_tokens_per_second:9.0f} {row.share:6.2f} "
        f"{row.share_least:6.2f} {row.share_largest:6.2f} {of_cpu:>6}  "
        f">= {GOAL:.2f} {'met' if row.met else 'missed'}"
    )
