"""The generated data sets: the hub's fields, deterministic, disjoint, balanced, learnable."""

from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise
from random import Random
from typing import Any

import pytest

from experiments.pocket import generate
from experiments.pocket.facts import PERSON, TOWN, Fact, Relation
from experiments.pocket.reviews import draw_review
from experiments.pocket.splits import SPLITS, TEXT, part_of
from experiments.pocket.tasks import TASKS
from experiments.pocket.text import documents
from experiments.pocket.words import TOWNS

Row = dict[str, Any]

FIELDS = {
    "sst2": {"idx": int, "sentence": str, "label": int},
    "rte": {"idx": int, "premise": str, "hypothesis": str, "label": int},
    "squad": {"id": str, "title": str, "context": str, "question": str, "answers": dict},
}
OPTION_TASKS = ("sst2", "rte")
every_task = pytest.mark.parametrize("task", sorted(TASKS))
every_split = pytest.mark.parametrize("split", SPLITS)


def text_of(row: Row) -> tuple[str, ...]:
    """Return what a model sees of a row, without its identity and label."""
    return tuple(str(v) for k, v in row.items() if k not in ("idx", "id", "label", "answers"))


def test_every_task_has_its_fields_listed_here() -> None:
    assert set(FIELDS) == set(TASKS)


@every_task
@every_split
def test_rows_have_the_hubs_fields(task: str, split: str) -> None:
    rows = generate(task, split, 60, seed=1)
    assert len(rows) == 60
    for index, row in enumerate(rows):
        assert {key: type(value) for key, value in row.items()} == FIELDS[task]
        assert row.get("idx", index) == index
        assert row.get("label", 0) in (0, 1)
    assert len({row.get("id", index) for index, row in enumerate(rows)}) == 60


@every_task
def test_fields_match_the_real_data(task: str, shared: Any) -> None:
    import json

    with (shared / "data" / task / "validation.jsonl").open() as lines:
        real = json.loads(next(lines))
    assert {k: type(v) for k, v in real.items()} == FIELDS[task]


@every_task
def test_rows_are_a_function_of_the_arguments(task: str) -> None:
    assert generate(task, "train", 50, 3) == generate(task, "train", 50, 3)
    assert generate(task, "train", 50, 3) == generate(task, "train", 80, 3)[:50]
    assert generate(task, "train", 50, 3) != generate(task, "train", 50, 4)


@every_task
def test_splits_are_disjoint_and_rows_unique(task: str) -> None:
    train = [text_of(row) for row in generate(task, "train", 2000, 0)]
    validation = [text_of(row) for row in generate(task, "validation", 1000, 1)]
    assert len(set(train)) > 0.99 * len(train)  # one text may carry two rows, never two labels
    assert not set(train) & set(validation)
    key = TASKS[task].key
    for split in SPLITS:
        assert {part_of(key(row)) for row in generate(task, split, 100, 2)} == {split}


@pytest.mark.parametrize("task", OPTION_TASKS)
@pytest.mark.parametrize("n", [1, 101, 500])
def test_labels_are_balanced_and_unordered(task: str, n: int) -> None:
    labels = [row["label"] for row in generate(task, "validation", n, 0)]
    counts = Counter(labels)
    assert abs(counts[0] - counts[1]) == n % 2
    if n == 500:
        repeats = sum(a == b for a, b in pairwise(labels))
        assert 0.15 * n < repeats < 0.35 * n  # shuffled blocks of two: a quarter repeat


def one_rule(train: list[Row], test: list[Row], features: Any) -> float:
    """Return the test accuracy of the best "label by one feature's majority" rule."""
    counts: dict[str, Counter[int]] = {}
    for row in train:
        for feature in features(row):
            counts.setdefault(feature, Counter())[row["label"]] += 1
    scores = [0.0]
    for feature, count in counts.items():
        if sum(count.values()) >= 50:
            label = count.most_common(1)[0][0]
            right = sum((feature in features(row)) == (row["label"] == label) for row in test)
            scores.append(right / len(test))
    return max(scores)


@pytest.mark.parametrize("task", OPTION_TASKS)
def test_no_single_word_or_length_gives_the_label(task: str) -> None:
    train, test = generate(task, "train", 1500, 0), generate(task, "validation", 500, 0)

    def features(row: Row) -> set[str]:
        words = " ".join(text_of(row)).split()
        return {*words, f"length {len(words)}"}

    assert one_rule(train, test, features) < 0.62


def test_rte_cannot_be_told_from_the_hypothesis_or_the_overlap() -> None:
    rows = generate("rte", "train", 2000, 0)

    def overlap(row: Row) -> int:
        return len(set(row["hypothesis"].split()) - set(row["premise"].split()))

    for label in (0, 1):
        mean = sum(overlap(r) for r in rows if r["label"] == label) / 1000
        assert 0.5 < mean < 5
    cut = max(
        sum((overlap(r) >= k) == (r["label"] == 1) for r in rows) / len(rows) for k in range(6)
    )
    assert cut < 0.7


def test_rte_cannot_be_told_from_the_number_of_denials() -> None:
    counts = {0: Counter[int](), 1: Counter[int]()}
    for row in generate("rte", "train", 2000, 0):
        counts[row["label"]][row["premise"].count(" not ")] += 1
    right = sum(max(counts[0][k], counts[1][k]) for k in counts[0] | counts[1])
    assert right / 2000 < 0.56


def test_sentiment_follows_from_the_worlds_rule_and_is_hard_for_word_counts() -> None:
    rng = Random(0)
    known = {r.text: r.label for r in (draw_review(rng) for _ in range(60_000))}
    rows = generate("sst2", "train", 3000, 0)
    both = [(known[r["sentence"]], r["label"]) for r in rows if r["sentence"] in known]
    assert len(both) > 100
    assert all(a == b for a, b in both)

    test = generate("sst2", "validation", 500, 0)
    weight: Counter[str] = Counter()
    for row in rows:
        weight.update({word: 2 * row["label"] - 1 for word in set(row["sentence"].split())})
    seen = Counter(word for row in rows for word in set(row["sentence"].split()))
    score = [sum(weight[w] / (seen[w] + 5) for w in r["sentence"].split()) for r in test]
    right = sum((s > 0) == (r["label"] == 1) for s, r in zip(score, test, strict=True)) / 500
    assert 0.65 < right < 0.92  # learnable from the words, but not from them alone


def facts_in(text: str, subject: str, relations: tuple[Relation, ...]) -> set[tuple[str, str]]:
    """Read (relation, value) pairs back out of a passage by the world's own phrasings."""
    found = set()
    for sentence in text.removesuffix(".").replace(". ", ".|").split("|"):
        for relation in relations:
            for template in relation.statements:
                for name in (subject, "she", "he", "it"):
                    start, end = Fact(relation, name, "\0").render(template).split("\0")
                    body = sentence if sentence.endswith(".") else sentence + "."
                    value = body[len(start) : len(body) - len(end)]
                    if start + value + end == body and " of " not in value:
                        found.add((relation.name, value))
    return found


def test_entailment_follows_from_the_premise() -> None:
    for row in generate("rte", "train", 300, 0):
        subject = subject_of(row["premise"])
        relations = TOWN if subject in TOWNS else PERSON
        claimed = facts_in(row["hypothesis"], subject, relations)
        assert claimed
        entailed = bool(claimed & facts_in(row["premise"], subject, relations))
        assert entailed == (row["label"] == 0), row


def subject_of(passage: str) -> str:
    """Return the name of the person or town that a passage is about."""
    return passage.split()[0]


def test_answers_are_spans_that_the_question_asks_for() -> None:
    for row in generate("squad", "validation", 300, 0):
        (answer,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
        assert row["context"][start:].startswith(answer)
        subject = row["title"].replace("_", " ")
        relations = TOWN if subject in TOWNS else PERSON
        asked = {r.name for r in relations if row["question"] in _questions(r, subject)}
        said = {
            value for name, value in facts_in(row["context"], subject, relations) if name in asked
        }
        assert said == {answer}


def _questions(relation: Relation, subject: str) -> list[str]:
    return [question.format(s=subject) for question in relation.questions]


def test_pretraining_text_shares_no_row_with_the_tasks() -> None:
    text = list(islice(documents(0), 4000))
    passages = {line for document in text for line in document.split("\n")}
    assert any(part_of(passage) == TEXT for passage in passages)
    for task in TASKS.values():
        for split in SPLITS:
            keys = {task.key(row) for row in generate(task.name, split, 1000, 0)}
            assert not keys & passages
    sentences = {f"{part} ." for d in text if d[0].islower() for part in d.split(" . ")}
    reviews = {s for s in sentences if " the " in f" {s}" and "it was" not in s}
    drawn = {r["sentence"] for split in SPLITS for r in generate("sst2", split, 3000, 0)}
    assert len(reviews) > 500
    assert not reviews & drawn


@pytest.mark.parametrize(
    "forbidden", ["It was great", "It was terrible", "\nAnswer:", '" is true? Yes or No?']
)
def test_pretraining_text_holds_no_prompt_with_its_answer(forbidden: str) -> None:
    for document in islice(documents(0), 6000):
        if forbidden.startswith("It was") and not document[0].islower():
            continue  # notices about food judge with these words; they are not reviews
        assert forbidden not in document


@pytest.mark.parametrize(
    ("task", "split", "n", "words"),
    [
        ("sst3", "train", 5, ["task='sst3'", "'sst2'"]),
        ("sst2", "test", 5, ["split='test'", "'validation'"]),
        ("rte", "train", 0, ["n=0", "at least 1"]),
        ("rte", "train", -3, ["n=-3", "at least 1"]),
    ],
)
def test_bad_requests_name_the_value_and_what_is_allowed(
    task: str, split: str, n: int, words: list[str]
) -> None:
    with pytest.raises(ValueError, match=r"pocket") as error:
        generate(task, split, n, 0)
    assert all(word in str(error.value) for word in words)
