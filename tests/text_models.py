"""A byte-level tokenizer made on the spot, and random language models with its vocabulary."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SPECIALS = ["<pad>", "<s>", "</s>"]
VOCABULARY = 256 + len(SPECIALS)


def byte_tokenizer(bos: bool = False, eos_behind: bool = False) -> PreTrainedTokenizerFast:
    """One token a byte, so that lengths can be counted by hand; ids are stable."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIALS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos or eos_behind:
        template = ("<s> " if bos else "") + "$A" + (" </s>" if eos_behind else "")
        specials = [("<s>", 1), ("</s>", 2)]
        tokenizer.post_processor = processors.TemplateProcessing(template, None, specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def random_model(family: str, seed: int = 0, scale: float = 1.0) -> nn.Module:
    """A two-layer model of a family, in eval mode, with logits that are far from flat."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.2 * scale,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if family == "qwen3":
        config = Qwen3Config(**sizes, intermediate_size=48, num_key_value_heads=1, head_dim=16)
        return Qwen3ForCausalLM(config).eval()
    if family == "llama":
        config = LlamaConfig(**sizes, intermediate_size=48, num_key_value_heads=2)
        return LlamaForCausalLM(config).eval()
    if family == "mistral":  # a sliding window
        config = MistralConfig(
            **sizes, intermediate_size=48, num_key_value_heads=1, head_dim=16, sliding_window=6
        )
        return MistralForCausalLM(config).eval()
    if family == "gpt_neo":  # attention by columns, not positions; every other layer is local
        config = GPTNeoConfig(
            num_layers=sizes.pop("num_hidden_layers"), num_heads=sizes.pop("num_attention_heads"),
            **sizes, intermediate_size=48, window_size=6,
            attention_types=[[["global", "local"], 1]],
        )  # fmt: skip
        return GPTNeoForCausalLM(config).eval()
    if family == "gpt2":
        return GPT2LMHeadModel(GPT2Config(**sizes)).eval()
    sizes["init_std"] = sizes.pop("initializer_range")
    return OPTForCausalLM(OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32)).eval()


FAMILIES = ("qwen3", "llama", "opt")
SCORED_FAMILIES = (*FAMILIES, "mistral", "gpt_neo")
