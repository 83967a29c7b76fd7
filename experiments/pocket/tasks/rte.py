"""Pocket RTE: does a short passage entail a sentence (0 entailment, 1 not_entailment)?

The premise holds two facts of one kind (two towns, two years ...). A true hypothesis says one of
them in other words. A false one gives it a wrong value: half the time the other fact's, else one
that the premise does not mention. Looking up the value alone therefore goes half of the way.
"""

from __future__ import annotations

from random import Random

from experiments.pocket.facts import Fact, draw_facts, draw_subject, draw_value, passage
from experiments.pocket.tasks.base import PocketTask, Row, with_idx

MENTIONED = 0.5  # share of false hypotheses whose value stands in the premise


def draw(rng: Random, label: int) -> Row:
    """Draw a premise of two to four facts and a hypothesis with this label."""
    subject = draw_subject(rng)
    facts = draw_facts(rng, subject, rng.randint(2, 4), paired=True)
    templates = [fact.choose(rng) for fact in facts]
    premise = passage(rng, subject, facts, templates)
    kinds = [fact.relation.kind for fact in facts]
    pick = rng.choice([i for i, kind in enumerate(kinds) if kinds.count(kind) > 1])
    claimed = facts[pick] if label == 0 else false_fact(rng, facts, pick)
    hypothesis = claimed.state(rng, avoid=templates[pick])
    return {"premise": premise, "hypothesis": hypothesis, "label": label}


def false_fact(rng: Random, facts: list[Fact], pick: int) -> Fact:
    """Return fact `pick` with a wrong value."""
    fact = facts[pick]
    others = [f.value for f in facts if f.relation.kind == fact.relation.kind and f is not fact]
    if others and rng.random() < MENTIONED:
        value = rng.choice(others)
    else:
        value = draw_value(rng, fact.relation.kind, {f.value for f in facts} | {fact.subject})
    return Fact(fact.relation, fact.subject, value)


RTE = PocketTask("rte", 2, draw, lambda row: row["premise"], with_idx)
