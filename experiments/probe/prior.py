"""How far does a shift of the answers alone come? A control for every method.

    python -m experiments.probe prior --out FOLDER model=... task=sst2 method=mezo

A language model prefers some answers whatever the prompt says. Here one number is added to the
score of each option, the same for all examples, and no weight is touched: the numbers minimise the
loss on the first `--fit` training examples. A training run that ends at this loss and accuracy has
shown no more than that. The method of the run matters only where `--steps` look at it later on.
Tables:

* `prior`: for each step and split, loss and accuracy as they are and with the shift.
* `shift`: the number of each option, the first one's 0.
"""

import argparse
import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.config.lists import count, whole_numbers
from experiments.data.encode import Encoded
from experiments.evaluation.scoring import option_scores
from experiments.probe.scene import Scene, load
from experiments.records import tidy

HELP = "how far a shift of the answers comes without touching a weight: a control"


def fit(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the shift (K,) that minimises the mean cross-entropy of scores + shift.

    Args:
        scores: (n, K) of the options, float64.
        labels: (n,) the right ones, each of the K at least once: else there is no minimum.

    The problem is convex; the first option's shift is 0. At the minimum the mean probability of
    each option is its share of the labels.
    """
    counts = labels.bincount(minlength=scores.shape[1])
    if bool((counts == 0).any()):
        raise ValueError(
            f"--fit={len(labels)}: option {int(counts.argmin())} is the answer of none of these "
            "training examples; allowed are enough that every option is one's"
        )
    rest = torch.zeros(scores.shape[1] - 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [rest], max_iter=200, tolerance_grad=1e-10, tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(scores + _whole(rest), labels)
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[arg-type]
    return _whole(rest.detach())


def _whole(rest: Tensor) -> Tensor:
    return torch.cat([rest.new_zeros(1), rest])


def scored(scene: Scene, encoded: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    """Return the options' scores (n, K) in float64 and the right ones (n,)."""
    parts, size = scene.parts, scene.config.train.eval_batch_size
    found = option_scores(
        scene.model, encoded, parts.encoder.pad_id, size, scene.device, asking=parts.asking
    )
    return torch.stack(found), torch.tensor([example.label for example in encoded])


def quality(scores: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return mean cross-entropy and accuracy."""
    loss = torch.nn.functional.cross_entropy(scores, labels)
    return float(loss), float((scores.argmax(1) == labels).double().mean())


def look(scene: Scene, step: int, fitted: int) -> dict[str, list[tidy.Row]]:
    """Return the rows of both tables at the weights as they are."""
    scores, labels = scored(scene, scene.parts.train[:fitted])
    shift = fit(scores, labels)
    rows: list[tidy.Row] = []
    for split, questions in (("dev", scene.parts.dev), ("eval", scene.parts.eval)):
        own, right = scored(scene, questions.encoded)
        row: tidy.Row = {"step": step, "split": split, "n": len(right)}
        row["loss"], row["accuracy"] = quality(own, right)
        row["shifted_loss"], row["shifted_accuracy"] = quality(own + shift, right)
        rows.append(row)
    shifts: list[tidy.Row] = [
        {"step": step, "option": option, "shift": value}
        for option, value in enumerate(shift.tolist())
    ]
    return {"prior": rows, "shift": shifts}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this probe's options."""
    parser.add_argument("--steps", default="0", help="of the run, to look at; 0")
    parser.add_argument("--fit", default="256", help="training examples for the shift; 256")


def run(
    options: argparse.Namespace, say: Callable[[str], None]
) -> tuple[dict[str, Any], tidy.Tables]:
    """Measure along the command line's options."""
    steps, fitted = whole_numbers("--steps", options.steps), count("--fit", options.fit)
    scene = load(options.overrides)
    task, train = scene.parts.task, scene.parts.train
    if task.loss != "classification":
        raise ValueError(
            f"task={task.name}: its options differ from row to row, so that a shift of each means "
            "nothing; allowed are tasks with the same options for every row"
        )
    if fitted > len(train):
        raise ValueError(f"--fit={fitted}: allowed are up to {len(train)}, the training examples")
    tables: tidy.Tables = {"prior": [], "shift": []}
    for step in scene.walk(steps):
        for name, rows in look(scene, step, fitted).items():
            tables[name] += rows
        for row in tables["prior"][-2:]:
            say(
                f"step {step}, {row['split']}: loss {row['loss']:.4f}, with the shift "
                f"{row['shifted_loss']:.4f}"
            )
    about = tidy.about("prior", scene.device) | scene.about()
    return about | {"fit": fitted}, tables


def show(folder: Path) -> None:
    """Print the table that a folder holds."""
    with (folder / "prior.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    head = ("step", "split", "n", "loss", "accuracy", "shifted_loss", "shifted_accuracy")
    for row in (dict(zip(head, head, strict=True)), *rows):
        print("  ".join(f"{row[key]:>{len(key)}}" for key in head))
