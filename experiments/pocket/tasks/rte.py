"""Pocket RTE: does a short passage entail a sentence (0 entailment, 1 not_entailment)?

The premise says some things and denies others. A true hypothesis says one of its facts in other
words. A false one mostly says something that the premise denies, or else gives a fact the value
of another fact of the same kind (two towns, two years ...) or a value not mentioned at all. There
is always at least one fact said and one denied, so counting denials does not help.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from experiments.pocket.facts import Fact, draw_facts, draw_subject, passage, wrong_value
from experiments.pocket.tasks.base import PocketTask, Row, with_idx

DENIED = 0.7  # share of the false hypotheses that the premise denies; the others' value is wrong


def draw(rng: Random, label: int) -> Row:
    """Draw a premise of two to four facts and a hypothesis with this label."""
    subject = draw_subject(rng)
    facts = draw_facts(rng, subject, rng.randint(2, 4), paired=True)
    denied = label == 1 and rng.random() < DENIED
    pick, claimed = choose_claim(rng, facts, denied, wrong=label == 1 and not denied)
    templates = [fact.choose(rng) for fact in facts]
    hypothesis = claimed.state(rng, avoid=templates[pick])
    return {
        "premise": passage(rng, subject, facts, templates),
        "hypothesis": hypothesis,
        "label": label,
    }


def choose_claim(rng: Random, facts: list[Fact], denied: bool, wrong: bool) -> tuple[int, Fact]:
    """Choose the fact that a claim is about, deny some of `facts` in place, return both.

    The chosen fact is denied or not as told, another one the other way round, the rest by lot.
    With `wrong` the claim has a value that the chosen fact does not have.
    """
    pick, other, *rest = rng.sample(range(len(facts)), len(facts))
    for place, holds in [(pick, not denied), (other, denied)]:
        facts[place] = replace(facts[place], holds=holds)
    for place in rest:
        facts[place] = replace(facts[place], holds=rng.random() < 0.5)
    fact = replace(facts[pick], holds=True)
    return pick, replace(fact, value=wrong_value(rng, facts, fact)) if wrong else fact


RTE = PocketTask("rte", 2, draw, lambda row: row["premise"], with_idx)
