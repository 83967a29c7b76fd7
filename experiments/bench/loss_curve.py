"""One case of the time to a loss: train, look at dev every few steps, stop at the loss.

The clock counts training alone: a step with the making of its batch. Looks at dev are off the
clock, and so are the numbers that make a textbook walk along our directions
(`experiments.bench.along`). Dev is evaluated the same way for both, by this library's evaluation.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from experiments.bench.along import Along, Stopwatch, textbook_of
from experiments.bench.losses import Closure
from experiments.bench.prompts import published
from experiments.config.composed import compose
from experiments.config.errors import BadInput
from experiments.config.schema import RunConfig
from experiments.data.batches import Batch, collate, sample_batch
from experiments.evaluation.evaluate import evaluate
from experiments.methods import registry
from experiments.records.machine import PeakMemory
from experiments.tasks import task_of
from experiments.training.parts import Parts
from experiments.training.prepare import prepare

TEXTBOOK, OURS = "textbook", "ours"
Take = Callable[[int, bool], float]  # (step, whether along our directions) -> its loss
AGREE = 1e-3  # how far the two losses of the first batch may be apart, float32
SAME = (  # what a run must have for the two to differ in execution alone: key, value
    ("device", "cpu"), ("precision.dtype", "fp32"), ("adapter.name", "none"),
    ("model.quantize", "none"), ("model.offload", "none"), ("train.accumulation", 1),
    ("train.objective", "loss"), ("train.schedule", "constant"), ("train.compile", "never"),
)  # fmt: skip


@dataclass(frozen=True)
class Goal:
    """The dev loss to come to, the steps between looks, and the most steps."""

    target: float
    every: int
    most: int


@dataclass(frozen=True)
class Case:
    """A method's run, by this library (ours) or as published (textbook)."""

    method: str
    who: str
    overrides: tuple[str, ...]  # of the run, the method and its lr among them

    @property
    def name(self) -> str:
        """Name it within a benchmark."""
        return f"{self.method}-{self.who}"


@dataclass(frozen=True)
class Look:
    """The dev loss after so many steps and seconds of training."""

    step: int
    seconds: float
    dev_loss: float


@dataclass(frozen=True)
class Curve:
    """What was found of a case. Seconds are of training, memory is in GiB."""

    method: str
    who: str
    lr: float
    eps: float
    seed: int
    steps: int | None  # to the first look at the target or below; None: not reached
    seconds: float | None  # to the same look
    taken: int  # steps
    step_seconds: float  # median
    peak_gib: float  # resident, of one more step behind the last look
    looks: list[dict[str, Any]]  # each a `Look`
    task: str
    batch: int
    dev: int  # examples
    model: dict[str, Any]  # where they are from, as a run's result says it
    data: dict[str, Any]


def first_at(looks: Sequence[Look], target: float) -> Look | None:
    """Return the first look at a loss of `target` or less; nothing between looks is guessed."""
    return next((look for look in looks if look.dev_loss <= target), None)


def configure(case: Case) -> RunConfig:
    """Compose a case's run, and refuse one in which more than the execution would differ."""
    config = compose(list(case.overrides))
    registry.check_fit(config)
    for key, value in SAME:
        found: Any = config
        for part in key.split("."):
            found = getattr(found, part)
        if found != value:
            raise BadInput(f"{key}={found}: allowed is {value}, see experiments/bench/along.py")
    if task_of(config.task).loss != "classification":
        raise BadInput(f"task={config.task.name}: allowed are tasks with options to choose from")
    return config


def curve(case: Case, goal: Goal) -> dict[str, Any]:
    """Train until the goal, or for its most steps; return the `Curve` as plain values."""
    config = configure(case)
    if config.threads:
        torch.set_num_threads(config.threads)
    parts, watch = prepare(config), Stopwatch()
    take = (_ours if case.who == OURS else _textbook)(config, parts, watch)
    looks: list[Look] = []
    lasted: list[float] = []
    while True:
        step = len(lasted)
        if step % goal.every == 0 or step == goal.most:
            looks.append(_look(case, config, parts, step, watch.seconds))
            if first_at(looks, goal.target) or step == goal.most:
                break
        loss = take(step, True)
        lasted.append(watch.seconds - sum(lasted))
        _check_finite(f"the loss of step {step + 1}", loss, case, config)
    reached = first_at(looks, goal.target)
    if not lasted:
        raise BadInput(
            f"--target={goal.target:g}: the untouched model has dev loss {looks[0].dev_loss:.4f}; "
            "allowed is a smaller number"
        )
    peak = PeakMemory(parts.device)
    take(len(lasted), False)  # a textbook's with its own noise alone
    found = Curve(
        method=case.method,
        who=case.who,
        lr=config.method["lr"],
        eps=config.method["eps"],
        seed=config.seed,
        steps=None if reached is None else reached.step,
        seconds=None if reached is None else reached.seconds,
        taken=len(lasted),
        step_seconds=statistics.median(lasted),
        peak_gib=peak.gib(),
        looks=[vars(look) for look in looks],
        task=config.task.name,
        batch=config.train.batch_size,
        dev=len(parts.dev.encoded),
        model=parts.origin["model"],
        data=parts.origin["data"],
    )
    return vars(found)


def _check_finite(what: str, loss: float, case: Case, config: RunConfig) -> None:
    if not math.isfinite(loss):
        raise BadInput(
            f"--lr={case.method}={config.method['lr']:g}: {what} is {loss}; allowed is a smaller lr"
        )


def _look(case: Case, config: RunConfig, parts: Parts, step: int, seconds: float) -> Look:
    found = evaluate(
        parts.model, parts.encoder, parts.task, parts.dev, config.train.eval_batch_size,
        parts.device, asking=parts.asking,
    )  # fmt: skip
    print(
        f"{case.method:5} {case.who:8} step {step:3}, {seconds:7.1f} s of training, dev loss "
        f"{found['loss']:.4f}",
        flush=True,
    )
    _check_finite(f"the dev loss after {step} steps", found["loss"], case, config)
    return Look(step, seconds, found["loss"])


def _ours(config: RunConfig, parts: Parts, watch: Stopwatch) -> Take:
    """Return what takes a step as a run does: one row a prompt, packed, few logits, no writing."""

    def take(step: int, guided: bool) -> float:
        with watch.running():
            return float(parts.take(parts.optimizer, config.train.batch_size, config.seed, step))

    return take


def _textbook(config: RunConfig, parts: Parts, watch: Stopwatch) -> Take:
    """Return what takes a step as published: padded rows for each option, all logits, in place."""
    textbook, size, seed = textbook_of(parts.optimizer), config.train.batch_size, config.seed
    along = Along(textbook, watch)

    def batch_of(step: int) -> Batch:
        chosen = [parts.train[i] for i in sample_batch(len(parts.train), size, seed, step)]
        return collate(chosen, parts.task, parts.encoder.pad_id, parts.device, share=False)

    def take(step: int, guided: bool) -> float:
        along.directions = None
        if guided:
            own = parts.task_loss(size, seed, step)
            (along.directions,), loss = parts.optimizer.directions(*own, step=step)
            if step == 0:
                check_agree(config, float(loss), _value(published(parts.model, batch_of(0))))
        with watch.running():
            batch = batch_of(step)
            return textbook.step(published(parts.model, batch), batch.token_mask)

    return take


@torch.no_grad()
def _value(closure: Closure) -> float:
    return float(closure())


def check_agree(config: RunConfig, ours: float, theirs: float) -> None:
    """Refuse a model whose loss of one batch depends on how the batch is laid out."""
    if abs(ours - theirs) > AGREE:
        raise BadInput(
            f"model={config.model.name}: the first batch has loss {ours:.6f} packed and "
            f"{theirs:.6f} padded, without positions; allowed is a model that answers both alike"
        )
