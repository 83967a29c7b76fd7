"""Prompts, options and their token ids: written-out fixtures of all tasks, and every real row.

`fixtures/prompts/<task>.json` holds invented rows with the texts a person wrote down from MeZO's
formats, and the Qwen3 ids of those texts, computed without this repository's code: the option's ids
are those of prompt + option without the first len(ids(prompt)).
"""

import hashlib
import json
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest

from experiments.data.encode import Encoder
from experiments.tasks import TASKS, Example

PUBLISHED = [name for name, task in TASKS.items() if task.hub]  # of the protocol
FIXTURES = Path(__file__).parents[2] / "fixtures" / "prompts"
WIDE = 8192  # max_length that cuts no real row
TOKENISED = 1500  # rows per split that are also tokenised; all rows pass the task's own checks
CUT = 60  # of these, rows per split that are cut to a short max_length


def fixture(task: str) -> list[dict[str, Any]]:
    return json.loads((FIXTURES / f"{task}.json").read_text(encoding="utf-8"))


def made(task: str) -> list[Example]:
    return [TASKS[task].example(case["row"]) for case in fixture(task)]


@pytest.fixture(scope="session")
def qwen3(shared: Path):
    from transformers import AutoTokenizer

    folder = shared / "models" / "qwen3-tokenizer"
    if not folder.is_dir():
        pytest.skip(f"no Qwen3 tokenizer in {folder}")
    for name, known in json.loads((FIXTURES / "tokenizer.json").read_text())["sha256"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == known, name
    return AutoTokenizer.from_pretrained(folder)


# Invented rows


@pytest.mark.parametrize("task", PUBLISHED)
def test_texts_are_the_ones_written_down(task: str):
    assert len(fixture(task)) >= 2
    for case, example in zip(fixture(task), made(task), strict=True):
        assert example == Example(
            case["prompt"],
            tuple(case["options"]),
            case["label"],
            tuple(case["answers"]),
            tuple(case["correct"]),
        )


@pytest.mark.parametrize("task", PUBLISHED)
def test_ids_are_the_ones_computed_elsewhere(task: str, qwen3):
    encoder = Encoder(qwen3, WIDE)
    for case, example in zip(fixture(task), made(task), strict=True):
        encoded = encoder.encode(example)
        rows = [case["prompt_ids"] + option for option in case["option_ids"]]
        assert list(encoded.ids) == rows
        assert list(encoded.option_lengths) == [len(option) for option in case["option_ids"]]
        assert encoded.label == (case["label"] or 0)
        assert not encoded.truncated
        assert encoder.encode_prompt(example, 50).ids == case["prompt_ids"]


def test_fixtures_cover_every_task_and_nothing_else():
    assert {path.stem for path in FIXTURES.glob("*.json")} == {*PUBLISHED, "tokenizer"}


# Real rows


def real_examples(shared: Path, task: str, split: str) -> list[Example]:
    path = shared / "data" / task / f"{split}.jsonl"
    if not path.is_file():
        pytest.skip(f"no real rows in {path}")
    with path.open(encoding="utf-8") as lines:
        return [TASKS[task].example(json.loads(line), f"line {i}") for i, line in enumerate(lines)]


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("task", PUBLISHED)
def test_real_rows_become_examples(shared: Path, task: str, split: str):
    generation = TASKS[task].kind == "generation"
    for example in real_examples(shared, task, split):
        assert example.prompt == example.prompt.strip(" ") != ""
        assert all(option.strip() and not option.endswith(" ") for option in example.options)
        assert len(set(example.options)) == len(example.options)
        if generation:
            assert example.label is None
            assert example.options == (f" {example.answers[0]}\n",)
        else:
            assert example.label in range(len(example.options))
            assert not example.answers
        if task == "record":
            assert example.label in example.correct
            assert set(example.correct) <= set(range(len(example.options)))
        else:
            assert not example.correct


LONG = ("boolq", "drop", "multirc", "record", "squad")  # rows of hundreds of tokens


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize(
    "task",
    [pytest.param(task, marks=pytest.mark.slow if task in LONG else []) for task in PUBLISHED],
)
def test_real_rows_in_tokens(shared: Path, qwen3, task: str, split: str):
    examples = real_examples(shared, task, split)[:TOKENISED]
    encoded = Encoder(qwen3, WIDE).encode_all(examples)
    starts, ends, prompts, options = [], [], [], []
    for example, rows in zip(examples, encoded, strict=True):
        assert not rows.truncated
        assert min(rows.option_lengths) >= 1
        for option, ids, n in zip(example.options, rows.ids, rows.option_lengths, strict=True):
            starts.append(ids[:-n])
            ends.append(ids[-n:])
            prompts.append(normalize("NFC", example.prompt))  # as the tokenizer does first
            options.append(normalize("NFC", option))
    # No token straddles the border, so the option's tokens are the option's text and no more.
    assert qwen3.batch_decode(ends) == options
    assert qwen3.batch_decode(starts) == prompts


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("task", PUBLISHED)
def test_real_rows_cut_short_keep_their_option(shared: Path, qwen3, task: str, split: str):
    examples = real_examples(shared, task, split)[:CUT]
    whole = Encoder(qwen3, WIDE).encode_all(examples)
    room = max(n for rows in whole for n in rows.option_lengths) + 5
    cut = Encoder(qwen3, room).encode_all(examples)
    assert any(rows.truncated for rows in cut)
    for before, after in zip(whole, cut, strict=True):
        assert after.option_lengths == before.option_lengths
        assert list(after.ids) == [ids[-room:] for ids in before.ids]
        assert after.truncated == any(len(ids) > room for ids in before.ids)
