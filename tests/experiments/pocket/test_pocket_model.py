"""The committed pocket model: that it is its recipe's, small, and reads and writes its world."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3ForCausalLM

from experiments.pocket import MODEL_DIR, generate
from experiments.pocket.pretrain import build, held_out_perplexity
from experiments.pocket.recipe import Recipe
from experiments.pocket.tasks import TASKS as POCKET_TASKS
from experiments.pocket.text import documents
from experiments.pocket.tokenizer import EOS_ID, PAD_ID, train_tokenizer
from experiments.tasks import get_task

MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return json.loads((MODEL_DIR / "recipe.json").read_text())


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(MODEL_DIR)


@pytest.fixture(scope="module")
def model() -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()


def test_the_record_is_of_the_recipe_in_the_code(record: dict[str, Any]) -> None:
    assert record["digest"] == Recipe().digest(), "text or recipe changed: run make pocket-model"


def test_config_is_the_recipes(model: Qwen3ForCausalLM, record: dict[str, Any]) -> None:
    expected = Recipe().model_config(EOS_ID, PAD_ID).to_dict()
    stored = json.loads((MODEL_DIR / "config.json").read_text())
    ours = {"architectures", "dtype", "transformers_version"}
    assert {k: v for k, v in stored.items() if k not in ours} == {
        k: v for k, v in expected.items() if k in stored and k not in ours
    }
    assert stored["architectures"] == ["Qwen3ForCausalLM"]
    assert model.get_input_embeddings().weight is model.lm_head.weight
    assert sum(p.numel() for p in model.parameters()) == record["parameters"] < 1_000_000


def test_tokenizer_is_rebuilt_token_by_token(tokenizer: PreTrainedTokenizerFast) -> None:
    recipe = Recipe()
    rebuilt = train_tokenizer(recipe.tokenizer_texts(), recipe.vocab_size, recipe.max_length)
    assert rebuilt.get_vocab() == tokenizer.get_vocab()
    assert len(tokenizer) == recipe.vocab_size
    text = next(documents(5))
    assert rebuilt.encode(text) == tokenizer.encode(text)


def test_held_out_perplexity_is_the_recorded_one(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, record: dict[str, Any]
) -> None:
    perplexity = held_out_perplexity(model, tokenizer, Recipe())
    assert perplexity == pytest.approx(record["held_out_perplexity"], rel=1e-3)
    assert perplexity < 0.05 * Recipe().vocab_size


def test_the_folder_is_small_and_complete() -> None:
    files = {path.name: path.stat().st_size for path in MODEL_DIR.iterdir()}
    assert set(files) == {
        "config.json", "generation_config.json", "model.safetensors", "recipe.json",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert sum(files.values()) <= 6 * MEBIBYTE


@pytest.mark.parametrize(
    "text", ["Mara lives in Ostby.\n", "Überall: 12 €\n\nno  such words", " great", "a\tb\r\n"]
)
def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_label_words_and_newline_are_single_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    for word in (" great", " terrible", "Yes", "No", "Maybe", "\n"):
        assert len(tokenizer.encode(word)) == 1
    for word in ("Yes", "No", "Maybe"):
        start = tokenizer.encode("is it?\n")
        assert tokenizer.encode(f"is it?\n{word}") == [*start, *tokenizer.encode(word)]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (EOS_ID, PAD_ID)


@pytest.mark.parametrize("task", sorted(POCKET_TASKS))
def test_prompts_are_short_and_their_words_mostly_whole_tokens(
    tokenizer: PreTrainedTokenizerFast, task: str
) -> None:
    source = get_task(task)
    rows = generate(task, "train", 200, 0)
    examples = [source.example(row) for row in rows]
    texts = [example.prompt + option for example in examples for option in example.options]
    lengths = [len(tokenizer.encode(text)) for text in texts]
    pieces = sum(len(tokenizer.encode(piece)) for t in texts for piece in _words(t))
    assert max(lengths) <= 110
    assert pieces < 1.25 * sum(len(_words(text)) for text in texts)


def _words(text: str) -> list[str]:
    """Return words with the space before them, and other characters singly."""
    return re.findall(r" ?\w+| ?[^\w\s]|\n", text)


@torch.no_grad()
def test_the_model_writes_its_world(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    prompt = "Mara lives in Ostby. She sells bread.\nQuestion: Where does Mara live?\n"
    out = model.generate(
        **tokenizer(prompt, return_tensors="pt"), max_new_tokens=20, do_sample=False
    )
    said = tokenizer.decode(out[0], skip_special_tokens=True)
    assert said.startswith(prompt)
    assert "\n" in said[len(prompt) :]


def test_a_rebuild_writes_a_loadable_folder_and_replaces_the_old_one(tmp_path: Path) -> None:
    tiny = replace(
        Recipe(), steps=2, warmup=1, batch=2, tokenizer_documents=300, held_out_blocks=2,
        vocab_size=320, hidden_size=32, intermediate_size=32, layers=1,
    )  # fmt: skip
    out = tmp_path / "model"
    (out / "stale").mkdir(parents=True)
    first = build(tiny, out, progress=False)
    weights = (out / "model.safetensors").read_bytes()
    again = build(tiny, out, progress=False)
    assert (out / "model.safetensors").read_bytes() == weights
    assert first["held_out_perplexity"] == again["held_out_perplexity"]
    assert first["digest"] != Recipe().digest()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert not (out / "stale").exists()
    Qwen3ForCausalLM.from_pretrained(out)
