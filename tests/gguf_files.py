"""A small random Llama as a GGUF file: what llama.cpp's converter writes, for tests."""

from pathlib import Path

import gguf
import numpy as np
import torch

WORDS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefghijklmnop"]
SIZES = {"hidden": 32, "inner": 64, "heads": 4, "kv_heads": 2, "layers": 2}


def write(path: Path, quantised: bool = True, architecture: str = "llama") -> Path:
    """Write the file: linear weights in 8-bit blocks if `quantised`, the rest in float32."""
    generator = torch.Generator().manual_seed(0)
    writer = gguf.GGUFWriter(str(path), architecture)
    hidden, inner = SIZES["hidden"], SIZES["inner"]
    writer.add_context_length(128)
    writer.add_embedding_length(hidden)
    writer.add_block_count(SIZES["layers"])
    writer.add_feed_forward_length(inner)
    writer.add_head_count(SIZES["heads"])
    writer.add_head_count_kv(SIZES["kv_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(hidden // SIZES["heads"])
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(WORDS)
    writer.add_token_scores([-float(i) for i in range(len(WORDS))])
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * (len(WORDS) - 259)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)

    def add(name: str, *shape: int, ones: bool = False) -> None:
        values = torch.randn(shape, generator=generator) * 0.1
        array = np.ones(shape, np.float32) if ones else values.numpy()
        if quantised and len(shape) == 2:
            packed = gguf.quantize(array, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, array)

    add("token_embd.weight", len(WORDS), hidden)
    add("output.weight", len(WORDS), hidden)
    add("output_norm.weight", hidden, ones=True)
    keys = hidden * SIZES["kv_heads"] // SIZES["heads"]
    for layer in range(SIZES["layers"]):
        block = f"blk.{layer}"
        add(f"{block}.attn_norm.weight", hidden, ones=True)
        add(f"{block}.ffn_norm.weight", hidden, ones=True)
        add(f"{block}.attn_q.weight", hidden, hidden)
        add(f"{block}.attn_k.weight", keys, hidden)
        add(f"{block}.attn_v.weight", keys, hidden)
        add(f"{block}.attn_output.weight", hidden, hidden)
        add(f"{block}.ffn_gate.weight", inner, hidden)
        add(f"{block}.ffn_up.weight", inner, hidden)
        add(f"{block}.ffn_down.weight", hidden, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
