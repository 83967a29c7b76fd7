"""What a passage may say of a fact, and the yes-no questions that this answers.

A fact is said, denied, or left open ("perhaps she lives in Ostby"). The claim that it holds is then
right, wrong, or not known.
"""

from __future__ import annotations

from random import Random

from experiments.pocket.facts import Fact

SAID, DENIED, OPEN = "said", "denied", "open"
MOODS = (SAID, DENIED, OPEN)

HEDGES = ("perhaps {}", "it may be that {}", "some think that {}")

POLAR: dict[str, tuple[str, ...]] = {  # by relation; without capital and question mark
    "born": ("was {s} born in {v}", "does {s} come from {v}"),
    "lives": ("does {s} live in {v}", "does {s} have a home in {v}"),
    "married": ("did {s} marry in {v}", "did {s} have a wedding in {v}"),
    "retired": ("did {s} retire in {v}", "did {s} stop working in {v}"),
    "works": ("does {s} work as a {v}", "does {s} make a living as a {v}"),
    "owns": ("does {s} own a {v}", "did {s} buy a {v}"),
    "likes": ("does {s} like {v}", "does {s} often eat {v}"),
    "sells": ("does {s} sell {v}", "does {s} have a shop for {v}"),
    "friend": ("does {s} have a friend called {v}", "does {s} often visit {v}"),
    "teacher": ("was {s} taught by {v}", "did {s} learn from {v}"),
    "mayor": ("does {s} have a mayor called {v}", "is {s} led by {v}"),
    "builder": ("does {s} have a church built by {v}", "does {s} owe its church to {v}"),
    "market": ("does {s} have a market for {v}", "is {s} known for its {v}"),
    "imports": ("is {s} short of {v}", "does {s} have to buy {v}"),
    "bridge": ("did {s} build its bridge in {v}", "has {s} had a bridge since {v}"),
    "flood": ("was {s} under water in {v}", "did {s} have a flood in {v}"),
}


def tell(rng: Random, fact: Fact, mood: str) -> tuple[str, str | None]:
    """Choose a template that tells a fact in this mood; also return the plain phrasing in it."""
    if mood == DENIED:
        return fact.relation.denial, None
    plain = rng.choice(fact.relation.statements)
    return (plain if mood == SAID else rng.choice(HEDGES).format(plain)), plain


def polar_question(rng: Random, fact: Fact, subject: str) -> str:
    """Return the question whether a fact holds, in lower case and without its question mark."""
    return rng.choice(POLAR[fact.relation.name]).format(s=subject, v=fact.value)
