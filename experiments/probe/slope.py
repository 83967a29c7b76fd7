"""Is the measured slope the true slope? `projected_grad` against <gradient, direction>, over eps.

    python -m experiments.probe slope --out FOLDER model=local model.path=... precision=bf16

Two errors meet. A small eps drowns in round-off: the loss has about 1e-7 of its size to show a
difference in, and low-precision weights and activations far less. A large eps meets curvature,

    one-sided    g = <G, Delta> + eps / 2 Delta^T H Delta + ...      two-sided: from eps^2 on

and since Delta^T H Delta hardly changes from one direction to the next, a one-sided g can correlate
well with the slope and be off by more than its size: an offset that moves weights at random. In
between lies a window of usable eps, another one for each method, estimator, precision and model.

The true slope is that of the function which the method sees: the gradient, by backpropagation in
float32, at the weights as they are after rounding to the dtype. Its own error, about 1e-6 of its
size, is far below what is told apart here. Directions and projected gradients are the library's.

Memory: two copies of the model, float32 gradients, and the activations of one batch for backprop.
"""

import argparse
import copy
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agzo import AGZO, ZeroOrderOptimizer
from agzo.alignment import Gradients, inner
from agzo.check import check_choice, check_number
from agzo.estimator import ESTIMATORS
from agzo.perturb import EXECUTIONS, Directions
from agzo.select import select
from agzo.spectrum import gradients
from baselines import LOZO, MeZO
from experiments.probe import tidy
from experiments.probe.tidy import Row

HELP = "is the measured slope the true slope, over eps? prints a recommended eps"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
METHODS: dict[str, Callable[..., ZeroOrderOptimizer]] = {"agzo": AGZO, "mezo": MeZO, "lozo": LOZO}
EPS = "1e-7,1e-6,1e-5,1e-4,3e-4,1e-3,3e-3,1e-2,3e-2,1e-1"

# An eps is usable while the root mean square of measured - exact is at most a quarter of that of
# exact. The error then adds at most 6 % to the mean square of g, and so of the step, and holds the
# (uncentred) correlation above .968: no limit on the correlation is needed beside this one.
LIMIT = 0.25
# Errors below this one do not tell values of eps apart: g's own spread over directions is 100 %.
NEGLIGIBLE = 0.02


@dataclass(frozen=True)
class Minibatch:
    """A batch as a probe needs it: its loss as a function of a model, and which tokens are real."""

    loss: Callable[[nn.Module], Tensor]
    token_mask: Tensor | None


Options = Mapping[str, Mapping[str, Any]]  # method -> arguments of its class beside the defaults


def slopes(
    model: nn.Module,
    batches: Sequence[Minibatch],
    methods: Options,
    eps_values: Sequence[float],
    dtypes: Sequence[str] = ("fp32",),
    directions: int = 16,
    execution: str = "side_branch",
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Measure each direction's slope, exactly and with every eps, one- and two-sided.

    Returns a row for each method, dtype, batch, direction and eps; a projected gradient that is not
    finite is None. The directions are the same for all eps; each has a subspace of its own.
    """
    rows: list[Row] = []
    for dtype in dtypes:
        seen, reference = cast(model, dtype), cast(model, "fp32", through=dtype)
        for number, batch in enumerate(batches):
            truth = true_gradients(seen, reference, batch)
            for method, options in methods.items():
                say(f"{dtype}: batch {number + 1} of {len(batches)}, {method}")
                shared = {"lr": 0.0, "execution": execution, "seed": seed, **options}
                optimizers = {
                    (eps, estimator): METHODS[method](seen, eps=eps, estimator=estimator, **shared)
                    for eps in eps_values
                    for estimator in ESTIMATORS
                }
                for direction in range(directions):
                    values: dict[tuple[float, str], float] = {}
                    found: Directions = {}
                    for key, optimizer in optimizers.items():
                        found, values[key] = look(optimizer, batch, direction)
                    exact = slope(found, truth)
                    rows += [
                        {"method": method, "dtype": dtype, "batch": number, "direction": direction}
                        | {"eps": eps, "exact": exact}
                        | {e: _finite(values[eps, e]) for e in ESTIMATORS}
                        for eps in eps_values
                    ]
    return rows


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def cast(model: nn.Module, dtype: str, through: str = "fp32") -> nn.Module:
    """Return a copy with parameters of `dtype`, rounded to `through` before.

    Buffers stay as they are (rotary frequencies are float32 in a bfloat16 model too), as they do
    when a model is loaded in another dtype. A float64 model stays float64 where float32 is asked.
    """
    made = copy.deepcopy(model)
    for parameter in made.parameters():
        for name in (through, dtype):
            wide = parameter.dtype == torch.float64 and name == "fp32"
            parameter.data = parameter.data if wide else parameter.data.to(DTYPES[name])
    return made


def true_gradients(seen: nn.Module, reference: nn.Module, batch: Minibatch) -> Gradients:
    """Return the gradient at `reference`, by the parameters of `seen`, which have other dtypes."""
    tuned, _ = select(reference, None, "tuned")
    found = gradients(lambda: batch.loss(reference), tuned)
    own = dict(seen.named_parameters())
    return {own[each.name]: found[each.parameter] for each in tuned}


def look(optimizer: ZeroOrderOptimizer, batch: Minibatch, index: int) -> tuple[Directions, float]:
    """Return direction number `index` of a method, with its own subspace, and its g."""
    step = index * (getattr(optimizer, "refresh_every", 1) or 1)  # None: one subspace for all
    measurement = optimizer.estimate(lambda: batch.loss(optimizer.model), batch.token_mask, step)
    directions, g = measurement.queries[0]
    return directions, g.item()


def slope(directions: Directions, truth: Gradients) -> float:
    """Return <gradient, direction> over the parameters that the directions are of."""
    return inner(directions, {parameter: truth[parameter] for parameter in directions}).item()


def quality(pairs: Sequence[tuple[float, float | None]]) -> Row:
    """Compare measured values with exact ones, given as (exact, measured).

    With m measured and e exact, over the pairs whose m is finite:

        correlation     Pearson's; None where m does not vary
        gain            <m, e> / <e, e>
        relative_error  rms(m - e) / rms(e)
        offset          mean(m - e) / rms(e)

    `finite` counts those pairs, `zero` those with m = 0: a difference below the loss's resolution.
    """
    kept = [(e, m) for e, m in pairs if m is not None]
    row: Row = {"n": len(pairs), "finite": len(kept), "zero": sum(m == 0 for _, m in kept)}
    names = ("correlation", "gain", "relative_error", "offset")
    size = math.sqrt(sum(e * e for e, _ in kept) / len(kept)) if kept else 0.0
    if size == 0.0:
        return row | dict.fromkeys(names)
    exact, measured = [e for e, _ in kept], [m for _, m in kept]
    errors = [m - e for e, m in kept]
    varies = len(set(exact)) > 1 and len(set(measured)) > 1
    values = (
        statistics.correlation(exact, measured) if varies else None,
        sum(e * m for e, m in kept) / (size * size * len(kept)),
        math.sqrt(statistics.fmean(d * d for d in errors)) / size,
        statistics.fmean(errors) / size,
    )
    return row | dict(zip(names, values, strict=True))


def windows(rows: Sequence[Row]) -> list[Row]:
    """Return the quality of every (method, dtype, estimator, eps), all batches together.

    An eps is `usable` (1, else 0) if every value is finite and relative_error is at most `LIMIT`.
    """
    groups: dict[tuple[str, str, str, float], list[tuple[float, float | None]]] = {}
    for row in rows:
        for estimator in ESTIMATORS:
            key = (row["method"], row["dtype"], estimator, row["eps"])
            groups.setdefault(key, []).append((row["exact"], row[estimator]))
    found: list[Row] = []
    for key in sorted(groups, key=_order):
        row: Row = dict(zip(("method", "dtype", "estimator", "eps"), key, strict=True))
        row |= quality(groups[key])
        error = row["relative_error"]
        row["usable"] = int(row["finite"] == row["n"] and error is not None and error <= LIMIT)
        found.append(row)
    return found


def _order(key: tuple[str, str, str, float]) -> tuple[int, int, str, float]:
    method, dtype, estimator, eps = key
    return list(DTYPES).index(dtype), list(METHODS).index(method), estimator, eps


def recommend(table: Sequence[Row]) -> list[Row]:
    """Return one row for each method, dtype and estimator of a table of `windows`.

    `lowest` and `highest` bound the window: the usable eps next to each other in the grid around
    the one with the smallest error. `eps` is recommended: of the window's values whose error is at
    most `NEGLIGIBLE` or 1.1 times the smallest, again next to each other around the best, the one
    nearest to the geometric middle (the smaller of two), as far from both cliffs as it can be. The
    three are None where no eps of the grid is usable; `best` has the smallest error in any case.
    """
    found: list[Row] = []
    keys = ("method", "dtype", "estimator")
    for group in dict.fromkeys(tuple(row[key] for key in keys) for row in table):
        grid = sorted(
            (row for row in table if tuple(row[key] for key in keys) == group),
            key=lambda row: row["eps"],
        )
        whole = [i for i, row in enumerate(grid) if row["finite"] == row["n"]]
        known = [i for i in whole if grid[i]["relative_error"] is not None]
        if not known:
            raise ValueError(
                f"method={group[0]}, {group[1]}, {group[2]}: no eps of the grid gave finite "
                "values; allowed is a model whose loss and gradient are finite"
            )
        best = min(known, key=lambda i: grid[i]["relative_error"])
        least = grid[best]["relative_error"]
        row: Row = dict(zip(keys, group, strict=True))
        row |= dict.fromkeys(("eps", "lowest", "highest"))
        chosen = best
        if least <= LIMIT:
            window = _around(best, [bool(each["usable"]) for each in grid])
            level = max(NEGLIGIBLE, 1.1 * least)
            good = [i in known and grid[i]["relative_error"] <= level for i in range(len(grid))]
            tied = _around(best, good)
            middle = math.sqrt(grid[tied[0]]["eps"] * grid[tied[-1]]["eps"])
            chosen = min(tied, key=lambda i: round(abs(math.log(grid[i]["eps"] / middle)), 9))
            ends = {"lowest": grid[window[0]]["eps"], "highest": grid[window[-1]]["eps"]}
            row |= {"eps": grid[chosen]["eps"], **ends}
        row["best"] = grid[best]["eps"]
        measures = ("relative_error", "correlation", "gain", "offset")
        found.append(row | {key: grid[chosen][key] for key in measures})
    return found


def _around(index: int, wanted: Sequence[bool]) -> range:
    """Return the unbroken stretch of `wanted` that holds `index`."""
    first = last = index
    while first > 0 and wanted[first - 1]:
        first -= 1
    while last + 1 < len(wanted) and wanted[last + 1]:
        last += 1
    return range(first, last + 1)


def text(recommended: Sequence[Row]) -> str:
    """Write the recommended values as the lines that a user reads."""
    lines = [
        f"{'dtype':6} {'method':7} {'estimator':10} {'eps':>7}  {'usable':17} {'error':>7} "
        f"{'corr.':>6} {'gain':>6} {'offset':>7}"
    ]
    for row in recommended:
        given = row["eps"] is not None
        usable = f"{row['lowest']:g} to {row['highest']:g}" if given else f"best: {row['best']:g}"
        rest = " ".join(
            f"{'-' if row[key] is None else format(row[key], '.3f'):>{width}}"
            for key, width in (("correlation", 6), ("gain", 6), ("offset", 7))
        )
        lines.append(
            f"{row['dtype']:6} {row['method']:7} {row['estimator']:10} "
            f"{format(row['eps'], 'g') if given else 'none':>7}  {usable:17} "
            f"{row['relative_error']:7.2g} {rest}"
        )
    lines.append(
        "error: rms(measured - exact) / rms(exact) of the projected gradient at the eps shown, "
        f"usable up to {LIMIT}.\nnone: no eps of the grid measures the slope that well."
    )
    return "\n".join(lines)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this probe's options."""
    parser.add_argument("--eps", default=EPS, help=f"ascending, {EPS}")
    parser.add_argument("--directions", default="16", help="of each batch; 16")
    parser.add_argument("--batches", default="2", help="training batches; 2")
    parser.add_argument("--methods", default=",".join(METHODS), help="agzo,mezo,lozo")
    parser.add_argument("--dtypes", help="fp32,bf16,fp16 or all; the run's own precision")
    parser.add_argument("--execution", default="side_branch", help="side_branch or in_place")


def run(
    options: argparse.Namespace, say: Callable[[str], None]
) -> tuple[dict[str, Any], tidy.Tables]:
    """Measure along the command line's options, and print the recommended eps."""
    eps_values = numbers("--eps", options.eps)
    directions, batches = (
        count("--directions", options.directions, 2),
        count("--batches", options.batches),
    )
    methods = words("--methods", options.methods, METHODS)
    dtypes = chosen_dtypes(options.dtypes)
    check_choice("--execution", options.execution, tuple(EXECUTIONS))

    from experiments.probe import scene

    here = scene.load(options.overrides)
    say(f"loaded {here.config.model.name}")
    rows = slopes(
        here.model,
        minibatches(here, batches),
        method_options(here, methods),
        eps_values,
        dtypes or [here.config.precision.dtype],
        directions,
        options.execution,
        here.config.seed,
        say,
    )
    table = windows(rows)
    recommended = recommend(table)
    print(text(recommended))
    settings = {key: value for key, value in vars(options).items() if key not in ("out", "run")}
    about = {
        **tidy.about("slope", settings, here.device),
        **here.about(),
        "limit": LIMIT,
        "negligible": NEGLIGIBLE,
        "execution": options.execution,
        "method_options": method_options(here, methods),
        "batches": batches,
        "directions": directions,
        "batch_size": here.config.train.batch_size,
    }
    short = [{key: _short(value) for key, value in row.items()} for row in rows]
    return about, {"slopes": short, "windows": table, "recommended": recommended}


def _short(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def minibatches(here: Any, count: int) -> list[Minibatch]:
    """Return the first batches of a run (a `scene.Scene`)."""
    from experiments.loss import loss

    batches = [here.batch(step) for step in range(count)]
    return [Minibatch(lambda m, b=b: loss(m, b), b.token_mask) for b in batches]


def method_options(here: Any, methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return each method's arguments: the run's own method has its keys, the others defaults.

    All share the run's choice of tuned embeddings. What a probe varies itself is left out.
    """
    config = dict(here.config.method)
    shared = {"embeddings": config.get("embeddings", "tuned")}
    given = ("name", "lr", "eps", "estimator", "queries", "execution", "weight_decay", "seed")
    own = {key: value for key, value in config.items() if key not in given}
    return {name: shared | (own if name == config["name"] else {}) for name in methods}


def numbers(key: str, text: str) -> list[float]:
    """Read a list such as 1e-4,1e-3: positive, ascending."""
    try:
        values = [float(part) for part in text.split(",")]
        for value in values:
            check_number(key, value, above=0.0)
    except ValueError:
        values = []
    if not values or values != sorted(set(values)):
        raise ValueError(f"{key}={text}: allowed are ascending numbers above 0: 1e-4,1e-3")
    return values


def count(key: str, text: str, least: int = 1) -> int:
    """Read one whole number."""
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"{key}={text}: allowed are whole numbers from {least} on")
    return int(text)


def words(key: str, text: str, allowed: Mapping[str, Any]) -> list[str]:
    """Read a list of names, each once."""
    names = text.split(",")
    if any(name not in allowed for name in names) or len(set(names)) < len(names):
        raise ValueError(f"{key}={text}: allowed are, each once, {', '.join(allowed)}")
    return names


def chosen_dtypes(text: str | None) -> list[str]:
    """Read --dtypes; nothing given is an empty list."""
    if text is None:
        return []
    if text == "all":
        return list(DTYPES)
    try:
        return words("--dtypes", text, DTYPES)
    except ValueError as error:
        raise ValueError(f"{error}; or all") from None
