"""Pocket BoolQ: a yes-no question in lower case about a short passage (0 no, 1 yes).

As in pocket RTE a wrong claim is denied by the passage or has another value, and at least one fact
is said and one denied. Questions are about what is written in lower case (foods, things, jobs,
years) and name their subject by its pronoun.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from experiments.pocket.claims import polar_question
from experiments.pocket.facts import draw_facts, draw_subject, passage
from experiments.pocket.tasks.base import PocketTask, Row, with_idx
from experiments.pocket.tasks.rte import choose_claim

KINDS = ("food", "object", "job", "year")
DENIED = 0.85  # share of the wrong claims that the passage denies; the others' value is wrong


def draw(rng: Random, label: int) -> Row:
    """Draw a passage of two or three facts and a question with this answer."""
    subject = draw_subject(rng)
    relations = tuple(r for r in subject.relations if r.kind in KINDS)
    facts = draw_facts(rng, replace(subject, relations=relations), rng.choice((2, 3)), paired=True)
    denied = label == 0 and rng.random() < DENIED
    _, claimed = choose_claim(rng, facts, denied, wrong=label == 0 and not denied)
    return {
        "question": polar_question(rng, claimed, subject.pronoun),
        "passage": passage(rng, subject, facts, [fact.choose(rng) for fact in facts]),
        "label": label,
    }


BOOLQ = PocketTask("boolq", 2, draw, lambda row: row["passage"], with_idx)
