"""The work that is measured: random token numbers, and two forms of the loss of their answers.

The last `answer` tokens of each row are its answer. There is no padding.

* `label_logits`: this library's forward. Logits at the answer's positions alone, no caches.
* `each_row`: the same of each row alone, as micro-batches.
* `full_logits`: published code's forward. Logits of all positions, a shifted copy of them,
  log-softmax over the whole vocabulary, key/value caches kept, as a model does by default.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agzo.distributed.pieces import Piece

Closure = Callable[[], Tensor]


def random_ids(model: nn.Module, batch: int, length: int, device: torch.device) -> Tensor:
    """Return the input, (batch, length) token numbers."""
    vocabulary = next(model.parameters()).shape[0]  # the embedding comes first
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocabulary, (batch, length), generator=generator).to(device)


def label_logits(model: nn.Module, ids: Tensor, answer: int = 1) -> Closure:
    """Return the closure with logits at the answer's positions alone."""
    length = ids.shape[1]
    positions = torch.arange(length - answer - 1, length - 1, device=ids.device)

    def closure() -> Tensor:
        logits = model(input_ids=ids, logits_to_keep=positions, use_cache=False).logits.float()
        log_probs = logits.gather(2, ids[:, -answer:, None]) - logits.logsumexp(2, keepdim=True)
        return -log_probs.mean()

    return closure


def each_row(model: nn.Module, ids: Tensor) -> list[Piece]:
    """Return the same loss of each row alone."""
    real = torch.ones_like(ids, dtype=torch.bool)
    return [
        Piece(label_logits(model, ids[i : i + 1]), real[i : i + 1], rows=i)
        for i in range(ids.shape[0])
    ]


def full_logits(model: nn.Module, ids: Tensor, answer: int = 1) -> Closure:
    """Return the closure that computes the logits of every position."""

    def closure() -> Tensor:
        output = model(input_ids=ids)  # held with its caches, as published code does
        shifted = output.logits[:, :-1].contiguous()
        labels = ids[:, 1:].clone()
        labels[:, :-answer] = -100
        return F.cross_entropy(shifted.view(-1, shifted.shape[-1]), labels.view(-1))

    return closure
