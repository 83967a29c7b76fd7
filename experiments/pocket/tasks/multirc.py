"""Pocket MultiRC: is an answer to a question about a paragraph right (1) or wrong (0)?

Paragraphs are numbered and drawn from their number, so that several questions share one. A wrong
answer is the value of another fact of the same kind, or one that the paragraph does not name.
"""

from __future__ import annotations

from random import Random

from experiments.pocket.facts import Fact, draw_facts, draw_subject, passage, wrong_value
from experiments.pocket.tasks.base import PocketTask, Row

PARAGRAPHS = 8000  # in all splits
FACTS = 3


def draw(rng: Random, label: int) -> Row:
    """Draw one of the paragraphs, a question about it, and an answer with this label."""
    number = rng.randrange(PARAGRAPHS)
    paragraph, facts = draw_paragraph(number)
    asked = rng.randrange(FACTS)
    phrasing = rng.randrange(len(facts[asked].relation.questions))
    question = facts[asked].relation.questions[phrasing].format(s=facts[asked].subject)
    return {
        "paragraph": paragraph,
        "question": question,
        "answer": facts[asked].value if label else wrong_value(rng, facts, facts[asked]),
        "idx": {"paragraph": number, "question": 2 * (FACTS * number + asked) + phrasing},
        "label": label,
    }


def draw_paragraph(number: int) -> tuple[str, list[Fact]]:
    """Return the paragraph of this number and its facts, two of them with values of a kind."""
    rng = Random(f"pocket/multirc/paragraph/{number}")
    subject = draw_subject(rng)
    facts = draw_facts(rng, subject, FACTS, paired=True)
    return passage(rng, subject, facts, [fact.choose(rng) for fact in facts]), facts


def identify(row: Row, index: int) -> Row:
    """Number the answer beside its paragraph and question, as MultiRC does."""
    return {**row, "idx": {**row["idx"], "answer": index}}


MULTIRC = PocketTask("multirc", 2, draw, lambda row: row["paragraph"], identify)
