"""The generated data sets: the hub's fields, deterministic, disjoint, balanced, learnable."""

from __future__ import annotations

import re
from collections import Counter
from itertools import islice, pairwise
from random import Random
from typing import Any

import pytest

from experiments.pocket import generate
from experiments.pocket.claims import HEDGES, POLAR
from experiments.pocket.events import RULES
from experiments.pocket.facts import PERSON, TOWN, Fact, Relation
from experiments.pocket.lessons import (
    CAUSE_LINKS,
    EFFECT_LINKS,
    causes,
    counts,
    pronouns,
    senses,
)
from experiments.pocket.reviews import draw_review
from experiments.pocket.senses import SENSES
from experiments.pocket.splits import SPLITS, TEXT, part_of
from experiments.pocket.tasks import TASKS
from experiments.pocket.tasks.wic import WORDS as WIC_WORDS
from experiments.pocket.text import documents
from experiments.pocket.words import MEN, TOWNS, WOMEN

Row = dict[str, Any]

FIELDS = {
    "sst2": {"idx": int, "sentence": str, "label": int},
    "rte": {"idx": int, "premise": str, "hypothesis": str, "label": int},
    "squad": {"id": str, "title": str, "context": str, "question": str, "answers": dict},
    "boolq": {"question": str, "passage": str, "idx": int, "label": int},
    "cb": {"premise": str, "hypothesis": str, "idx": int, "label": int},
    "copa": {
        "premise": str, "choice1": str, "choice2": str, "question": str, "idx": int, "label": int,
    },
    "drop": {"query_id": str, "passage": str, "question": str, "answers_spans": dict},
    "multirc": {"paragraph": str, "question": str, "answer": str, "idx": dict, "label": int},
    "record": {"passage": str, "query": str, "entities": list, "answers": list, "idx": dict},
    "wic": {
        "word": str, "sentence1": str, "sentence2": str, "start1": int, "start2": int,
        "end1": int, "end2": int, "idx": int, "label": int,
    },
    "wsc": {
        "text": str, "span1_index": int, "span2_index": int, "span1_text": str, "span2_text": str,
        "idx": int, "label": int,
    },
}  # fmt: skip
LABELLED = sorted(name for name, fields in FIELDS.items() if "label" in fields)
every_task = pytest.mark.parametrize("task", sorted(TASKS))
every_split = pytest.mark.parametrize("split", SPLITS)


def text_of(row: Row) -> tuple[str, ...]:
    """Return what a model sees of a row, without its identity, label and answers."""
    hidden = ("idx", "id", "query_id", "label", "answers", "answers_spans")
    return tuple(str(v) for k, v in row.items() if k not in hidden)


def test_every_task_has_its_fields_listed_here() -> None:
    assert set(FIELDS) == set(TASKS)


@every_task
@every_split
def test_rows_have_the_hubs_fields(task: str, split: str) -> None:
    rows = generate(task, split, 60, seed=1)
    assert len(rows) == 60
    for row in rows:
        assert {key: type(value) for key, value in row.items()} == FIELDS[task]
        assert row.get("label", 0) in range(TASKS[task].labels)
    names = {str(row.get("id", row.get("query_id", row.get("idx")))) for row in rows}
    assert len(names) == 60
    if FIELDS[task].get("idx") is int:
        assert [row["idx"] for row in rows] == list(range(60))


def test_objects_inside_rows_have_the_hubs_keys() -> None:
    for row in generate("multirc", "train", 60, 1):
        assert {k: type(v) for k, v in row["idx"].items()} == {
            "paragraph": int, "question": int, "answer": int,
        }  # fmt: skip
    for row in generate("record", "train", 60, 1):
        assert {k: type(v) for k, v in row["idx"].items()} == {"passage": int, "query": int}
    for row in generate("drop", "train", 60, 1):
        assert [type(v) for v in row["answers_spans"]["spans"]] == [str]


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


@pytest.mark.parametrize("task", LABELLED)
@pytest.mark.parametrize("n", [1, 101, 500])
def test_labels_are_balanced_and_unordered(task: str, n: int) -> None:
    labels = [row["label"] for row in generate(task, "validation", n, 0)]
    counts = [labels.count(label) for label in range(TASKS[task].labels)]
    assert max(counts) - min(counts) == (n % len(counts) > 0)
    if n == 500:
        repeats = sum(a == b for a, b in pairwise(labels))
        expected = n / len(counts) ** 2  # in shuffled blocks only the blocks' ends repeat
        assert 0.6 * expected < repeats < 1.4 * expected


def one_rule(train: list[Row], test: list[Row], features: Any) -> float:
    """Return the test accuracy of the best rule "one label with a feature, one without it"."""
    totals = Counter(row["label"] for row in train)
    counts: dict[str, Counter[int]] = {}
    for row in train:
        for feature in features(row):
            counts.setdefault(feature, Counter())[row["label"]] += 1
    seen = [(features(row), row["label"]) for row in test]
    scores = [0.0]
    for feature, count in counts.items():
        if sum(count.values()) >= 50:
            with_it = count.most_common(1)[0][0]
            without = (totals - count).most_common(1)
            other = without[0][0] if without else with_it
            right = sum(label == (with_it if feature in f else other) for f, label in seen)
            scores.append(right / len(test))
    return max(scores)


@pytest.mark.parametrize("task", LABELLED)
def test_no_single_word_or_length_gives_the_label(task: str) -> None:
    train, test = generate(task, "train", 1500, 0), generate(task, "validation", 1000, 0)

    def features(row: Row) -> set[str]:
        fields = [text.split() for text in text_of(row)]
        words = [word for field in fields for word in field]
        placed = [f"{place} {word}" for place, field in enumerate(fields) for word in field]
        return {*words, *placed, f"length {len(words)}"}

    chance = 1 / TASKS[task].labels
    assert one_rule(train, test, features) < chance + 0.12


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


@pytest.mark.slow
def test_pretraining_text_shares_no_row_with_the_tasks() -> None:
    text = list(islice(documents(0), 4000))
    passages = {line for document in text for line in document.split("\n")}
    assert any(part_of(passage) == TEXT for passage in passages)
    for task in TASKS.values():
        for split in SPLITS:
            keys = {task.key(row) for row in generate(task.name, split, 1000, 0)}
            assert not keys & passages, task.name
    sentences = {f"{part} ." for d in text if d[0].islower() for part in d.split(" . ")}
    reviews = {s for s in sentences if " the " in f" {s}" and "it was" not in s}
    drawn = {r["sentence"] for split in SPLITS for r in generate("sst2", split, 3000, 0)}
    assert len(reviews) > 500
    assert not reviews & drawn


def test_lessons_share_no_pair_of_events_or_sentences_with_the_tasks() -> None:
    rng, told = Random(0), set()
    for line in "".join(causes(rng) for _ in range(3000)).splitlines():
        for link in EFFECT_LINKS + CAUSE_LINKS:
            first, _, second = line.partition(f" {link} ")
            if second:
                told.add(f"{first} {second[0].upper()}{second[1:]}")
    assert len(told) > 2000
    assert {part_of(pair) for pair in told} == {TEXT}
    for _ in range(2000):
        first, between, second, *_ = senses(rng).split("\n")
        second = between if between[-1] == "." and not between.startswith("The word") else second
        assert part_of(f"{first} {second}") == TEXT
        for lesson in (pronouns, counts):
            assert part_of(lesson(rng).split("\n")[0]) == TEXT


@pytest.mark.parametrize(
    "forbidden",
    [
        "It was great", "It was terrible", "\nAnswer:", '" is true? Yes or No?',
        "Yes, No, or Maybe?", "Is that correct? Yes", "Yes, No?", '" refer to',
        "have the same meaning in", "Passage: M", "I found this answer", " so he ", " so she ",
        ".\n- ", "\nMaybe\n",
    ],
)  # fmt: skip
def test_pretraining_text_holds_no_prompt_with_its_answer(forbidden: str) -> None:
    for document in islice(documents(0), 6000):
        if forbidden.startswith("It was") and not document[0].islower():
            continue  # notices about food judge with these words; they are not reviews
        assert forbidden not in document


def pattern(template: str) -> re.Pattern[str]:
    """Return what a sentence of a template looks like, whatever fills its one-word gaps."""
    return re.compile(re.sub(r"\\{.\\}", "[A-Za-z]+", re.escape(template)))


def test_a_cause_and_its_effect_are_of_one_rule_and_the_wrong_choice_of_another() -> None:
    patterns = [[pattern(end) for end in rule] for rule in RULES]
    for row in generate("copa", "train", 300, 0):
        told, asked = (0, 1) if row["question"] == "effect" else (1, 0)
        right, wrong = (row[f"choice{k}"] for k in (row["label"] + 1, 2 - row["label"]))
        (rule,) = [k for k, p in enumerate(patterns) if p[told].fullmatch(row["premise"])]
        assert patterns[rule][asked].fullmatch(right)
        assert not patterns[rule][asked].fullmatch(wrong)
        assert any(p[asked].fullmatch(wrong) for p in patterns)


def test_a_claim_of_cb_is_said_denied_or_left_open() -> None:
    hedges = [hedge.format("").capitalize() for hedge in HEDGES]
    for row in generate("cb", "train", 300, 0):
        subject = re.split(r"(?:perhaps|that) ", row["premise"].split(".")[0], flags=re.I)[-1]
        subject = subject.split()[0]
        relations = TOWN if subject in TOWNS else PERSON
        claimed = facts_in(f"{row['hypothesis']}.", subject, relations)
        assert claimed
        said, opened = set(), set()
        for sentence in row["premise"].removesuffix(".").split(". "):
            hedge = next((h for h in hedges if sentence.startswith(h)), None)
            found = facts_in(f"{_upper(sentence.removeprefix(hedge or ''))}.", subject, relations)
            (opened if hedge else said).update(found)
        denied = " not " in row["premise"]
        assert said
        assert opened
        assert denied
        expected = 0 if claimed & said else 2 if claimed & opened else None
        if expected is None:  # denied by name, or not named at all
            _, value = next(iter(claimed))
            expected = 1 if f"{value}." in row["premise"] else 2
        assert expected == row["label"], row


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]


def test_a_question_of_boolq_follows_from_its_passage() -> None:
    for row in generate("boolq", "train", 300, 0):
        assert row["question"] == row["question"].lower()
        assert "?" not in row["question"]
        subject = subject_of(row["passage"])
        relations = TOWN if subject in TOWNS else PERSON
        asked = set()
        for relation in relations:
            for template in POLAR[relation.name]:
                for pronoun in ("she", "he", "it"):
                    start = template.format(s=pronoun, v="")
                    if row["question"].startswith(start):
                        asked.add((relation.name, row["question"].removeprefix(start)))
        assert asked
        assert bool(asked & facts_in(row["passage"], subject, relations)) == (row["label"] == 1)


def test_answers_of_multirc_are_right_or_wrong_and_questions_share_paragraphs() -> None:
    rows = generate("multirc", "train", 1500, 0)
    texts: dict[int, set[str]] = {}
    for row in rows:
        texts.setdefault(row["idx"]["question"], set()).add(row["paragraph"] + row["question"])
        assert " not " in row["paragraph"]
        subject = subject_of(row["paragraph"])
        relations = TOWN if subject in TOWNS else PERSON
        asked = {r.name for r in relations if row["question"] in _questions(r, subject)}
        claimed = facts_in(row["answer"], subject, relations)
        assert {name for name, _ in claimed} & asked
        said = facts_in(row["paragraph"], subject, relations)
        assert bool(claimed & said) == (row["label"] == 1)
    assert all(len(same) == 1 for same in texts.values())
    assert len({row["paragraph"] for row in rows}) < 0.9 * len(rows)


def test_words_of_wic_are_where_the_row_says_and_the_senses_give_the_label() -> None:
    def sense(word: str, sentence: str) -> int:
        (found,) = {
            number
            for number, one in enumerate(SENSES[word])
            for template in one.sentences
            if pattern(template).fullmatch(sentence)
        }
        return found

    rows = generate("wic", "train", 600, 0)
    for row in rows:
        uses = (row["sentence1"], row["sentence2"])
        assert row["sentence1"][row["start1"] : row["end1"]] == row["word"]
        assert row["sentence2"][row["start2"] : row["end2"]] == row["word"]
        one, two = (sense(row["word"], use) for use in uses)
        assert (one == two) == (row["label"] == 1)
    assert {row["word"] for row in rows} == set(WIC_WORDS)


def test_pronouns_of_wsc_stand_where_the_row_says_and_agree_in_gender() -> None:
    decided = 0
    for row in generate("wsc", "train", 600, 0):
        words = row["text"].rstrip(".").split(" ")
        assert words[row["span1_index"]] == row["span1_text"]
        assert words[row["span2_index"]] == row["span2_text"]
        named = [word for word in words if word in WOMEN + MEN]
        assert len(named) == 2
        fitting = [n for n in named if (n in WOMEN) == (row["span2_text"] == "she")]
        if len(fitting) == 1:
            decided += 1
            assert (row["span1_text"] in fitting) == (row["label"] == 1)
        else:
            assert fitting == named
            assert " because " in row["text"]
    assert 0.6 * 600 < decided < 0.9 * 600


def test_answers_of_drop_are_in_the_passage_or_counted() -> None:
    kinds: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    for row in generate("drop", "train", 1000, 0):
        (answer,) = row["answers_spans"]["spans"]
        answers[answer] += 1
        if row["question"].startswith("How many towns"):
            kinds["count"] += 1
            seen = row["passage"].split(" went to ")[1].split(" in ")[0]
            assert int(answer) == len(re.findall(r"[A-Z][a-z]+", seen))
            continue
        kinds[row["question"].split()[0]] += 1
        assert re.search(rf"\b{answer}\b", row["passage"])
        if row["question"].startswith("How many"):
            thing, owner = row["question"].split()[2], row["question"].split()[4]
            clause = next(c for c in row["passage"].split(".") if f"{owner} owns" in c)
            assert f" {answer} {thing}" in clause
    assert min(kinds.values()) > 120
    assert answers.most_common(1)[0][1] < 120


def test_no_rule_of_place_or_frequency_finds_the_answer_of_record() -> None:
    rows = generate("record", "train", 2000, 0)
    right: Counter[str] = Counter()
    for row in rows:
        (answer,) = row["answers"]
        names, passage = row["entities"], row["passage"]
        assert answer in names
        assert len(set(names)) == len(names) == 4
        assert row["query"].count("@placeholder") == 1
        assert row["query"].replace("@placeholder", answer).rstrip(".") not in passage
        found = sorted(names, key=passage.index)
        times = Counter(re.findall("|".join(names), passage))
        highlight = passage.split("@highlight\n")[1]
        guesses = {
            "listed first": names[0], "listed last": names[-1],
            "told first": found[0], "told last": found[-1],
            "most frequent": times.most_common(1)[0][0],
            "least frequent": times.most_common()[-1][0],
            "not in the highlight": next(n for n in names if n not in highlight),
            "in the highlight": next((n for n in names if n in highlight), names[0]),
        }  # fmt: skip
        right.update(rule for rule, guess in guesses.items() if guess == answer)
    assert max(right.values()) < 0.4 * len(rows), right


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
