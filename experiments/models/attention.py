"""Attention of our own behind transformers' interface: torch's kernels, packed batches, and GQA.

    packed batch    spread to rows, torch's causal kernel, collected again (packing.py)
    float32 with    keys and values are repeated for their groups of queries first. CUDA has no
    grouped heads   fused float32 kernel for grouped heads; without this torch writes out the
                    (rows, heads, T, T) scores. CPU has one, so nothing is repeated there
    anything else   transformers' "sdpa", bit for bit

Any architecture that asks the interface for its attention and its masks can be run so.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from experiments.data.packing import ATTENTION, active, attended, can_pack


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **keywords: Any,
) -> tuple[Tensor, None]:
    """Return attention's output, (batch, T, heads, size), of query, key, value (batch, heads, ...).

    The signature is the interface's; see `transformers.AttentionInterface`.
    """
    layout = attended()
    if layout is not None:
        query, key, value = map(layout.spread, (query, key, value))
    groups: int = getattr(module, "num_key_value_groups", 1)
    caller: Any = module
    if groups > 1 and needs_repeat(query):
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
        caller = SimpleNamespace(is_causal=getattr(module, "is_causal", True))  # without groups
    output, _ = sdpa_attention_forward(caller, query, key, value, attention_mask, **keywords)
    return (output if layout is None else layout.collect(output)), None


def needs_repeat(query: Tensor) -> bool:
    """Tell whether torch has no fused kernel for grouped heads; a single query needs none."""
    return query.dtype == torch.float32 and query.device.type != "cpu" and query.shape[2] > 1


def mask(batch_size: int, q_length: int, kv_length: int, **keywords: Any) -> Tensor | None:
    """Return the mask that transformers' "sdpa" takes; of a packed batch the mask of its rows."""
    layout = active()
    if layout is not None:
        batch_size, q_length, kv_length = layout.rows, layout.width, layout.width
        keywords["attention_mask"] = None  # padding stands behind all tokens of its row
    return sdpa_mask(batch_size, q_length, kv_length, **keywords)


def install(model: nn.Module) -> bool:
    """Give a model that runs transformers' "sdpa" this attention; return whether it has it now."""
    if not isinstance(model, PreTrainedModel) or not model._supports_attention_backend:
        return False
    if model.config._attn_implementation == "sdpa" and model._can_set_attn_implementation():
        AttentionInterface.register(ATTENTION, attend)
        AttentionMaskInterface.register(ATTENTION, mask)
        model.set_attn_implementation(ATTENTION)
    return can_pack(model)
