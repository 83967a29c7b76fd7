"""Where a run goes: its loss, how far it moves, how much of that no input sees, what it forgets.

    python -m experiments.probe drift --cases agzo:1e-4,mezo:1e-4 --out FOLDER model=... task=sst2

A zeroth-order step goes along a random direction. What of it lies outside the span of the inputs of
a layer changes no output on them, so no minibatch corrects it: it piles up as a random walk, meets
the rest of the model, and in the end the task. One run for each case, a method and its learning
rate; table `drift`, at every step of `--steps`:

* `dev`, the loss on the first `--others` dev examples, and its accuracy;
* `moved`, |W - W_0| over the linear layers, and `outside`, the share of its square that lies
  outside the span of the inputs of that step's minibatch; `outside_leading`, of its 16 leading
  directions;
* `unrelated`, the loss on the passages of `train.forgetting`.
"""

import argparse
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from agzo.activations.spectrum import inputs, spectrum
from agzo.check import check_number
from experiments.config.lists import count, whole_numbers
from experiments.evaluation import forgetting
from experiments.evaluation.evaluate import evaluate
from experiments.probe.scene import Scene, load
from experiments.probe.structure import linear_layers, real_tokens
from experiments.records import tidy

HELP = "where a run goes: dev loss, distance moved, unrelated loss, for several learning rates"
LEADING = 16


def outside(movement: Tensor, basis: Tensor) -> tuple[float, float]:
    """Return |M - M V V^T|^2 and |M|^2 of a weight's movement M, V (d_in, r) orthonormal."""
    m = movement.double()
    inside = float((m @ basis.double()).square().sum())
    whole = float(m.square().sum())
    return whole - inside, whole


@torch.no_grad()
def movement(scene: Scene, start: dict[str, Tensor], step: int) -> dict[str, float]:
    """Return how far the linear weights moved, and the shares outside the step's inputs' span."""
    batch = scene.batch(step)
    layers = linear_layers(scene.model)
    left = led = whole = 0.0
    known: dict[int, tuple[Tensor, Tensor]] = {}
    for name, x in inputs(scene.closure(batch), layers).items():
        if id(x) not in known:
            found = spectrum(real_tokens(x, batch.token_mask))
            known[id(x)] = found.basis(found.rank), found.basis(min(LEADING, found.rank))
        weight = dict(scene.model.named_parameters())[name]
        moved = weight.detach() - start[name]
        rest, square = outside(moved, known[id(x)][0])
        left, whole = left + rest, whole + square
        led += outside(moved, known[id(x)][1])[0]
    share = whole or 1.0
    return {"moved": whole**0.5, "outside": left / share, "outside_leading": led / share}


def look(scene: Scene, start: dict[str, Tensor], step: int, others: int) -> tidy.Row:
    """Return one row of the table."""
    parts, train = scene.parts, scene.config.train
    some = replace(parts.dev, encoded=scene.others(others))
    found = evaluate(
        parts.model, parts.encoder, parts.task, some, train.eval_batch_size, scene.device
    )
    unrelated = None
    if parts.unrelated is not None:
        unrelated = forgetting.loss(parts.model, parts.unrelated.ids, scene.device)
    row: tidy.Row = {"step": step, "dev": found["loss"], "accuracy": found.get("accuracy")}
    return row | movement(scene, start, step) | {"unrelated": unrelated}


def one_case(
    overrides: list[str], method: str, lr: float, steps: list[int], others: int,
    say: Callable[[str], None],
) -> list[tidy.Row]:  # fmt: skip
    """Train with one method and learning rate, and look at every step of `steps`."""
    scene = load([*overrides, f"method={method}", f"method.lr={lr!r}"])
    start = {each.name: each.parameter.detach().clone() for each in linear_layers(scene.model)}
    rows = []
    for step in scene.walk(steps):
        rows.append({"method": method, "lr": lr, **look(scene, start, step, others)})
        say(f"{method} {lr:g}, step {step}: dev loss {rows[-1]['dev']:.4f}")
    return rows


def cases(text: str) -> list[tuple[str, float]]:
    """Read method:lr pairs."""
    found = []
    for word in text.split(","):
        method, _, lr = word.partition(":")
        try:
            check_number("lr", float(lr), above=0.0)
        except ValueError:
            raise ValueError(
                f"--cases={text}: allowed are method:lr pairs, agzo:1e-4,mezo:1e-4"
            ) from None
        found.append((method, float(lr)))
    return found


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this probe's options."""
    parser.add_argument("--cases", required=True, help="methods and their lr: agzo:1e-4,mezo:1e-4")
    parser.add_argument("--steps", default="0,50,100,150,200,300,400,500,600", help="to look at")
    parser.add_argument("--others", default="200", help="dev examples; 200")


def run(
    options: argparse.Namespace, say: Callable[[str], None]
) -> tuple[dict[str, Any], tidy.Tables]:
    """Train and look as the options say."""
    todo = cases(options.cases)
    steps = whole_numbers("--steps", options.steps)
    others = count("--others", options.others)
    scene = load(options.overrides)  # every problem shows before the first long run
    scene.others(others)
    linear_layers(scene.model)
    about = tidy.about("drift", scene.device) | scene.about()
    about |= {
        "others": others,
        "leading": LEADING,
        "unrelated": scene.parts.unrelated and scene.parts.unrelated.about,
    }
    del scene
    rows = [
        options.kept(
            f"{method} {lr:g}",
            lambda m=method, r=lr: one_case(options.overrides, m, r, steps, others, say),
        )
        for method, lr in todo
    ]
    return about, {"drift": list(itertools.chain.from_iterable(rows))}
