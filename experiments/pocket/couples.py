"""Passages about two people, of whom much the same kinds of things are told.

Of each person one fact names a town or another person and one does not, so that a passage holds
four names and a later sentence about it can be about any of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from experiments.pocket.facts import (
    PERSON,
    Fact,
    Subject,
    draw_value,
    passage,
    person_name,
)

NAMED = tuple(relation for relation in PERSON if relation.kind in ("town", "person"))
PLAIN = tuple(relation for relation in PERSON if relation.kind not in ("town", "person"))
ALIKE = 0.7  # share of the passages that tell the same relations of both people


@dataclass(frozen=True)
class Couple:
    """Two people's facts (a named and a plain one each) and the passage that tells them."""

    named: tuple[Fact, Fact]
    plain: tuple[Fact, Fact]
    phrasings: dict[Fact, str]  # the template by which the passage tells each
    text: str

    @property
    def facts(self) -> tuple[Fact, ...]:
        """Return all four facts."""
        return self.named + self.plain


def draw_couple(rng: Random) -> Couple:
    """Draw two people and tell two facts of each, in either order."""
    people = [person_name(rng)]
    while len(people) < 2:
        if (drawn := person_name(rng))[0] != people[0][0]:
            people.append(drawn)
    taken = {name for name, _ in people}
    drawn_facts: dict[tuple[int, int], Fact] = {}
    for kind, relations in enumerate((NAMED, PLAIN)):
        first = rng.choice(relations)
        second = first if rng.random() < ALIKE else rng.choice(relations)
        for person, relation in enumerate((first, second)):
            value = draw_value(rng, relation.kind, taken)
            taken.add(value)
            drawn_facts[person, kind] = Fact(relation, people[person][0], value)
    phrasings = {fact: fact.choose(rng) for fact in drawn_facts.values()}
    parts = []
    for person, (name, pronoun) in enumerate(people):
        facts = [drawn_facts[person, 0], drawn_facts[person, 1]]
        rng.shuffle(facts)
        subject = Subject(name, pronoun, PERSON)
        parts.append(passage(rng, subject, facts, [phrasings[fact] for fact in facts]))
    return Couple(
        (drawn_facts[0, 0], drawn_facts[1, 0]),
        (drawn_facts[0, 1], drawn_facts[1, 1]),
        phrasings,
        " ".join(parts),
    )
