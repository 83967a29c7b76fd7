"""Greedy generation in left-padded batches with a key-value cache, until a newline is decoded.

A loop of its own, because `model.generate` obeys sampling settings that come with a model's files
(temperature, repetition penalty), and because the stop is a matter of text: in many vocabularies
punctuation and newline are one token, so no token id can be waited for.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from experiments.data.batches import pad_left
from experiments.data.encode import Encoder
from experiments.evaluation.asking import USUAL, Asking
from experiments.models.loss import accepted_keywords

STOP = "\n"


@torch.no_grad()
def generate(
    model: nn.Module,
    encoder: Encoder,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    device: torch.device | str = "cpu",
    asking: Asking = USUAL,
) -> list[str]:
    """Continue one batch of prompts; return the stripped text up to the first newline or end.

    A row is done at a newline, an end-of-text token or `max_new_tokens`; the batch stops when every
    row is done. Memory: the keys and values of all rows for prompt + new tokens.
    """
    accepted = accepted_keywords(model)
    if "past_key_values" not in accepted:
        raise TypeError(
            f"{type(model).__name__}.forward takes no past_key_values; "
            "needed: a causal language model of transformers, for a generation task"
        )
    if not asking.padded and len(lengths := {len(prompt) for prompt in prompts}) > 1:
        made: dict[int, str] = {}
        for length in sorted(lengths):
            own = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
            same = [prompts[i] for i in own]
            texts = generate(model, encoder, same, max_new_tokens, device)
            made |= dict(zip(own, texts, strict=True))
        return [made[i] for i in range(len(prompts))]
    ends = end_ids(model, encoder)
    ids, token_mask, positions = (t.to(device) for t in pad_left(prompts, encoder.pad_id))
    mask = token_mask.long()
    keywords: dict[str, Any] = {"use_cache": True}
    if "logits_to_keep" in accepted:
        keywords["logits_to_keep"] = 1
    new: list[list[int]] = [[] for _ in prompts]
    texts = [""] * len(new)
    running = set(range(len(new)))
    for _ in range(max_new_tokens):
        if "position_ids" in accepted:
            keywords["position_ids"] = positions
        output = model(ids, attention_mask=mask, **keywords)
        chosen: Tensor = output.logits[:, -1].argmax(dim=-1)  # (R,)
        for row, token in enumerate(chosen.tolist()):
            if row in running:
                if token not in ends:
                    new[row].append(token)
                    texts[row] = encoder.decode(new[row])
                if token in ends or STOP in texts[row]:
                    running.remove(row)
        if not running:
            break
        ids = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(len(new), 1)], dim=1)
        positions = positions[:, -1:] + 1
        keywords["past_key_values"] = output.past_key_values
    return [text.split(STOP)[0].strip() for text in texts]


def end_ids(model: nn.Module, encoder: Encoder) -> set[int]:
    """Return the ids that end a text: the tokenizer's and the model's own."""
    settings = getattr(model, "generation_config", None)
    ends = [encoder.tokenizer.eos_token_id, getattr(settings, "eos_token_id", None)]
    return {
        end
        for entry in ends
        for end in (entry if isinstance(entry, list) else [entry])
        if isinstance(end, int)
    }
