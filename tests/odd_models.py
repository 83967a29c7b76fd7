"""Tiny random models of architectures that do not do what most do, in the byte vocabulary."""

import torch
import transformers as t
from text_models import VOCABULARY
from torch import nn

SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 256, "initializer_range": 0.2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
BART = {
    "vocab_size": VOCABULARY, "d_model": 32, "decoder_layers": 2, "encoder_layers": 1,
    "decoder_attention_heads": 2, "encoder_attention_heads": 2, "decoder_ffn_dim": 48,
    "encoder_ffn_dim": 48, "max_position_embeddings": 256, "init_std": 0.2, "is_decoder": True,
    "is_encoder_decoder": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_ssm": 64, "mamba_d_state": 8,
         "mamba_n_groups": 1, "mamba_chunk_size": 8}  # fmt: skip

ENCODERS = {
    "bert": lambda: t.BertLMHeadModel(t.BertConfig(**SIZES)),
    "roberta": lambda: t.RobertaForCausalLM(t.RobertaConfig(**SIZES)),
    "electra": lambda: t.ElectraForCausalLM(t.ElectraConfig(**SIZES, embedding_size=32)),
}
ONE_LENGTH = {  # padding beside a row changes what they say of it
    "rwkv": lambda: t.RwkvForCausalLM(
        t.RwkvConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2,
                     attention_hidden_size=32, context_length=256)
    ),
    "recurrent_gemma": lambda: t.RecurrentGemmaForCausalLM(
        t.RecurrentGemmaConfig(**{**SIZES, "num_hidden_layers": 3}, num_key_value_heads=1,
                               attention_window_size=8, lru_width=32)
    ),
    "roberta": lambda: t.RobertaForCausalLM(t.RobertaConfig(**SIZES, is_decoder=True)),
    "bart": lambda: t.BartForCausalLM(t.BartConfig(**BART)),
}  # fmt: skip
NO_COPIES = {  # options cannot go on from copies of their prompt's cache
    "falcon_h1": lambda: t.FalconH1ForCausalLM(
        t.FalconH1Config(**SIZES, **MAMBA, num_key_value_heads=1, head_dim=16)
    ),
    "minimax": lambda: t.MiniMaxForCausalLM(
        t.MiniMaxConfig(**SIZES, num_key_value_heads=1, head_dim=16, num_local_experts=2,
                        layer_types=["linear_attention", "full_attention"], block_size=8)
    ),
}  # fmt: skip
OTHERS = {
    "mamba": lambda: t.MambaForCausalLM(
        t.MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4)
    ),
    "falcon": lambda: t.FalconForCausalLM(
        t.FalconConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2,
                       num_attention_heads=2, initializer_range=0.2)
    ),
    "doge": lambda: t.DogeForCausalLM(t.DogeConfig(**SIZES, num_key_value_heads=1)),
    "gemma3": lambda: t.Gemma3ForConditionalGeneration(
        t.Gemma3Config(
            text_config=t.Gemma3TextConfig(**SIZES, num_key_value_heads=1, head_dim=16).to_dict(),
            vision_config={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
                           "num_attention_heads": 2, "image_size": 8, "patch_size": 4},
            mm_tokens_per_image=4,
            image_token_index=250, boi_token_index=251, eoi_token_index=252,
        )
    ),
}  # fmt: skip


def odd_model(family: dict, name: str, seed: int = 0) -> nn.Module:
    """A model in eval mode whose logits are far from flat, so that a fault is far from rounding."""
    torch.manual_seed(seed)
    model = family[name]().eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and parameter.std() < 0.15:
                parameter.normal_(0, 0.2, generator=generator)
    return model
