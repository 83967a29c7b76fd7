"""Prompts of real lengths with random tokens: what a run on SST-2 or RTE hands to a model.

    short   16 prompts as long as SST-2's, 234 tokens in all
    long    16 prompts as long as RTE's, 1,376 tokens in all

`LENGTHS` are 16 quantiles, (i + 1/2) / 16, of the tokens of a training prompt with its one-token
option cut off, by SmolLM2's tokenizer and this library's templates (the first 4,000 examples of
SST-2, all 2,490 of RTE). So the benchmark needs no download.

* `packed`: as a run does it. One row for both options, rows packed, logits where options are.
* `each_alone`: the same, a micro-batch of each prompt.
* `padded`: as published code does it. A row for each option, padded on the left to the longest,
  and the logits of all positions, of which a log-softmax over the whole vocabulary is taken.
"""

from __future__ import annotations

import random
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agzo.distributed.pieces import Piece
from experiments.bench.losses import Closure
from experiments.data.batches import Batch, collate
from experiments.data.encode import Encoded
from experiments.data.shares import pieces
from experiments.models.attention import install
from experiments.models.loss import classification_losses, loss, mean_log_probs
from experiments.tasks import get_task

LENGTHS: dict[str, tuple[int, ...]] = {
    "short": (5, 6, 6, 7, 8, 9, 10, 11, 12, 14, 16, 18, 21, 24, 29, 38),
    "long": (40, 46, 51, 55, 59, 62, 65, 69, 73, 78, 83, 94, 114, 138, 157, 192),
}
PAD = 0


def packed(model: nn.Module, mix: str, device: torch.device) -> tuple[Closure, Tensor]:
    """Return the loss of this library's batch, and its token mask."""
    if not install(model):
        raise ValueError(f"{type(model).__name__}: its attention cannot be packed")
    batch = _batch(model, mix, device, packs=True)
    return lambda: loss(model, batch), batch.token_mask


def each_alone(model: nn.Module, mix: str, device: torch.device) -> list[Piece]:
    """Return the losses of this library's micro-batches of one prompt."""
    batch, count = (
        _batch(model, mix, torch.device("cpu"), packs=False, share=True),
        len(LENGTHS[mix]),
    )
    alone = [range(i, i + 1) for i in range(count)]
    return pieces(partial(loss, model), batch, alone, True, device, lambda mask: mask)


def padded(model: nn.Module, mix: str, device: torch.device) -> tuple[Closure, Tensor]:
    """Return the loss of published code's batch, and its token mask."""
    batch = _batch(model, mix, device, packs=False)
    return published(model, batch), batch.token_mask


def published(model: nn.Module, batch: Batch) -> Closure:
    """Return the loss of a padded batch with a row for each option, as published code takes it."""
    last = batch.target_mask.shape[1]  # tokens of the longest option

    def closure() -> Tensor:
        output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        log_probs = F.log_softmax(output.logits[:, :-1].contiguous().float(), dim=-1)
        options = log_probs[:, -last:].gather(2, batch.targets) * batch.target_mask[..., None]
        return classification_losses(mean_log_probs(options, batch.target_mask), batch).mean()

    return closure


def _batch(
    model: nn.Module, mix: str, device: torch.device, packs: bool, share: bool | None = None
) -> Batch:
    vocabulary = next(model.parameters()).shape[0]  # the embedding comes first
    draw = random.Random(0)
    encoded = []
    for length in LENGTHS[mix]:
        prompt = [draw.randrange(1, vocabulary) for _ in range(length)]
        ids = tuple([*prompt, option] for option in (1, 2))
        encoded.append(Encoded(ids, (1, 1), draw.randrange(2), truncated=False))
    pack_from = 0.0 if packs else None
    return collate(
        encoded,
        get_task("sst2"),
        PAD,
        device,
        share=packs if share is None else share,
        pack_from=pack_from,
    )
