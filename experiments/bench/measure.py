"""Measure one case: seconds and memory of a step beside those of two plain forwards.

Memory is measured first and apart: freed memory is given back for that, and kept while time is
measured. Forwards and steps are timed in turn, round by round, and what is reported are medians of
the rounds' ratios, so that a machine that slows down slows both.

The unit is the forward of the same model in the same run: same batch, eval mode, no_grad, logits at
the label positions, ordinary weights; of a row whose layers are compiled, with compiled layers. Two
methods change the model itself: the forward of zo_act has its branches in, and dominant_layer,
which tunes decoder layer 1, holds that layer in float32. Textbook steps compute full logits, as
published code does, and are held against the same unit.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agzo import ZeroOrderOptimizer
from agzo.execution.compiled import CompiledLayers
from agzo.rng import Noise
from baselines import DominantLayer
from experiments.bench import prompts
from experiments.bench.losses import Closure, each_row, full_logits, label_logits, random_ids
from experiments.bench.methods import EPS, METHODS, Method
from experiments.bench.profile import PROFILED, profile
from experiments.bench.rows import Case, Row
from experiments.bench.targets import target
from experiments.models.shapes import build, parameters
from experiments.records.machine import PeakMemory, about, first_line, out_of_memory

WARM_UP = 2  # steps before the first round: the check that the loss is a function, compiling
LEAST = 2  # rounds of every case, however long they take
PARTS = ("basis", "perturb", "update")


@dataclass(frozen=True)
class Effort:
    """How long a case is measured: `rounds`, or fewer once they have taken `seconds`."""

    rounds: int
    seconds: float
    profiled: bool = False  # one step more in each round, under watches


class Clock:
    """Wall-clock of device work: waits for the device before and after."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, work: Callable[[], Any]) -> float:
        """Return the seconds that `work` takes."""
        self._wait()
        start = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure(case: Case, device: torch.device, effort: Effort) -> Row:
    """Measure a case; one that runs out of memory is a row that says so."""
    found: dict[str, Any]
    try:
        found = _measure(case, device, effort)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        found = {"status": "out_of_memory", "message": first_line(error)}
    gc.collect()  # here the error is gone, which held the frames and their tensors
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return row_of(case, device, found)


def row_of(case: Case, device: torch.device, found: dict[str, Any]) -> Row:
    """Return the row of a case, with what was found of it."""
    method = METHODS[case.method]
    ratio, speedup = target(case, about(device))
    return Row(
        **vars(case),
        family=method.family,
        textbook=method.textbook,
        target_ratio=ratio,
        target_speedup=speedup,
        **found,
    )


def _measure(case: Case, device: torch.device, effort: Effort) -> dict[str, Any]:
    """Return what `measure` adds to a case; see `Row` for the units."""
    clock = Clock(device)
    model = build(case.shape, getattr(torch, case.dtype), device)
    size = parameters(model)
    method = METHODS[case.method]
    plain, given, mask = _work(case, method, model, device)
    optimizer = method.build(model, case.rank, case.batch)
    if getattr(optimizer, "wants_batches", 0):
        optimizer.calibrate([(given, mask)])
    if method.layers != "eager":
        layers = CompiledLayers(model, graphs=method.layers == "graphs")
        plain = given = layers.around(plain)

    @torch.no_grad()
    def two_forwards() -> None:
        plain()
        plain()

    def step() -> None:
        optimizer.step(given, mask)

    two_forwards()
    for _ in range(WARM_UP):
        step()
    gc.collect()  # once: it takes longer than a step of a small model
    peak_of_forward, peak_of_step = (_peak(work, device) for work in (two_forwards, step))
    two_forwards()  # once more: on a CPU what was freed has just been given back
    step()
    forwards, steps, parts, profiles = [], [], [], []
    start = time.perf_counter()
    while len(steps) < effort.rounds:
        if len(steps) >= LEAST and time.perf_counter() - start > effort.seconds:
            break
        seconds = clock(two_forwards)
        forwards.append(seconds)
        steps.append(clock(step))
        if mask is not None and divisible(optimizer):
            shares = split(optimizer, given, mask, clock, seconds / 2)
            parts.append([share / seconds for share in shares])
        if effort.profiled and isinstance(optimizer, ZeroOrderOptimizer):
            found = profile(optimizer, step, seconds / 2, optimizer.forwards_of_step(WARM_UP))
            profiles.append([found[part] / seconds for part in PROFILED])
    ratios = [step / unit for step, unit in zip(steps, forwards, strict=True)]
    found = {
        "parameters": size,
        "rounds": len(steps),
        "ratio": statistics.median(ratios),
        "ratio_least": min(ratios),
        "ratio_largest": max(ratios),
        "steps_per_second": 1 / statistics.median(steps),
        "two_forwards": statistics.median(forwards),
        "peak_gib": peak_of_step,
        "peak_of_forward": peak_of_step / peak_of_forward,
    }
    if profiles:
        medians = map(statistics.median, zip(*profiles, strict=True))
        found["profile"] = dict(zip(PROFILED, medians, strict=True))
    if parts:
        medians = map(statistics.median, zip(*parts, strict=True))
        found |= dict(zip(PARTS, medians, strict=True))
        found["forwards"] = optimizer.forwards_of_step(WARM_UP) / 2
    return found


def _work(
    case: Case, method: Method, model: nn.Module, device: torch.device
) -> tuple[Closure, Any, Tensor | None]:
    """Return the unit's forward, what a step is given (closure or pieces), and its token mask."""
    published = method.textbook == case.method
    if case.mix is not None:
        plain, mask = prompts.packed(model, case.mix, device)
        if method.apart:
            return plain, prompts.each_alone(model, case.mix, device), None
        return (
            (plain, *prompts.padded(model, case.mix, device)) if published else (plain, plain, mask)
        )
    ids = random_ids(model, case.batch, case.length, device)
    plain = label_logits(model, ids)
    if method.apart:
        return plain, each_row(model, ids), None
    return plain, full_logits(model, ids) if published else plain, torch.ones_like(ids).bool()


def _peak(work: Callable[[], Any], device: torch.device) -> float:
    """Return the peak memory of `work` in GiB, the weights included; it is not timed."""
    peak = PeakMemory(device)
    work()
    return peak.gib()


def divisible(optimizer: Any) -> bool:
    """Tell whether a step's time can be told apart: whole forwards, and an update of its own."""
    if not isinstance(optimizer, ZeroOrderOptimizer):
        return False
    return not (isinstance(optimizer.scope, DominantLayer) and optimizer.scope.reuse_prefix)


@torch.no_grad()
def split(
    optimizer: ZeroOrderOptimizer, closure: Closure, mask: Tensor, clock: Clock, forward: float
) -> tuple[float, float, float]:
    """Time what one step adds to its forwards: (basis, perturbation, update), in seconds.

    Args:
        forward: seconds of a plain forward of this round; a difference may fall below 0 by noise.
    """
    noise = Noise(optimizer.seed, optimizer._zo["step"])
    capture = optimizer._sampler.capture(noise, mask)

    def captured() -> None:
        with capture or nullcontext():
            closure()

    basis = clock(captured) - forward if capture else 0.0
    directions = optimizer._directions(noise)
    evaluations = optimizer.queries * (1 if optimizer.estimator == "one_sided" else 2)
    evaluate = optimizer._execution.evaluate
    perturb = evaluations * (clock(lambda: evaluate(closure, directions, EPS)) - forward)
    zero = torch.zeros((), device=optimizer.tuned[0].parameter.device)
    update = clock(lambda: optimizer._move([(directions, zero)] * optimizer.queries, noise))
    return basis, perturb, update
