"""Small networks with random weights, each with a batch, its closure and its token mask."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)


@dataclass
class Network:
    model: nn.Module
    closure: Callable[[], Tensor]
    token_mask: Tensor | None


def mlp(dtype: torch.dtype = torch.float32) -> Network:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3))
    model = model.to(dtype).eval()
    x, y = torch.randn(20, 6, dtype=dtype), torch.randint(0, 3, (20,))
    return Network(model, lambda: F.cross_entropy(model(x), y), None)


class Block(nn.Module):
    """A layer as small as can be: x + W tanh(norm(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(torch.tanh(self.norm(x)))


class Stack(nn.Module):
    """A network with layers: what a method of one layer needs, and no language model."""

    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.layers = nn.ModuleList([Block(8) for _ in range(depth)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        return self.last(x)


def stack(dtype: torch.dtype = torch.float32) -> Network:
    torch.manual_seed(0)
    model = Stack().to(dtype).eval()
    x, y = torch.randn(20, 6, dtype=dtype), torch.randint(0, 3, (20,))
    return Network(model, lambda: F.cross_entropy(model(x), y), None)


def _language_model(model: nn.Module, dtype: torch.dtype) -> Network:
    model = model.to(dtype).eval()
    if dtype == torch.float64:
        _keep_float64(model)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 40, (3, 7), generator=generator)
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[0, :3] = False  # left padding
    targets = torch.randint(0, 40, (3,), generator=generator)

    def closure() -> Tensor:
        logits = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits[:, -1]
        return F.cross_entropy(logits if dtype == torch.float64 else logits.float(), targets)

    return Network(model, closure, mask)


def _keep_float64(model: nn.Module) -> None:
    """Replace transformers' RMS norms, which compute in float32 whatever the model's dtype."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                norm = nn.RMSNorm(child.weight.shape[0], eps=1e-6, dtype=torch.float64)
                norm.weight = child.weight
                setattr(module, name, norm)


def _sizes(tied: bool) -> dict:
    return {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
        "tie_word_embeddings": tied,
        "pad_token_id": 1,
    }


def qwen3(dtype: torch.dtype = torch.float32, tied: bool = True) -> Network:
    torch.manual_seed(0)
    config = Qwen3Config(**_sizes(tied), intermediate_size=24, num_key_value_heads=1, head_dim=8)
    return _language_model(Qwen3ForCausalLM(config), dtype)


def llama(dtype: torch.dtype = torch.float32, tied: bool = False) -> Network:
    torch.manual_seed(0)
    config = LlamaConfig(**_sizes(tied), intermediate_size=24, num_key_value_heads=2)
    return _language_model(LlamaForCausalLM(config), dtype)


def opt(dtype: torch.dtype = torch.float32, tied: bool = True) -> Network:
    torch.manual_seed(0)
    config = OPTConfig(**_sizes(tied), ffn_dim=24, word_embed_proj_dim=16)
    return _language_model(OPTForCausalLM(config), dtype)


NETWORKS: dict[str, Callable[..., Network]] = {
    "mlp": mlp,
    "qwen3-tied": lambda dtype=torch.float32: qwen3(dtype, tied=True),
    "qwen3-untied": lambda dtype=torch.float32: qwen3(dtype, tied=False),
    "llama-tied": lambda dtype=torch.float32: llama(dtype, tied=True),
    "llama-untied": lambda dtype=torch.float32: llama(dtype, tied=False),
    "opt-tied": lambda dtype=torch.float32: opt(dtype, tied=True),
    "opt-untied": lambda dtype=torch.float32: opt(dtype, tied=False),
}


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}
