"""The two losses of the protocol, from logits at label positions only, reduced in float32.

    score(row)     = mean over the row's option tokens of log p(token | what is left of it)
    classification = mean over examples of -log softmax(scores of its options)[label]
    lm             = - mean over all option tokens of the batch of log p(token | ...)

No value is read back to the host here. Memory: logits (R, L, vocabulary), L the longest option;
of a packed batch (M, vocabulary), M the number of option tokens.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.data.batches import Batch, Rows
from experiments.data.packing import packed

KEYWORDS = frozenset(
    {"attention_mask", "position_ids", "logits_to_keep", "use_cache", "past_key_values"}
)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the batch's loss as a 0-dim float32 tensor (float64 for a float64 model)."""
    log_probs = option_log_probs(model, batch)
    if batch.loss == "lm":
        return -log_probs.sum() / batch.target_mask.sum()
    return classification_losses(mean_log_probs(log_probs, batch.target_mask), batch).mean()


def classification_losses(scores: Tensor, batch: Batch) -> Tensor:
    """Return the cross-entropy over its options for each example: (R, C) scores to (E,) losses."""
    return F.cross_entropy(by_option(scores, batch), batch.labels, reduction="none")


def by_option(scores: Tensor, batch: Batch) -> Tensor:
    """Arrange (R, C) scores as (E, O), -inf where an example has fewer options."""
    options = scores.flatten()[batch.option_rows]
    return options.masked_fill(batch.option_rows < 0, float("-inf")) if batch.ragged else options


def mean_log_probs(log_probs: Tensor, mask: Tensor) -> Tensor:
    """Average log-probabilities (R, L, C), zero outside `mask` (R, L), over L: to (R, C)."""
    return log_probs.sum(dim=1) / mask.sum(dim=1, keepdim=True)


def option_log_probs(model: nn.Module, rows: Rows) -> Tensor:
    """Return log p of each option token, (R, L, C), zero where a row's option is shorter."""
    logits = label_logits(model, rows)
    if rows.layout is None:
        return target_log_probs(logits, rows.targets, rows.target_mask)
    targets = rows.targets.flatten(0, 1)[rows.layout.options]  # (M, C)
    found = target_log_probs(logits, targets[None], torch.ones_like(targets[None, :, 0]))[0]
    every = found.new_zeros(rows.targets.flatten(0, 1).shape)
    return every.index_copy(0, rows.layout.options, found).view(rows.targets.shape)


def target_log_probs(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Return log p of `targets` (R, L, C), zero outside `mask` (R, L), from (R, L, V) logits."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_probs = logits.gather(2, targets) - logits.logsumexp(dim=2, keepdim=True)
    return log_probs * mask[..., None]


def label_logits(model: nn.Module, rows: Rows) -> Tensor:
    """Run the model and return the logits at the label positions, (R, L, vocabulary).

    Of packed rows they are those that predict an option's token, (1, M, vocabulary).

    A model whose forward takes `logits_to_keep` computes no others; from any other model all logits
    are taken and cut. Rows without padding are run without mask and positions, which are the
    model's defaults then; packed rows need a model with our attention (attention.py). The output
    is the logits tensor itself, or an object with `.logits`.
    """
    if rows.padded and rows.lengths is not None:
        return _by_length(model, rows, rows.lengths)
    accepted = accepted_keywords(model)
    kept = rows.label_positions.cpu() if spread(model) else rows.label_positions
    keywords: dict[str, Any] = {"logits_to_keep": kept, "use_cache": False}
    if rows.padded or rows.layout is not None:
        if "attention_mask" not in accepted:
            raise TypeError(
                f"{type(model).__name__}.forward takes no attention_mask, so rows of different "
                "lengths cannot share a batch; needed: an argument of that name, 1 at tokens"
            )
        keywords |= {"attention_mask": rows.attention_mask, "position_ids": rows.position_ids}
    with packed(rows.layout):
        output = model(rows.input_ids, **{k: v for k, v in keywords.items() if k in accepted})
    logits = output if isinstance(output, Tensor) else output.logits
    if "logits_to_keep" not in accepted:
        logits = logits[:, rows.label_positions]
    return logits


def _by_length(model: nn.Module, rows: Rows, lengths: Sequence[int]) -> Tensor:
    """Run the rows of each length by themselves, without padding; return all logits in order."""
    order: list[int] = []
    found: list[Tensor] = []
    for length in sorted(set(lengths)):
        own = [row for row, each in enumerate(lengths) if each == length]
        first = rows.input_ids.shape[1] - length
        columns = ("input_ids", "attention_mask", "token_mask", "position_ids")
        places = (rows.label_positions - first).clamp(min=0)  # before a row: of no option
        cut = {name: getattr(rows, name)[own, first:] for name in columns}
        part = replace(rows, **cut, label_positions=places, padded=False, lengths=None)
        order += own
        found.append(label_logits(model, part))
    places = torch.tensor(order, device=found[0].device).argsort()
    return torch.cat(found)[places]


def spread(model: nn.Module) -> bool:
    """Tell whether accelerate moves this model's hidden states between devices."""
    return hasattr(model, "_hf_hook")


def accepted_keywords(model: nn.Module) -> frozenset[str]:
    """Return which of the keywords above a model's forward takes.

    A wrapper that only hands its arguments on, `forward(*args, **kwargs)`, takes them all; one
    that names the model inside it, as PEFT's do with `get_base_model`, takes what that one takes.
    """
    return _accepted(type(wrapped(model)).forward)


def wrapped(model: nn.Module) -> Any:
    """Return the model inside PEFT's wrapper, the model itself where there is none."""
    return getattr(model, "get_base_model", lambda: model)()


@functools.cache
def _accepted(forward: Callable[..., Any]) -> frozenset[str]:
    parameters = inspect.signature(forward).parameters
    named = frozenset(name for name, p in parameters.items() if p.kind not in _VARIADIC)
    hands_on = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return KEYWORDS if hands_on and named <= {"self"} else named & KEYWORDS
