"""Pocket CB: does a premise entail (0), contradict (1) or leave open (2) a claim?

Every premise says one fact, denies one and hedges one, so that its words do not tell which of the
three the claim is about. Some claims that are left open are about nothing that the premise names.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from experiments.pocket.claims import MOODS, tell
from experiments.pocket.facts import draw_facts, draw_subject, passage
from experiments.pocket.tasks.base import PocketTask, Row, with_idx

UNNAMED = 0.15  # share of the open claims that are about a fact the premise does not name


def draw(rng: Random, label: int) -> Row:
    """Draw a premise of three facts and a hypothesis with this label."""
    subject = draw_subject(rng)
    *facts, unnamed = draw_facts(rng, subject, 4, paired=True)
    moods = rng.sample(MOODS, 3)
    told = [tell(rng, fact, mood) for fact, mood in zip(facts, moods, strict=True)]
    place = moods.index(MOODS[label])
    claimed, plain = facts[place], told[place][1]
    if label == 2 and rng.random() < UNNAMED:
        claimed, plain = unnamed, None
    hypothesis = replace(claimed, subject=subject.name).state(rng, avoid=plain)
    return {
        "premise": passage(rng, subject, facts, [template for template, _ in told]),
        "hypothesis": hypothesis.removesuffix("."),
        "label": label,
    }


CB = PocketTask("cb", 3, draw, lambda row: row["premise"], with_idx)
