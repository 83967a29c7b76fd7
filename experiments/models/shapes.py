"""Models of a true shape with random weights: speed and memory do not depend on their values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

SHAPES: dict[str, dict[str, Any]] = {
    "pocket": {
        "vocab_size": 1500,
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
    },
    "5m": {
        "vocab_size": 8192,
        "hidden_size": 192,
        "intermediate_size": 576,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 48,
    },
    "20m": {
        "vocab_size": 16_384,
        "hidden_size": 384,
        "intermediate_size": 1152,
        "num_hidden_layers": 8,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 64,
    },
    "60m": {
        "vocab_size": 32_768,
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 14,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
    },
    "smollm2-135m": {  # of Llama's architecture, the others are Qwen3's
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
    },
    "0.6b": {
        "vocab_size": 151_936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "1.7b": {
        "vocab_size": 151_936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "4b": {
        "vocab_size": 151_936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
}
LLAMA = ("smollm2-135m",)
DTYPES = ("float32", "bfloat16", "float16")


def build(shape: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Return a random model of the named shape with tied embeddings, in eval mode."""
    with made_on(dtype, device):
        if shape in LLAMA:
            made = LlamaForCausalLM(LlamaConfig(**SHAPES[shape], tie_word_embeddings=True))
        else:
            made = Qwen3ForCausalLM(Qwen3Config(**SHAPES[shape], tie_word_embeddings=True))
        return cast(nn.Module, made).eval()


@contextmanager
def made_on(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Make parameters where they are to be, in their dtype, from a fixed seed."""
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(default)


def parameters(model: nn.Module) -> int:
    """Count a model's parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
