"""The pocket model's recipe: every number that decides its weights, and what identifies them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain, islice, repeat

from transformers import Qwen3Config

from experiments.pocket.text import BAD_WORDS, GOOD_WORDS, RARE_WORDS, documents


@dataclass(frozen=True)
class Recipe:
    """Shape, text and schedule of the pre-training."""

    version: int = 2
    seed: int = 0  # of the text, the weights' initialisation and the order of the blocks
    vocab_size: int = 1504
    tokenizer_documents: int = 20_000
    hidden_size: int = 96
    intermediate_size: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    max_length: int = 2048
    block: int = 128  # tokens per training row
    batch: int = 18  # rows per step
    steps: int = 5000
    warmup: int = 100
    matrix_lr: float = 0.02  # Muon, for the layers' matrices
    vector_lr: float = 3e-3  # AdamW, for the embedding and the norms
    weight_decay: float = 0.01  # of the matrices
    held_out_blocks: int = 256

    def model_config(self, eos: int, pad: int) -> Qwen3Config:
        """Return the transformers config of the pocket model."""
        return Qwen3Config(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            max_position_embeddings=self.max_length,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=eos,
            pad_token_id=pad,
        )

    def tokenizer_texts(self) -> Iterator[str]:
        """Yield what the tokenizer learns from: documents, and rare words often enough."""
        rare = "\n".join((" ".join(("", *GOOD_WORDS, *BAD_WORDS)), *RARE_WORDS))
        return chain(islice(documents(self.seed), self.tokenizer_documents), repeat(rare, 1000))

    def digest(self) -> str:
        """Return a hash of these numbers and of the first documents of the text they train on."""
        record = {"recipe": asdict(self), "text": list(islice(documents(self.seed), 2000))}
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
