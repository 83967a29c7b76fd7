"""How long a suite will take, from a short measurement of each of its tasks on this device.

A column of which a run is done is not measured: the next one takes what that one took.
The measurement prepares every model, adapter and task that still has runs to do as a run does, so
it also finds what would stop one (a data set that is not there, a tokenizer without the option
words, a dev split that leaves nothing to train on) before the first long run. A method that cannot
be timed, out of memory say, is left to its runs: its time counts as nothing.

    seconds of a run = start-up + steps x seconds of a step
                     + (dev evaluations x dev examples + evaluation examples) x seconds of one
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch

from experiments.config.errors import BadInput
from experiments.data.shares import Shares
from experiments.evaluation.evaluate import Questions, evaluate
from experiments.methods import registry
from experiments.suites.plan import Group
from experiments.training import budget, prepare
from experiments.training.parts import Parts

STEPS = 3  # timed after one that is not
EXAMPLES = 32  # evaluated


def measure(groups: Iterable[Group], say: Callable[[str], None]) -> dict[str, float]:
    """Measure the groups' runs; return the seconds of one run of each, by the group's name.

    Raises BadInput with every problem of every task. `say` is told what is going on.
    """
    by_task: dict[tuple[str, str, str], list[Group]] = {}
    for group in groups:
        config = group.search[0].config
        loaded = f"{config.adapter} {config.precision}"  # with their keys: groups of one model
        by_task.setdefault((group.model, group.task, loaded), []).append(group)
    seconds: dict[str, float] = {}
    problems: list[str] = []
    for (_, task, _), own in by_task.items():
        model = own[0].search[0].config.model_label
        say(f"measuring {model}/{task}")
        try:
            seconds |= _measure(own, say)
        except (ValueError, OSError) as error:
            problems.append(f"{model}/{task}: {error}")
    if problems:
        told = ["nothing was started (TASKS= chooses tasks):", *dict.fromkeys(problems)]
        raise BadInput("\n  ".join(told))
    return seconds


def _measure(groups: list[Group], say: Callable[[str], None]) -> dict[str, float]:
    config = groups[0].search[0].config
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads or before)
    seconds: dict[str, float] = {}
    as_it_is = replace(config.precision, rounding="nearest")  # there is no update to round
    plain = replace(config, method={"name": "zero_shot"}, precision=as_it_is)
    try:
        begin = time.perf_counter()
        parts = prepare.prepare(plain)
        start_up = time.perf_counter() - begin
        example = _example_seconds(parts, config.train.eval_batch_size)
        for group in groups:
            say(f"  {group.column.label}")
            parts = parts or prepare.prepare(plain)
            try:
                seconds[group.name] = _seconds(group, parts, start_up, example)
            except RuntimeError as error:  # out of memory among them
                say(f"{group.name} cannot be timed: {str(error).splitlines()[0]}")
            method = registry.method_class(group.search[0].config.method["name"])
            if method.about.alters:
                parts = None  # the next one needs the model as it was
                gc.collect()
        return seconds
    finally:
        torch.set_num_threads(before)
        parts = None
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # the runs share the device with this process


def _seconds(group: Group, parts: Parts, start_up: float, example: float) -> float:
    config = group.search[0].config
    parts = replace(parts, shares=Shares(parts.shares.group, config.train.accumulation))
    values = registry.settings(config.method, config.precision.rounding)
    if "lr" in values:
        values["lr"] = 1e-30  # timed steps must not spoil the model for the next column
    optimizer = registry.build(
        config.method["name"], parts.model, values, config.seed, parts.stream,
        parts.shares.group, parts.shares.accumulation,
    )  # fmt: skip
    trains = optimizer.about.trains
    prepare.calibrate(config, parts, optimizer)
    steps = budget.steps(config.train, optimizer) if trains else 0
    looks = len(budget.eval_steps(config.train, steps)) * len(parts.dev.encoded)
    evaluated = looks + len(parts.eval.encoded)
    if getattr(optimizer, "demonstrations", 0):
        example *= _lengthening(parts, config.train.max_length)
    step = _step_seconds(parts, optimizer, config.train.batch_size, config.seed) if trains else 0.0
    return start_up + steps * step + evaluated * example


def _step_seconds(
    parts: Parts, optimizer: torch.optim.Optimizer, batch_size: int, seed: int
) -> float:
    taken = []
    for step in range(STEPS + 1):
        begin = _now(parts)
        parts.take(optimizer, batch_size, seed, step)
        taken.append(_now(parts) - begin)
    return statistics.median(taken[1:])


def _example_seconds(parts: Parts, batch_size: int) -> float:
    some = parts.dev
    few: Questions = replace(
        some,
        encoded=some.encoded[:EXAMPLES],
        prompts=some.prompts[:EXAMPLES],
        answers=some.answers[:EXAMPLES],
    )
    begin = _now(parts)
    evaluate(
        parts.model, parts.encoder, parts.task, few, batch_size, parts.device, asking=parts.asking
    )
    return (_now(parts) - begin) / len(few.encoded)


def _lengthening(parts: Parts, max_length: int) -> float:
    lengths = [len(example.ids[0]) for example in parts.eval.encoded]
    return max(1.0, max_length / statistics.fmean(lengths))


def _now(parts: Parts) -> float:
    if parts.device.type == "cuda":
        torch.cuda.synchronize(parts.device)
    return time.perf_counter()
