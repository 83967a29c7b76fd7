"""Pocket SQuAD: a question whose answer is a span of a short passage."""

from __future__ import annotations

import hashlib
from random import Random

from experiments.pocket.facts import draw_facts, draw_subject, passage
from experiments.pocket.tasks.base import PocketTask, Row


def draw(rng: Random, label: int) -> Row:
    """Draw a passage of three to five facts and a question about one of them (`label` unused)."""
    subject = draw_subject(rng)
    facts = draw_facts(rng, subject, rng.randint(3, 5))
    context = passage(rng, subject, facts, [fact.choose(rng) for fact in facts])
    asked = rng.choice(facts)
    return {
        "title": subject.name.replace(" ", "_"),
        "context": context,
        "question": asked.ask(rng),
        "answers": {"text": [asked.value], "answer_start": [context.index(asked.value)]},
    }


def identify(row: Row, index: int) -> Row:
    """Name a row as SQuAD does, by 24 hexadecimal digits."""
    digest = hashlib.sha256(f"{row['context']}\n{row['question']}\n{index}".encode()).hexdigest()
    return {"id": digest[:24], **row}


SQUAD = PocketTask("squad", 1, draw, lambda row: row["context"], identify)
