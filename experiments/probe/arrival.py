"""Does the update arrive? What rounding leaves of W <- W - lr g Delta, over lr and policy.

    python -m experiments.probe arrival --out FOLDER model=pocket data=pocket task=sst2

With i the intended change of the weights (float64) and a the actual one, made by the library's own
`agzo.update.move` in the model's own weights:

    gain    <a, i> / |i|^2            1: all of it arrives, 0: nothing does
    noise   |a - gain i| / |i|        what is written beside it

for one update, and for many accumulated ones. A nearest rounding that loses each single update
loses their sum as well; a stochastic one is right on average and pays in noise; a float32 master
copy keeps the sum, and the weights follow as soon as it exceeds half the spacing of their numbers.

Directions are the methods' own and g is the exact slope along them, all taken at the model as it
is: the accumulated updates are of the size of a real run's, without following its path.

Memory: two copies of the model and float32 gradients; then, for one parameter at a time, a copy for
each lr and policy, and float64 copies of it and of its intended changes.
"""

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from agzo import ZeroOrderOptimizer
from agzo.directions.direction import Direction
from agzo.execution.perturb import Directions
from agzo.rng import Noise
from agzo.torch_calls.inputs import is_low_precision
from agzo.tuned.select import Tuned
from agzo.update import ROUNDINGS, move
from experiments.config.lists import count, positive_numbers, words
from experiments.probe import slope
from experiments.probe.arrival_sums import Sums, Tally, merge
from experiments.probe.slope import DTYPES, METHODS, Minibatch, Options
from experiments.records import tidy
from experiments.records.tidy import Row

HELP = "the share of the intended update that survives rounding, over lr"
LRS = "1e-8,1e-7,1e-6,3e-6,1e-5,3e-5,1e-4,3e-4,1e-3,3e-3,1e-2,1e-1"
EPS = 1e-3  # the directions do not depend on it, and the slope here is the exact one


def arrivals(
    model: torch.nn.Module,
    batches: Sequence[Minibatch],
    methods: Options,
    lrs: Sequence[float],
    dtypes: Sequence[str] = tuple(DTYPES),
    updates: int = 100,
    singles: int = 8,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
    kept: Callable[[str, Callable[[], Any]], Any] = lambda name, make: make(),
) -> list[Row]:
    """Move the weights by each method's updates, under each policy and lr.

    The first `singles` of the `updates` are also made alone, each from the weights as they are; the
    batches take turns. Returns a row for each dtype, rounding, method, scope ("linear": weights of
    linear layers; "all") and lr:

        update, relative     rms over updates of |lr g|, and of |i| / |W|: carry over between models
        gain, noise          of one update, all `singles` pooled (one long vector); spread: the
                             standard deviation of their gains
        gain_sum, noise_sum  of all `updates` accumulated
    """
    rows: list[Row] = []
    for dtype in dtypes:
        seen = slope.cast(model, dtype)
        reference = slope.cast(model, "fp32", through=dtype)
        for method, options in methods.items():
            say(f"{dtype}: {method}, {updates} updates, {len(lrs)} learning rates")
            optimizer = METHODS[method](seen, lr=0.0, eps=EPS, seed=seed, **options)

            def moved(
                dtype: str = dtype,
                method: str = method,
                optimizer: ZeroOrderOptimizer = optimizer,
                reference: torch.nn.Module = reference,
            ) -> list[Row]:
                steps = _steps(optimizer, reference, batches, updates)
                few = min(singles, updates)
                return _moved(dtype, method, optimizer.tuned, steps, lrs, few, seed)

            rows += kept(f"{dtype} {method}", moved)
    return rows


def _steps(
    optimizer: ZeroOrderOptimizer,
    reference: torch.nn.Module,
    batches: Sequence[Minibatch],
    updates: int,
) -> list[tuple[int, Directions, float]]:
    """Return (index, directions, exact slope along them) of each update; batches take turns."""
    steps: list[tuple[int, Directions, float]] = []
    for number, batch in enumerate(batches):
        truth = slope.true_gradients(optimizer.model, reference, batch)
        for index in range(number, updates, len(batches)):
            directions, _ = slope.look(optimizer, batch, index)
            steps.append((index, directions, slope.slope(directions, truth)))
    return sorted(steps, key=lambda step: step[0])


def _moved(
    dtype: str,
    method: str,
    tuned: Sequence[Tuned],
    steps: Sequence[tuple[int, Directions, float]],
    lrs: Sequence[float],
    singles: int,
    seed: int,
) -> list[Row]:
    """Return the rows of one dtype and method."""
    size = math.sqrt(statistics.fmean(g * g for _, _, g in steps))
    if not 0.0 < size < math.inf:
        raise ValueError(
            f"method={method}, {dtype}: the slope along its directions is {size}; allowed is a "
            "model whose gradient is finite and not zero"
        )
    policies = ROUNDINGS if is_low_precision(DTYPES[dtype]) else ROUNDINGS[:1]
    scopes: tuple[str, ...] = ("linear", "all")
    tallies = {
        (rounding, scope, lr): Tally([Sums() for _ in range(singles)])
        for rounding in policies
        for scope in scopes
        for lr in lrs
    }
    lengths: dict[str, Tensor] = {
        scope: torch.zeros(len(steps), dtype=torch.float64) for scope in scopes
    }
    weights: dict[str, float] = dict.fromkeys(scopes, 0.0)
    for each in tuned:
        inside = [scope for scope in scopes if scope == "all" or each.inputs is not None]
        moves = [(k, directions[each.parameter], g) for k, directions, g in steps]
        found, norms = follow(
            each.parameter.detach(), moves, lrs, policies, singles, seed, each.name
        )
        for scope in inside:
            lengths[scope] += norms.square()
            weights[scope] += each.parameter.detach().double().square().sum().item()
            for (rounding, lr), tally in found.items():
                merge(tallies[rounding, scope, lr], tally)
    rows: list[Row] = []
    for (rounding, scope, lr), tally in tallies.items():
        if not weights[scope]:
            continue  # no linear layer is tuned
        gains = [one.gain for one in tally.singles]
        pooled = Sums()
        for one in tally.singles:
            pooled.merge(one)
        relative = math.sqrt(lengths[scope].mean().item() / weights[scope])
        rows.append(
            {
                "dtype": dtype, "rounding": rounding, "method": method, "scope": scope, "lr": lr,
                "projected_grad": size, "update": lr * size, "relative": lr * relative,
                "singles": singles, "gain": pooled.gain,
                "spread": statistics.stdev(gains) if singles > 1 else None,
                "noise": pooled.noise,
                "updates": len(steps), "gain_sum": tally.total.gain,
                "noise_sum": tally.total.noise,
            }
        )  # fmt: skip
    return rows


def follow(
    weight: Tensor,
    moves: Sequence[tuple[int, Direction, float]],
    lrs: Sequence[float],
    policies: Sequence[str],
    singles: int,
    seed: int,
    name: str,
) -> tuple[dict[tuple[str, float], Tally], Tensor]:
    """Apply (step, direction, g) to copies of one weight, under each policy and lr.

    Returns the tallies, and |g Delta| of each move (float64).
    """
    start = weight.double()
    copies: dict[tuple[str, float], tuple[Tensor, Tensor | None]] = {}
    for rounding in policies:
        for lr in lrs:
            copies[rounding, lr] = (weight.clone(), _master(weight, rounding))
    tallies = {key: Tally([]) for key in copies}
    total = torch.zeros_like(start)
    norms = torch.zeros(len(moves), dtype=torch.float64)
    for place, (step, direction, g) in enumerate(moves):
        intended = direction.dense().double() * g
        total += intended
        norms[place] = intended.norm().item()
        for (rounding, lr), (moved, master) in copies.items():
            factor = torch.tensor(-lr * g, device=weight.device)
            noise = Noise(seed, step)
            move(moved, [(direction, factor)], None, rounding, master, noise, name)
            if place < singles:
                alone, own = weight.clone(), _master(weight, rounding)
                move(alone, [(direction, factor)], None, rounding, own, noise, name)
                sums = Sums()
                sums.add(alone.double() - start, intended * -lr)
                tallies[rounding, lr].singles.append(sums)
    for (rounding, lr), (moved, _) in copies.items():
        tallies[rounding, lr].total.add(moved.double() - start, total * -lr)
    return tallies, norms


def _master(weight: Tensor, rounding: str) -> Tensor | None:
    master = rounding == "master" and is_low_precision(weight.dtype)
    return weight.float() if master else None


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this probe's options."""
    parser.add_argument("--lrs", default=LRS, help=f"ascending, {LRS}")
    parser.add_argument("--updates", default="100", help="accumulated updates; 100")
    parser.add_argument("--singles", default="8", help="updates made alone too; 8")
    parser.add_argument("--batches", default="2", help="training batches, taking turns; 2")
    parser.add_argument("--methods", default=",".join(METHODS), help="agzo,mezo,lozo")
    parser.add_argument("--dtypes", default="all", help="fp32,bf16,fp16 or all; all")


def run(
    options: argparse.Namespace, say: Callable[[str], None]
) -> tuple[dict[str, Any], tidy.Tables]:
    """Measure along the command line's options."""
    lrs = positive_numbers("--lrs", options.lrs)
    updates = count("--updates", options.updates)
    singles = count("--singles", options.singles)
    batches = count("--batches", options.batches)
    methods = words("--methods", options.methods, METHODS)
    dtypes = words("--dtypes", options.dtypes, DTYPES)

    from experiments.probe import scene

    here = scene.load(options.overrides)
    say(f"loaded {here.config.model.name}")
    chosen = slope.method_options(here, methods)
    rows = arrivals(
        here.model,
        slope.minibatches(here, batches),
        chosen,
        lrs,
        dtypes,
        updates,
        singles,
        here.config.seed,
        say,
        options.kept,
    )
    about = {
        **tidy.about("arrival", here.device),
        **here.about(),
        "method_options": chosen,
        "batches": batches,
        "batch_size": here.config.train.batch_size,
    }
    return about, {"arrival": rows}
