"""Rebuild the pocket model: `python -m experiments.pocket.pretrain` (`make pocket-model`).

Trains the tokenizer and the weights on the world's text and replaces the model folder in one
rename at the end. The same machine and thread count give the same weights; elsewhere they agree
to what floating-point order allows, which the recorded held-out perplexity checks.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3ForCausalLM

from experiments.config.paths import user_path
from experiments.pocket import MODEL_DIR
from experiments.pocket.recipe import Recipe
from experiments.pocket.text import documents
from experiments.pocket.tokenizer import EOS_ID, PAD_ID, train_tokenizer


def blocks(
    tokenizer: PreTrainedTokenizerFast, recipe: Recipe, split: str = "pretrain"
) -> Iterator[Tensor]:
    """Yield rows of `recipe.block` tokens cut from the documents, each ended by eos."""
    row: list[int] = []
    for document in documents(recipe.seed, split):
        row += [*tokenizer.encode(document), EOS_ID]
        while len(row) >= recipe.block:
            yield torch.tensor(row[: recipe.block])
            row = row[recipe.block :]


@torch.no_grad()
def held_out_perplexity(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: Recipe
) -> float:
    """Return the perplexity per token of text the model was not trained on."""
    rows = torch.stack(list(islice(blocks(tokenizer, recipe, "held_out"), recipe.held_out_blocks)))
    losses = [model(part, labels=part, use_cache=False).loss.item() for part in rows.split(32)]
    return math.exp(sum(losses) / len(losses))


def train(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, progress: bool = True
) -> Qwen3ForCausalLM:
    """Train the weights: Muon for the layers' matrices, AdamW for the embedding and the norms.

    Both under a warm-up and a cosine decay to zero. (AdamW alone needs several times the tokens
    before the model relates a verdict to its review and an answer to its passage.)
    """
    torch.manual_seed(recipe.seed)
    model = Qwen3ForCausalLM(recipe.model_config(EOS_ID, PAD_ID))
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    optimizers = (
        torch.optim.Muon(matrices, lr=recipe.matrix_lr, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(others, lr=recipe.vector_lr, betas=(0.9, 0.95), weight_decay=0.0),
    )
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _lr_scale(recipe, step))
        for optimizer in optimizers
    ]
    rows, start = blocks(tokenizer, recipe), time.perf_counter()
    model.train()
    for step in range(1, recipe.steps + 1):
        batch = torch.stack(list(islice(rows, recipe.batch)))
        loss = model(batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        if progress and (step % 50 == 0 or step == recipe.steps):
            spent = time.perf_counter() - start
            left = spent / step * (recipe.steps - step)
            print(
                f"step {step}/{recipe.steps}  loss {loss.item():.3f}  "
                f"{step * recipe.batch * recipe.block / spent:,.0f} tokens/s  {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )
    return model.eval()


def _lr_scale(recipe: Recipe, step: int) -> float:
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def build(recipe: Recipe, out: Path, progress: bool = True) -> dict[str, object]:
    """Train tokenizer and model, write them to `out` in one rename, and return the record."""
    start = time.perf_counter()
    tokenizer = train_tokenizer(recipe.tokenizer_texts(), recipe.vocab_size, recipe.max_length)
    model = train(recipe, tokenizer, progress)
    record: dict[str, object] = {
        "digest": recipe.digest(),
        "recipe": asdict(recipe),
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": recipe.steps * recipe.batch * recipe.block,
        "held_out_perplexity": round(held_out_perplexity(model, tokenizer, recipe), 4),
        "command": "python -m experiments.pocket.pretrain",
        "threads": torch.get_num_threads(),
        "seconds": round(time.perf_counter() - start),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    new, old = out.with_name(f".{out.name}.new"), out.with_name(f".{out.name}.old")
    for folder in (new, old):
        shutil.rmtree(folder, ignore_errors=True)
    new.mkdir(parents=True)
    model.generation_config = GenerationConfig(eos_token_id=EOS_ID, pad_token_id=PAD_ID)
    model.save_pretrained(new)
    tokenizer.save_pretrained(new)
    (new / "recipe.json").write_text(json.dumps(record, indent=2) + "\n")
    if out.exists():
        os.rename(out, old)
    os.rename(new, out)
    shutil.rmtree(old, ignore_errors=True)
    return record


def main() -> None:
    """Parse the command line and rebuild the model folder."""
    parser = argparse.ArgumentParser(description="Rebuild the pocket model.")
    parser.add_argument("--out", type=user_path, default=MODEL_DIR, help="model folder to replace")
    parser.add_argument(
        "--steps", type=int, default=Recipe.steps, help="training steps (another recipe)"
    )
    parser.add_argument(
        "--threads", type=int, default=2, help="CPU threads (1 where other work shares the cores)"
    )
    arguments = parser.parse_args()
    for name in ("steps", "threads"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name}={getattr(arguments, name)}: expected at least 1")
    torch.set_num_threads(arguments.threads)
    record = build(replace(Recipe(), steps=arguments.steps), arguments.out)
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
