"""Figure 2: how well does a zeroth-order estimate align with the backpropagated gradient?

At steps along one training run, at the same weights and on the same minibatch for all methods, each
method's own optimizer measures queries (`ZeroOrderOptimizer.estimate`). The gradient is that of all
weights of a scope, also for a method that perturbs some of them (`experiments.probe.estimates`).
LOZO-M evaluates LOZO's directions, so its estimates are LOZO's. Tables:

* `whole`: for each scope and group of queries the mean cosine of one-query estimates, and what
  Theorem 5.4 (in its concatenated form) predicts from the measured bases. A scope is what is
  perturbed and compared: "linear", the weights of linear layers, or "all".
* `averaged`: the cosine of the mean over as many queries as a number of forwards pays for.
* `layers`: for each linear layer the cosine when it is perturbed `together` with all others, where
  one projected gradient serves all layers and the cosine can be negative; for those of `--layers`
  also when each is perturbed `alone`, where the theorem holds. Layers that a method leaves as they
  are have no row of it; nor has the dominant layer alone, where it is its base method.

A group has its own seed, so its own directions and, for AGZO, its own test matrix; queries
of a group share the base forward, as in a step with several queries.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agzo import alignment
from agzo.activations.spectrum import gradients
from agzo.estimator import Measurement
from agzo.execution.perturb import Directions
from agzo.torch_calls.surroundings import Closure
from agzo.tuned.select import Tuned, select
from experiments.config.lists import whole_numbers
from experiments.probe.estimates import Make, affordable, dominant, makers, reached
from experiments.probe.structure import choose, linear_layers
from experiments.records import tidy

HELP = "figure 2: cosine of estimates with the gradient, against the theory"
SCOPES = ("linear", "all")
METHODS = "agzo,mezo,lozo,zo_act,dominant_layer"
NEVER_ALONE = ("dominant_layer",)


@dataclass(frozen=True)
class Moment:
    """One step of the run: what the loss is then, and its exact gradient."""

    step: int
    closure: Closure
    token_mask: Tensor
    gradient: Mapping[nn.Parameter, Tensor]


def signed_cosine(
    directions: Directions, projected_grad: Tensor, gradient: Mapping[nn.Parameter, Tensor]
) -> float:
    """Return the cosine of the estimate ``projected_grad * Delta`` and the gradient."""
    cosine = alignment.cosine(directions, gradient)
    return (torch.sign(projected_grad.double()) * cosine).item()


def averaged_cosines(
    measured: Measurement, gradient: Mapping[nn.Parameter, Tensor], counts: Sequence[int]
) -> dict[int, float]:
    """Return, for each count, the cosine of the mean of that many queries' estimates.

    Holds one sum of directions, as large as the tuned weights.
    """
    total = {p: torch.zeros_like(g) for p, g in gradient.items()}
    length = alignment.norm(gradient)
    found = {}
    for done, (directions, g) in enumerate(measured.queries, start=1):
        for parameter, mean in total.items():
            for start, stop, values in directions[parameter].rows():
                rows = mean if mean.dim() == 0 else mean[start:stop]
                rows.add_(values.to(rows.dtype) * g.to(rows.dtype))
        if done in counts:
            product = torch.stack([(total[p] * g).sum().double() for p, g in gradient.items()])
            found[done] = (product.sum() / (alignment.norm(total) * length)).item()
    return found


def whole_rows(
    moment: Moment, scope: str, methods: Mapping[str, Make], groups: int, budgets: Sequence[int]
) -> tuple[list[tidy.Row], list[tidy.Row], list[tidy.Row]]:
    """Return rows of `whole`, of `averaged`, and of `layers` perturbed together (scope linear)."""
    whole, averaged, layers = [], [], []
    chosen = list(moment.gradient)
    for method, make in methods.items():
        together: dict[nn.Parameter, list[float]] = {}
        names: dict[nn.Parameter, str] = {}
        for group in range(groups):
            one = make(params=chosen, seed=group)
            counts = {f: n for f in budgets if (n := affordable(one, f)) > 0}
            optimizer = make(params=chosen, seed=group, queries=max(counts.values()))
            names = {each.parameter: each.name for each in optimizer.tuned}
            own, share = reached(optimizer, moment.gradient)
            measured = optimizer.estimate(moment.closure, moment.token_mask, moment.step)
            cosines = [share * signed_cosine(d, g, own) for d, g in measured.queries]
            if scope == "linear":
                for p, gradient in own.items():
                    found = [signed_cosine(d, g, {p: gradient}) for d, g in measured.queries]
                    together.setdefault(p, []).extend(found)
            expected = share * alignment.expected_cosine(measured.queries[0][0], own)
            at = {"step": moment.step, "scope": scope, "method": method, "group": group}
            whole.append({
                **at, "estimator": optimizer.estimator, "eps": optimizer.eps,
                "queries": len(cosines), "cosine": statistics.fmean(cosines),
                "wrong_sign": sum(c < 0 for c in cosines), "expected": expected,
            })  # fmt: skip
            by_count = averaged_cosines(measured, own, set(counts.values()))  # pyright: ignore[reportArgumentType]
            averaged += [
                {**at, "forwards": f, "queries": n, "cosine": share * by_count[n]}
                for f, n in counts.items()
            ]
        if scope == "linear":
            layers += [
                _layer_row(moment.step, method, names[p], "together", values, None)
                for p, values in together.items()
            ]
    return whole, averaged, layers


def alone_rows(
    moment: Moment, layers: Sequence[Tuned], methods: Mapping[str, Make], queries: int
) -> list[tidy.Row]:
    """Return rows of `layers` for each layer perturbed alone."""
    rows = []
    for method, make in methods.items():
        for layer in layers:
            optimizer = make(params=[layer.parameter], seed=0, queries=queries)
            if not optimizer.tuned:
                continue
            measured = optimizer.estimate(moment.closure, moment.token_mask, moment.step)
            own = {layer.parameter: moment.gradient[layer.parameter]}
            cosines = [signed_cosine(d, g, own) for d, g in measured.queries]
            expected = alignment.expected_cosine(measured.queries[0][0], own)
            rows.append(_layer_row(moment.step, method, layer.name, "alone", cosines, expected))
    return rows


def _layer_row(
    step: int, method: str, layer: str, perturbed: str, cosines: list[float], expected: float | None
) -> tidy.Row:
    return {
        "step": step, "method": method, "layer": layer, "perturbed": perturbed,
        "n": len(cosines), "cosine": statistics.fmean(cosines),
        "deviation": statistics.stdev(cosines), "expected": expected,
    }  # fmt: skip


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the probe's own options."""
    parser.add_argument("--steps", default="0,50,100,200,400", help="of the run, to look at")
    parser.add_argument("--methods", default=METHODS, help=f"to compare; default: {METHODS}")
    parser.add_argument("--layer", type=int, default=1, help="of dominant_layer, from 0")
    parser.add_argument("--groups", type=int, default=8, help="of queries, each with its seed")
    parser.add_argument("--forwards", default="2,4,8,16,32", help="to spend on averaged queries")
    parser.add_argument("--layer-queries", type=int, default=16, help="per layer, 2 or more")
    parser.add_argument("--layer-steps", default="", help="steps with layers alone; the last")
    parser.add_argument("--layers", default="", help="parts of names, of layers alone; all")


def run(
    options: argparse.Namespace, say: Callable[[str], None]
) -> tuple[dict[str, Any], tidy.Tables]:
    """Look at a run as the options say; see the module's text for the tables."""
    from experiments.config.errors import BadInput
    from experiments.probe import scene as scenes

    steps = whole_numbers("--steps", options.steps)
    budgets = whole_numbers("--forwards", options.forwards, least=2)
    layer_steps = whole_numbers("--layer-steps", options.layer_steps or str(steps[-1]))
    if not set(layer_steps) <= set(steps):
        raise BadInput(f"--layer-steps={options.layer_steps}: allowed are some of --steps")
    if options.groups < 2:
        raise BadInput(f"--groups={options.groups}: allowed is 2 or more, for a confidence band")
    if options.layer_queries < 2:
        raise BadInput(f"--layer-queries={options.layer_queries}: allowed is 2 or more")
    scene = scenes.load(options.overrides)
    methods = makers(options.methods.split(","), options.overrides, scene, options.layer)
    alone = {name: make for name, make in methods.items() if name not in NEVER_ALONE}
    everything = select(scene.model, None, "tuned")[0]
    linear = linear_layers(scene.model)
    chosen = choose(linear, options.layers, linear)
    tables: tidy.Tables = {"whole": [], "averaged": [], "layers": []}
    for step in scene.walk(steps):
        batch = scene.batch(step)
        closure = scene.closure(batch)
        for scope, tuned in (("linear", linear), ("all", everything)):
            moment = Moment(step, closure, batch.token_mask, gradients(closure, tuned))
            look = functools.partial(whole_rows, moment, scope, methods, options.groups, budgets)
            whole, averaged, layers = options.kept(f"step {step} {scope}", look)
            tables["whole"] += whole
            tables["averaged"] += averaged
            tables["layers"] += layers
            say(f"step {step}, {scope}: {len(tuned)} parameters, {len(whole)} groups of queries")
            if scope == "linear" and step in layer_steps:
                look = functools.partial(alone_rows, moment, chosen, alone, options.layer_queries)
                tables["layers"] += options.kept(f"step {step} alone", look)
                say(f"step {step}: each of {len(chosen)} layers alone")
    about = tidy.about("alignment", scene.device)
    if "dominant_layer" in methods:
        about["dominant_layer"] = dominant(scene, options.layer)
    return about | scene.about(), tables
