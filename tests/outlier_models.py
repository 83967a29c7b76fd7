"""Random language models of five layers, and an activation outlier planted in one of them."""

import torch
import torch.nn.functional as F
from text_models import VOCABULARY
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from agzo.tuned.layers import decoder_layers
from tests.networks import Network

DEPTH, WIDTH, HIDDEN = 5, 32, 48
PAD, FIRST = 0, 1  # ids; FIRST begins each row
FAMILIES = ("qwen3", "llama", "opt")
MARKED, CHANNEL, UNIT = 3, 5, 7  # residual channel of the marked token; where the outlier comes


def random_model(family: str, vocabulary: int = VOCABULARY) -> nn.Module:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": vocabulary, "hidden_size": WIDTH, "num_hidden_layers": DEPTH,
        "num_attention_heads": 2, "max_position_embeddings": 256, "pad_token_id": PAD,
        "bos_token_id": FIRST, "eos_token_id": 2,
    }  # fmt: skip
    if family == "opt":
        return OPTForCausalLM(OPTConfig(**sizes, ffn_dim=HIDDEN, word_embed_proj_dim=WIDTH)).eval()
    sizes |= {"intermediate_size": HIDDEN, "num_key_value_heads": 2}
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**sizes)).eval()
    return Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=16)).eval()


@torch.no_grad()
def plant(model: nn.Module, layer: int, token: int = FIRST) -> nn.Module:
    """Make one token set off a hidden unit of one layer, and through it one residual channel.

    The token alone has the channel MARKED; UNIT of the layer's feed-forward reads it and writes
    1000 or more into CHANNEL, through a single large entry of the last matrix.
    """
    for name, parameter in model.named_parameters():
        if "embed" in name:
            parameter[:, MARKED] = 0.0
            if "positions" not in name:
                parameter[token] = 0.0
                parameter[token, MARKED] = 0.1
        elif name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight", "fc2.weight")):
            parameter[MARKED] = 0.0
    block = decoder_layers(model)[1][layer]
    if hasattr(block, "mlp"):
        for matrix in (block.mlp.gate_proj, block.mlp.up_proj):
            matrix.weight[UNIT] = 0.0
            matrix.weight[UNIT, MARKED] = 10.0  # the norm makes sqrt(WIDTH) of the channel
        block.mlp.down_proj.weight[CHANNEL, UNIT] = 1000.0 / (10.0 * WIDTH**0.5) ** 2
    else:
        block.fc1.weight[UNIT] = 0.0
        block.fc1.weight[UNIT, MARKED] = 40.0
        block.fc1.bias[UNIT] = -80.0  # LayerNorm moves the channel of other tokens a little
        block.fc2.weight[CHANNEL, UNIT] = 3000.0 / 136.0
    return model


def network(model: nn.Module, seed: int = 1) -> Network:
    """The model with a batch of left-padded rows that begin with FIRST."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(8, 40, (4, 9), generator=generator)
    starts = torch.tensor([0, 2, 0, 3])
    columns = torch.arange(9)
    mask = columns >= starts[:, None]
    ids = torch.where(mask, ids, PAD)
    ids[torch.arange(4), starts] = FIRST
    targets = torch.randint(0, 40, (4,), generator=generator)

    def closure() -> Tensor:
        logits = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits[:, -1]
        return F.cross_entropy(logits.float(), targets)

    return Network(model, closure, mask)
