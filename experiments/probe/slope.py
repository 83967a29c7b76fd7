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
import csv
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from agzo import AGZO, ZeroOrderOptimizer
from agzo.activations.spectrum import gradients
from agzo.alignment import Gradients, inner
from agzo.check import check_choice
from agzo.estimator import ESTIMATORS, EXECUTIONS
from agzo.execution.perturb import Directions
from agzo.tuned.select import select
from agzo.window import LIMIT, NEGLIGIBLE
from baselines import LOZO, MeZO
from experiments.config.lists import count, positive_numbers, words
from experiments.probe.window import recommend, text, windows
from experiments.records import tidy
from experiments.records.tidy import Row

HELP = "is the measured slope the true slope, over eps? prints a recommended eps"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
METHODS: dict[str, Callable[..., ZeroOrderOptimizer]] = {"agzo": AGZO, "mezo": MeZO, "lozo": LOZO}
EPS = "1e-7,1e-6,1e-5,1e-4,3e-4,1e-3,3e-3,1e-2,3e-2,1e-1"


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
    kept: Callable[[str, Callable[[], Any]], Any] = lambda name, make: make(),
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
                look_at = functools.partial(
                    _slopes, METHODS[method], seen, batch, truth, shared, eps_values, directions
                )
                at = {"method": method, "dtype": dtype, "batch": number}
                found = kept(f"{dtype} {number} {method}", look_at)
                rows += [at | row for row in found]
    return rows


def _slopes(
    method: Callable[..., ZeroOrderOptimizer],
    seen: nn.Module,
    batch: Minibatch,
    truth: Gradients,
    options: Mapping[str, Any],
    eps_values: Sequence[float],
    directions: int,
) -> list[Row]:
    """Return the rows of one method, dtype and batch."""
    optimizers = {
        (eps, estimator): method(seen, eps=eps, estimator=estimator, **options)
        for eps in eps_values
        for estimator in ESTIMATORS
    }
    rows: list[Row] = []
    for direction in range(directions):
        values: dict[tuple[float, str], float] = {}
        found: Directions = {}
        for key, optimizer in optimizers.items():
            found, values[key] = look(optimizer, batch, direction)
        exact = slope(found, truth)
        rows += [
            {"direction": direction, "eps": eps, "exact": exact}
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
    step = index * (getattr(optimizer, "refresh_every", 1) or 1)
    measurement = optimizer.estimate(lambda: batch.loss(optimizer.model), batch.token_mask, step)
    directions, g = measurement.queries[0]
    return directions, g.item()


def slope(directions: Directions, truth: Gradients) -> float:
    """Return <gradient, direction> over the parameters that the directions are of."""
    return inner(directions, {parameter: truth[parameter] for parameter in directions}).item()


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this probe's options."""
    parser.add_argument("--eps", default=EPS, help=f"ascending, {EPS}")
    parser.add_argument("--directions", default="16", help="of each batch; 16")
    parser.add_argument("--batches", default="2", help="training batches; 2")
    parser.add_argument("--methods", default=",".join(METHODS), help="agzo,mezo,lozo")
    parser.add_argument("--dtypes", help="fp32,bf16,fp16 or all; the run's own precision")
    executions = ", ".join(EXECUTIONS)
    parser.add_argument("--execution", default="side_branch", help=f"{executions}; side_branch")


def run(
    options: argparse.Namespace, say: Callable[[str], None]
) -> tuple[dict[str, Any], tidy.Tables]:
    """Measure along the command line's options."""
    eps_values = positive_numbers("--eps", options.eps)
    directions = count("--directions", options.directions, least=2)
    batches = count("--batches", options.batches)
    methods = words("--methods", options.methods, METHODS)
    dtypes = words("--dtypes", options.dtypes, DTYPES) if options.dtypes else []
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
        options.kept,
    )
    table = windows(rows)
    recommended = recommend(table)
    about = {
        **tidy.about("slope", here.device),
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


def show(folder: Path) -> None:
    """Print the recommended eps that a folder holds."""
    with (folder / "recommended.csv").open(encoding="utf-8") as file:
        rows = [{key: _read(cell) for key, cell in row.items()} for row in csv.DictReader(file)]
    print(text(rows))


def _read(cell: str) -> float | str | None:
    try:
        return float(cell) if cell else None
    except ValueError:
        return cell


def _short(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def minibatches(here: Any, count: int) -> list[Minibatch]:
    """Return the first batches of a run (a `scene.Scene`)."""
    from experiments.models.loss import loss

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
