"""Facts about people and towns, and the ways the world has of stating and asking them.

A relation ties a subject to a value of some kind (a town, a year, a food ...). Most kinds occur in
two relations, so that which value belongs to which relation has to be read from the text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from experiments.pocket import words


@dataclass(frozen=True)
class Relation:
    """One kind of fact: its value's kind and its phrasings ({s} the subject, {v} the value)."""

    name: str
    kind: str
    statements: tuple[str, ...]
    denial: str
    questions: tuple[str, ...]


@dataclass(frozen=True)
class Subject:
    """A person or a town: the name, and how later sentences refer to it."""

    name: str
    pronoun: str
    relations: tuple[Relation, ...]


@dataclass(frozen=True)
class Fact:
    """One relation of a subject with its value, or (`holds` false) the denial of it."""

    relation: Relation
    subject: str
    value: str
    holds: bool = True

    def state(self, rng: Random, subject: str | None = None, avoid: str | None = None) -> str:
        """Return a sentence saying the fact; `avoid` is a phrasing (template) not to use."""
        return self.render(self.choose(rng, avoid), subject)

    def choose(self, rng: Random, avoid: str | None = None) -> str:
        """Choose a phrasing other than `avoid`."""
        if not self.holds:
            return self.relation.denial
        return rng.choice([t for t in self.relation.statements if t != avoid])

    def render(self, template: str, subject: str | None = None) -> str:
        """Return the template filled in, with a capital first letter."""
        text = template.format(s=subject or self.subject, v=self.value)
        return text[0].upper() + text[1:]

    def ask(self, rng: Random) -> str:
        """Return a question whose answer is the value."""
        return rng.choice(self.relation.questions).format(s=self.subject)


PERSON = (
    Relation(
        "born", "town", ("{s} was born in {v}.", "{s} comes from {v}."),
        "{s} was not born in {v}.",
        ("Where was {s} born?", "Where does {s} come from?"),
    ),
    Relation(
        "lives", "town", ("{s} lives in {v}.", "{s} has a home in {v}."),
        "{s} does not live in {v}.",
        ("Where does {s} live?", "Where is the home of {s}?"),
    ),
    Relation(
        "married", "year", ("{s} married in {v}.", "{s} had a wedding in {v}."),
        "{s} did not marry in {v}.",
        ("When did {s} marry?", "When was the wedding of {s}?"),
    ),
    Relation(
        "retired", "year", ("{s} retired in {v}.", "{s} stopped working in {v}."),
        "{s} did not retire in {v}.",
        ("When did {s} retire?", "When did {s} stop working?"),
    ),
    Relation(
        "works", "job", ("{s} works as a {v}.", "{s} makes a living as a {v}."),
        "{s} does not work as a {v}.",
        ("What does {s} work as?", "How does {s} make a living?"),
    ),
    Relation(
        "owns", "object", ("{s} owns a {v}.", "{s} bought a {v}."),
        "{s} does not own a {v}.",
        ("What does {s} own?", "What did {s} buy?"),
    ),
    Relation(
        "likes", "food", ("{s} likes {v}.", "{s} often eats {v}."),
        "{s} does not like {v}.",
        ("What does {s} like?", "What does {s} often eat?"),
    ),
    Relation(
        "sells", "food", ("{s} sells {v}.", "{s} has a shop for {v}."),
        "{s} does not sell {v}.",
        ("What does {s} sell?", "What is in the shop of {s}?"),
    ),
    Relation(
        "friend", "person", ("{s} has a friend called {v}.", "{s} often visits {v}."),
        "{s} is not a friend of {v}.",
        ("Who is a friend of {s}?", "Who does {s} often visit?"),
    ),
    Relation(
        "teacher", "person", ("{s} was taught by {v}.", "{s} learned from {v}."),
        "{s} was not taught by {v}.",
        ("Who taught {s}?", "Who was the teacher of {s}?"),
    ),
)  # fmt: skip
TOWN = (
    Relation(
        "mayor", "person", ("{s} has a mayor called {v}.", "{s} is led by {v}."),
        "{s} is not led by {v}.",
        ("Who is the mayor of {s}?", "Who leads {s}?"),
    ),
    Relation(
        "builder", "person", ("{s} has a church built by {v}.", "{s} owes its church to {v}."),
        "{s} does not owe its church to {v}.",
        ("Who built the church of {s}?",),
    ),
    Relation(
        "market", "food", ("{s} has a market for {v}.", "{s} is known for its {v}."),
        "{s} is not known for its {v}.",
        ("What is {s} known for?", "What is sold at the market of {s}?"),
    ),
    Relation(
        "imports", "food", ("{s} is short of {v}.", "{s} has to buy {v}."),
        "{s} is not short of {v}.",
        ("What is {s} short of?", "What does {s} have to buy?"),
    ),
    Relation(
        "bridge", "year", ("{s} built its bridge in {v}.", "{s} has had a bridge since {v}."),
        "{s} did not build its bridge in {v}.",
        ("When did {s} build its bridge?",),
    ),
    Relation(
        "flood", "year", ("{s} was under water in {v}.", "{s} had a flood in {v}."),
        "{s} was not under water in {v}.",
        ("When did {s} have a flood?", "When was {s} under water?"),
    ),
)  # fmt: skip


def person_name(rng: Random) -> tuple[str, str]:
    """Draw a person's name and pronoun."""
    names, pronoun = rng.choice(((words.WOMEN, "she"), (words.MEN, "he")))
    return rng.choice(names), pronoun


VALUES: dict[str, Callable[[Random], str]] = {
    "town": lambda rng: rng.choice(words.TOWNS),
    "year": lambda rng: rng.choice(words.YEARS),
    "job": lambda rng: rng.choice(words.JOBS),
    "object": lambda rng: f"{rng.choice(words.COLOURS)} {rng.choice(words.OBJECTS)}",
    "food": lambda rng: rng.choice(words.FOODS),
    "person": lambda rng: person_name(rng)[0],
}


def draw_subject(rng: Random) -> Subject:
    """Draw a person (three times in four) or a town."""
    if rng.random() < 0.75:
        name, pronoun = person_name(rng)
        return Subject(name, pronoun, PERSON)
    return Subject(rng.choice(words.TOWNS), "it", TOWN)


def draw_facts(rng: Random, subject: Subject, count: int, paired: bool = False) -> list[Fact]:
    """Draw `count` facts of different relations, all values different from each other.

    With `paired` two of them have values of the same kind.
    """
    relations = rng.sample(subject.relations, count)
    while paired and len({relation.kind for relation in relations}) == count:
        relations = rng.sample(subject.relations, count)
    taken = {subject.name}
    facts: list[Fact] = []
    for relation in relations:
        value = draw_value(rng, relation.kind, taken)
        taken.add(value)
        facts.append(Fact(relation, subject.name, value))
    return facts


def draw_value(rng: Random, kind: str, taken: set[str]) -> str:
    """Draw a value of a kind that is not in `taken`."""
    while (value := VALUES[kind](rng)) in taken:
        pass
    return value


def wrong_value(rng: Random, facts: list[Fact], fact: Fact) -> str:
    """Draw another value for a fact: that of a fact of the same kind, or one not mentioned."""
    others = [
        f.value
        for f in facts
        if f.relation.kind == fact.relation.kind and f.relation is not fact.relation
    ]
    if others and rng.random() < 0.5:
        return rng.choice(others)
    return draw_value(rng, fact.relation.kind, {f.value for f in facts} | {fact.subject})


def passage(rng: Random, subject: Subject, facts: list[Fact], templates: list[str]) -> str:
    """Write the facts as a paragraph: the name first, mostly pronouns after it."""
    sentences = [
        fact.render(template, None if place == 0 or rng.random() < 0.15 else subject.pronoun)
        for place, (fact, template) in enumerate(zip(facts, templates, strict=True))
    ]
    return " ".join(sentences)
