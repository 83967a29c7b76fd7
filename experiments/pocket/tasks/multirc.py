"""Pocket MultiRC: is an answer to a question about a paragraph right (1) or wrong (0)?

Paragraphs are numbered and drawn from their number, so that several questions share one. Answers
are whole sentences. A wrong one is mostly denied by the paragraph; else its value is that of
another fact of the same kind, or not in the paragraph. At least one fact is said and one denied.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from experiments.pocket.facts import Fact, draw_facts, draw_subject, passage, wrong_value
from experiments.pocket.tasks.base import PocketTask, Row

PARAGRAPHS = 8000  # in all splits
FACTS = 3
DENIED = 0.85  # share of the wrong answers that the paragraph denies; the others' value is wrong


def draw(rng: Random, label: int) -> Row:
    """Draw one of the paragraphs, a question about it, and an answer with this label."""
    number = rng.randrange(PARAGRAPHS)
    paragraph, facts = draw_paragraph(number)
    denied = label == 0 and rng.random() < DENIED
    asked = rng.choice([k for k, fact in enumerate(facts) if fact.holds != denied])
    phrasing = rng.randrange(len(facts[asked].relation.questions))
    claimed = replace(facts[asked], holds=True)
    if label == 0 and not denied:
        claimed = replace(claimed, value=wrong_value(rng, facts, claimed))
    return {
        "paragraph": paragraph,
        "question": facts[asked].relation.questions[phrasing].format(s=facts[asked].subject),
        "answer": claimed.state(rng),
        "idx": {"paragraph": number, "question": 2 * (FACTS * number + asked) + phrasing},
        "label": label,
    }


def draw_paragraph(number: int) -> tuple[str, list[Fact]]:
    """Return the paragraph of this number and its facts, two of them with values of a kind."""
    rng = Random(f"pocket/multirc/paragraph/{number}")
    subject = draw_subject(rng)
    facts = draw_facts(rng, subject, FACTS, paired=True)
    moods = rng.sample((True, False, rng.random() < 0.5), FACTS)
    facts = [replace(fact, holds=holds) for fact, holds in zip(facts, moods, strict=True)]
    return passage(rng, subject, facts, [fact.choose(rng) for fact in facts]), facts


def identify(row: Row, index: int) -> Row:
    """Number the answer beside its paragraph and question, as MultiRC does."""
    return {**row, "idx": {**row["idx"], "answer": index}}


MULTIRC = PocketTask("multirc", 2, draw, lambda row: row["paragraph"], identify)
