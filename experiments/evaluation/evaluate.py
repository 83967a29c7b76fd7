"""Evaluation: MeZO's scoring, in batches that give the scores of one row at a time.

Option tasks: an option's score is the mean log-probability of its tokens (scoring.py); the highest
is predicted. Generation tasks: greedy decoding (generate.py), token F1 over the golds. Both report
the task's own loss, averaged over examples (`lm`: each example's mean token loss), so it does not
depend on the batches.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import torch
from torch import Tensor, nn

from experiments.data.batches import longest_first
from experiments.data.encode import Encoded, Encoder
from experiments.evaluation.asking import Asking
from experiments.evaluation.generate import generate
from experiments.evaluation.metrics import accuracy, best_f1
from experiments.evaluation.scoring import known_asking, option_scores
from experiments.tasks.base import DataError, Example, Task

Progress = Callable[[int, int], None]  # called with (rows done, rows in all)


class Evaluation(TypedDict):
    """What one evaluation reports; of `accuracy` and `f1` the one that is the task's metric."""

    accuracy: NotRequired[float]
    f1: NotRequired[float]
    loss: float
    n: int
    truncated: int
    seconds: float


@dataclass(frozen=True)
class Questions:
    """The examples of a split, encoded once for all the evaluations of a run.

    `prompts` are what a generation task continues, none otherwise; `answers` has the golds of each
    example; `truncated` counts examples that lost tokens.
    """

    encoded: list[Encoded]
    prompts: list[list[int]]
    answers: list[tuple[str, ...]]
    truncated: int
    max_new_tokens: int

    @property
    def longest(self) -> int:
        """The longest sequence that an evaluation may run."""
        rows = max(len(row) for example in self.encoded for row in example.ids)
        return max(rows, *(len(p) + self.max_new_tokens for p in self.prompts), 0)


def questions(
    encoder: Encoder, task: Task, examples: Sequence[Example], max_new_tokens: int = 50
) -> Questions:
    """Encode the examples of a split."""
    if not examples:
        raise DataError(f"task {task.name!r}: no examples to evaluate, needed: at least one")
    encoded = encoder.encode_all(examples)
    truncated = [example.truncated for example in encoded]
    prompts: list[list[int]] = []
    if task.kind == "generation":
        made = encoder.encode_prompts(examples, max_new_tokens)
        prompts = [prompt.ids for prompt in made]
        truncated = [a or b.truncated for a, b in zip(truncated, made, strict=True)]
    answers = [example.answers for example in examples]
    return Questions(encoded, prompts, answers, sum(truncated), max_new_tokens)


def evaluate(
    model: nn.Module,
    encoder: Encoder,
    task: Task,
    asked: Questions,
    batch_size: int,
    device: torch.device | str,
    progress: Progress | None = None,
    asking: Asking | None = None,
) -> Evaluation:
    """Evaluate a model, in eval mode and without gradients; its mode is put back.

    `batch_size` bounds the rows of a forward pass; `asking` is as in `option_scores`.
    """
    if batch_size < 1:
        raise ValueError(f"eval batch_size={batch_size} is not allowed, needed: at least 1")
    start = time.perf_counter()
    encoded, prompts = asked.encoded, asked.prompts
    report = _Counter(progress, sum(len(example.ids) for example in encoded) + len(prompts))
    with _evaluating(model):
        asking = asking or known_asking(model, encoded, encoder.pad_id)
        scores = option_scores(
            model, encoded, encoder.pad_id, batch_size, device, report, asking=asking
        )
        texts = [""] * len(prompts)
        for chosen in longest_first(list(map(len, prompts)), batch_size):
            rows = [prompts[i] for i in chosen]
            made = generate(model, encoder, rows, asked.max_new_tokens, device, asking)
            for index, text in zip(chosen, made, strict=True):
                texts[index] = text
            report(len(chosen))
    losses = [_loss(task, own, example.label) for own, example in zip(scores, encoded, strict=True)]
    result: Evaluation = {
        "loss": sum(losses) / len(losses),
        "n": len(encoded),
        "truncated": asked.truncated,
        "seconds": time.perf_counter() - start,
    }
    if task.metric == "f1":
        result["f1"] = sum(map(best_f1, texts, asked.answers)) / len(texts)
    else:
        predictions = [int(own.argmax()) for own in scores]
        result["accuracy"] = accuracy(predictions, [example.correct for example in encoded])
    return result


def _loss(task: Task, scores: Tensor, label: int) -> float:
    if task.loss == "classification":
        return float(torch.logsumexp(scores, dim=0) - scores[label])
    return -float(scores[label])


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


class _Counter:
    """Adds up the rows done and tells `progress`."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def __call__(self, rows: int) -> None:
        self.done += rows
        if self.progress is not None:
            self.progress(self.done, self.total)
