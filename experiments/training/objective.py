"""What a training step minimises: the task's loss, or minus its metric itself.

    loss      see loss.py
    metric    - accuracy of the batch: an option's score is the mean log-probability of its tokens,
              the highest is the answer (no value is read back to the host)
              - mean token F1 of greedy generations, for tasks that generate, as MeZO trains SQuAD
              (each token is read back: text is compared on the host)

Both are the numbers that an evaluation of the same examples reports. The metric has steps and no
derivative: only zeroth-order methods can follow it, and where eps is too small to change an answer
every projected gradient is 0. Memory of accuracy: the rows of all options of the batch at once.

A call of the closure is one forward pass: with the keys and values kept, generation too passes each
token of the batch through the model once, as a loss on prompt and answer does.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from experiments.data.batches import Batch, collate, pad_left
from experiments.data.encode import Encoder
from experiments.evaluation.asking import USUAL, Asking
from experiments.evaluation.evaluate import Questions
from experiments.evaluation.generate import generate
from experiments.evaluation.metrics import best_f1
from experiments.models.loss import by_option, mean_log_probs, option_log_probs
from experiments.tasks.base import Task


class Objective(NamedTuple):
    """A function of the weights, and which tokens of its batch are real."""

    closure: Callable[[], Tensor]
    token_mask: Tensor | None  # (R, T) bool


def metric_objective(
    model: nn.Module,
    encoder: Encoder,
    task: Task,
    asked: Questions,
    chosen: Sequence[int],
    device: torch.device | str,
    pack_from: float | None = None,
    multiple: int = 1,
    asking: Asking = USUAL,
) -> Objective:
    """Return minus the task's metric on the chosen examples; `pack_from`, `multiple`: `collate`."""
    if task.kind == "generation":
        prompts = [asked.prompts[i] for i in chosen]
        answers = [asked.answers[i] for i in chosen]
        mask = pad_left(prompts, encoder.pad_id)[1].to(device)
        longest = asked.max_new_tokens

        def f1() -> Tensor:
            return minus_f1(model, encoder, prompts, answers, longest, device, asking)

        return Objective(f1, mask)
    examples = [asked.encoded[i] for i in chosen]
    scored = replace(task, loss="classification")
    batch = collate(
        examples, scored, encoder.pad_id, device, pack_from=pack_from, multiple=multiple,
        one_length=not asking.padded,
    )  # fmt: skip
    options = range(batch.option_rows.shape[1])
    right = torch.tensor([[option in e.correct for option in options] for e in examples])
    right = right.to(device, non_blocking=True)
    return Objective(lambda: minus_accuracy(model, batch, right), batch.token_mask)


def minus_accuracy(model: nn.Module, batch: Batch, right: Tensor) -> Tensor:
    """Return minus the share of examples whose best option is right, (E, O) bool; 0-dim float32.

    Scores that are no numbers make it no number, so that a model that has diverged is noticed.
    """
    scores = by_option(mean_log_probs(option_log_probs(model, batch), batch.target_mask), batch)
    hits = right.gather(1, scores.argmax(dim=1, keepdim=True)).float().mean()
    return -hits.masked_fill(scores.isnan().any(), float("nan"))


def minus_f1(
    model: nn.Module,
    encoder: Encoder,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[str]],
    max_new_tokens: int,
    device: torch.device | str,
    asking: Asking = USUAL,
) -> Tensor:
    """Return minus the mean token F1 of the prompts' greedy continuations, 0-dim float32."""
    texts = generate(model, encoder, prompts, max_new_tokens, device, asking)
    mean = sum(map(best_f1, texts, answers)) / len(texts)
    return torch.tensor(-mean, dtype=torch.float32, device=device)
