"""How far can one step get? Slopes and curvatures along each method's directions.

    python -m experiments.probe progress --out FOLDER model=... task=sst2 method=mezo

A better aligned direction helps only if it does not meet as much more curvature
(`agzo.curvature` has the argument and the formulas). At steps along one training run, at the same
weights for all, each sample is a minibatch of the run and a direction that the method takes on it:
slope g and curvature c on that minibatch, and on `--others` dev examples. Tables:

* `samples`: every sample of every case. A case is a method, the rank of its bases, and a scope, of
  what is perturbed: `linear` (the linear layers of the decoder), `all`, one `role` of linear layers
  (q_proj, up_proj, ...), the `embedding`, the `rest` (norms, biases), or one `depth` of decoder
  layers (these by AGZO and MeZO alone). A case ends when E[g g'] and E c' are as precise as asked,
  or at `--most` samples.
* `summary`: of each case what its samples say, with 95 % bootstrap intervals.
* `second`: the same of the cases of scope `linear` with another eps, on their first samples.
* `gradient`: for each parameter the exact |G|^2, by backpropagation: the mean over `--minibatches`
  minibatches, and that of the gradient over all of them (the inner products of different ones).
* `held`: the share of a minibatch's |G|^2 over the linear layers that AGZO's bases of it hold.
"""

import argparse
import functools
import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agzo import AGZO, LowRank, ZeroOrderOptimizer
from agzo.activations.spectrum import gradients
from agzo.alignment import captured
from agzo.check import check_number
from agzo.curvature import Bend, bend, summary
from agzo.torch_calls.surroundings import Closure
from agzo.tuned.select import Tuned, select
from baselines import LOZO, MeZO
from experiments.config.lists import count, positive_numbers, whole_numbers, words
from experiments.probe.progress_cases import SCOPES, Case, Place, cases, places, scopes
from experiments.records import tidy

HELP = "how far one step can get: slopes and curvatures along each method's directions"
METHODS: dict[str, Callable[..., ZeroOrderOptimizer]] = {"agzo": AGZO, "mezo": MeZO, "lozo": LOZO}
TABLES = ("samples", "summary", "second", "gradient", "held")
LEAST = 16  # samples before a case may end


def make(
    case: Case, model: nn.Module, chosen: Callable[[Place], bool], eps: float, seed: int
) -> ZeroOrderOptimizer:
    """Return the case's method on the parameters of its scope."""
    where = places(model)
    options: dict[str, Any] = {"rank": case.rank} if case.method == "agzo" else {}
    tuned = [p for p, place in where.items() if p.requires_grad and chosen(place)]
    return METHODS[case.method](
        model, lr=0.0, eps=eps, seed=seed, params=tuned, embeddings=case.embeddings,
        estimator="two_sided", **options,
    )  # fmt: skip


Batches = Callable[[int], tuple[Closure, Tensor | None]]


def measure(
    optimizer: ZeroOrderOptimizer,
    batches: Batches,
    other: Closure,
    other_loss: Tensor,
    eps: float,
    most: int,
    precision: float,
) -> list[Bend]:
    """Sample until the means are as precise as asked; sample i takes minibatch and direction i."""
    every = getattr(optimizer, "refresh_every", 1) or 1  # each direction has a subspace of its own
    found: list[Bend] = []
    while len(found) < most and not (len(found) >= LEAST and precise(found, precision)):
        closure, mask = batches(len(found))
        step = len(found) * every
        found.append(bend(optimizer, closure, mask, other, other_loss, step, eps))
    return found


def precise(bends: Sequence[Bend], precision: float) -> bool:
    """Tell whether the standard errors of E[g g'] and E c' are small beside their values."""
    for values in ([b.g * b.g_other for b in bends], [b.c_other for b in bends]):
        error = statistics.stdev(values) / math.sqrt(len(values))
        if error > precision * abs(statistics.fmean(values)):
            return False
    return True


def summary_row(case: Case, bends: Sequence[Bend]) -> tidy.Row:
    """Return a case's statistics and their intervals; a rate without a bound is None."""
    row: tidy.Row = {"samples": len(bends)}
    for key, interval in summary(bends).items():
        for name, value in (("", interval.value), ("_low", interval.low), ("_high", interval.high)):
            row[f"{key}{name}"] = value if math.isfinite(value) else None
    return case.label | row


def gradient_rows(
    model: nn.Module, closures: Sequence[Closure], tuned: Sequence[Tuned]
) -> list[tidy.Row]:
    """Return |G|^2 of each parameter: of a minibatch on average, and of all minibatches' mean."""
    where = places(model)
    total: dict[nn.Parameter, Tensor] = {}
    squares: dict[nn.Parameter, float] = {}
    for closure in closures:
        for parameter, gradient in gradients(closure, list(tuned)).items():
            squares[parameter] = squares.get(parameter, 0.0) + float(
                gradient.double().square().sum()
            )
            if parameter in total:
                total[parameter] += gradient
            else:
                total[parameter] = gradient.clone()
    n = len(closures)
    rows = []
    for each in tuned:
        square, place = squares[each.parameter], where[each.parameter]
        whole = float(total[each.parameter].double().square().sum())
        rows.append({
            "parameter": each.name, "role": place.role, "depth": place.depth,
            "numbers": each.parameter.numel(), "minibatch": square / n,
            "mean": (whole - square) / (n * (n - 1)),
        })  # fmt: skip
    return rows


def held_rows(
    model: nn.Module, batches: Batches, minibatches: int, ranks: Sequence[int], seed: int
) -> list[tidy.Row]:
    """Return the share of each minibatch's |G|^2 over linear layers that AGZO's bases hold."""
    chosen = scopes(model, 1)["linear"]
    rows = []
    for rank, number in itertools.product(ranks, range(minibatches)):
        optimizer = make(Case("linear", "agzo", rank, "frozen", 0), model, chosen, 1e-3, seed)
        closure, mask = batches(number)
        (directions, *_), _ = optimizer.directions(closure, mask, number)
        exact = gradients(closure, optimizer.tuned)
        kept = whole = 0.0
        for parameter, gradient in exact.items():
            direction = directions[parameter]
            size = float(gradient.double().square().sum())
            whole += size
            if isinstance(direction, LowRank):
                share = captured(direction.facing(gradient), direction.known)
                kept += size * share.item() ** 2
        rows.append({"rank": rank, "minibatch": number, "share": kept / whole, "norm2": whole})
    return rows


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this probe's options."""
    parser.add_argument("--steps", default="0", help="of the run, to look at; 0")
    parser.add_argument("--methods", default=",".join(METHODS), help="agzo,mezo,lozo")
    parser.add_argument("--scopes", default="all", help="linear,all,roles,depths; each of them")
    parser.add_argument("--ranks", default="1,4,16,64", help="of AGZO, for linear; 1,4,16,64")
    parser.add_argument("--depths", default="6", help="groups of decoder layers; 6")
    parser.add_argument("--eps", default="1e-3", help="one, or two: the second checks; 1e-3")
    parser.add_argument("--others", default="32", help="dev examples that are not trained on; 32")
    parser.add_argument("--precision", default="0.1", help="relative standard error to end at; .1")
    parser.add_argument("--most", default="64", help="samples of a case of linear and all; 64")
    parser.add_argument("--few", default="24", help="samples of a case of roles and depths; 24")
    parser.add_argument("--minibatches", default="8", help="whose exact gradient is taken; 8")


@dataclass(frozen=True)
class Settings:
    """The command line's options, read."""

    steps: list[int]
    methods: list[str]
    scopes: list[str]
    ranks: list[int]
    depths: int
    eps: list[float]
    others: int
    precision: float
    most: int
    few: int
    minibatches: int


def read(options: argparse.Namespace) -> Settings:
    """Read the options; raises ValueError."""
    eps = positive_numbers("--eps", options.eps)
    if len(eps) > 2:
        raise ValueError(f"--eps={options.eps}: allowed are one or two")
    (precision,) = positive_numbers("--precision", options.precision)[:1]
    check_number("--precision", precision, above=0.0, below=1.0)
    return Settings(
        whole_numbers("--steps", options.steps),
        words("--methods", options.methods, METHODS),
        words("--scopes", options.scopes, SCOPES),
        whole_numbers("--ranks", options.ranks, least=1),
        count("--depths", options.depths),
        eps,
        count("--others", options.others),
        precision,
        count("--most", options.most, least=LEAST),
        count("--few", options.few, least=2),
        count("--minibatches", options.minibatches, least=2),
    )


def run(
    options: argparse.Namespace, say: Callable[[str], None]
) -> tuple[dict[str, Any], tidy.Tables]:
    """Measure along the command line's options."""
    from experiments.probe import scene as scenes

    wanted = read(options)
    scene = scenes.load(options.overrides)
    model, seed = scene.model, scene.config.seed
    other = scene.dev(wanted.others)
    chosen = scopes(model, wanted.depths)
    todo = cases(list(chosen), wanted.scopes, wanted.methods, wanted.ranks, wanted.most, wanted.few)

    def batches(number: int) -> tuple[Closure, Tensor | None]:
        batch = scene.batch(number)
        return scene.closure(batch), batch.token_mask

    tables: tidy.Tables = {name: [] for name in TABLES}
    everything = select(model, None, "tuned")[0]
    for step in scene.walk(wanted.steps):
        with torch.no_grad():
            other_loss = other()

        def look(case: Case, eps: float, most: int, other_loss: Tensor = other_loss) -> list[Any]:
            optimizer = make(case, model, chosen[case.scope], eps, seed)
            args = (batches, other, other_loss, eps, most, wanted.precision)
            return [asdict(each) for each in measure(optimizer, *args)]

        for case in todo:
            name = f"step {step} {case.scope} {case.method} {case.rank} {case.embeddings}"
            first, *rest = wanted.eps
            found = options.kept(name, functools.partial(look, case, first, case.most))
            bends = [Bend(**each) for each in found]
            tables["samples"] += [
                {"step": step, **case.label, "index": i, **asdict(b)} for i, b in enumerate(bends)
            ]
            tables["summary"].append({"step": step, "eps": first, **summary_row(case, bends)})
            say(f"{name}: {len(bends)} samples")
            for eps in rest if case.scope == "linear" else ():
                again = functools.partial(look, case, eps, LEAST)
                bends = [Bend(**each) for each in options.kept(f"{name} {eps:g}", again)]
                tables["second"].append({"step": step, "eps": eps, **summary_row(case, bends)})
        closures = [batches(number)[0] for number in range(wanted.minibatches)]
        exact = options.kept(
            f"step {step} gradient", lambda cs=closures: gradient_rows(model, cs, everything)
        )
        tables["gradient"] += [{"step": step, **row} for row in exact]
        share = options.kept(
            f"step {step} held",
            lambda: held_rows(model, batches, wanted.minibatches, wanted.ranks, seed),
        )
        tables["held"] += [{"step": step, **row} for row in share]
        say(f"step {step}: exact gradients of {wanted.minibatches} minibatches")
    about = tidy.about("progress", scene.device) | scene.about()
    about |= {"eps": wanted.eps, "others": wanted.others, "precision": wanted.precision}
    about |= {"batch_size": scene.config.train.batch_size}
    return about, {name: rows for name, rows in tables.items() if rows}
