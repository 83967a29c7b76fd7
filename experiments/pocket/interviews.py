"""Passages of the world's text and the talk about them: claims, questions, proposals, summaries.

What is claimed of a fact is said to be right, wrong or not known, as the passage says, denies or
hedges it. Passages belong to the text's part of the world; nothing here has the form of a task.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from experiments.pocket import words
from experiments.pocket.claims import DENIED, MOODS, OPEN, SAID, polar_question, tell
from experiments.pocket.couples import draw_couple
from experiments.pocket.facts import (
    Fact,
    Subject,
    draw_facts,
    draw_subject,
    passage,
    wrong_value,
)
from experiments.pocket.splits import TEXT, part_of

MOOD_WEIGHTS = (11, 6, 3)  # of facts that are said, denied and hedged
WRONG_VALUE = 0.2  # share of the claims about a said fact that give it another value
WRONG_PROPOSAL = 0.35  # share of the proposed answers that are wrong
UNNAMED = 0.1  # share of the claims that are about nothing the passage names

CLAIMS = (
    'Is it right that "{c}"?\n', '{a} read that "{c}" Is this true?\n',
    'Would you say that "{c}" is right, Yes or No?\n',
    'Can {a} be sure that "{c}"?\n',
)  # fmt: skip
ANSWERS = {
    SAID: ("Yes, it is true.", "Yes."),
    DENIED: ("No, it is not true.", "No."),
    OPEN: ("Maybe, nobody knows.", "Maybe."),
}
POLAR_ASKED = ("{a} asked, {q}\n", "Question: {q}\n", "{a}: {q}\n")
ASKED = ("{a} asked, {q}\n", "Question: {q}\n")
REPLIES = ("Reply: {s}", "Reply: {s}", "Reply: {v}", "It is {v}.", "I think it is {v}.")
PROPOSED = ('{a} said "{v}" and was it right?\n', 'Is "{v}" the right word here?\n')
SUMMARIES = ("In short, {c}\n", "Note: {c}\n", "So {c}\n")


@dataclass(frozen=True)
class Told:
    """A fact in a passage: how it is told, and the plain phrasing in it (None for a denial)."""

    fact: Fact
    mood: str
    plain: str | None


def interview(rng: Random) -> str:
    """Write a passage about a person or town, then what is asked and claimed about it."""
    subject = draw_subject(rng)
    text, told = _draw_passage(rng, subject)
    lines = [text + "\n"]
    if rng.random() < 0.15:
        heading = "Title: {}\n" if rng.random() < 0.3 else "{}\n"
        lines.insert(0, heading.format(subject.name))
    asker = rng.choice(words.WOMEN + words.MEN)
    for _ in range(rng.randint(3, 5)):
        one = rng.choice(told)
        if one.mood != SAID or rng.random() < 0.55:
            lines.append(_claim(rng, asker, subject, told, one))
        else:
            talk = rng.choice((_question, _question, _proposal, _proposal, _summary))
            lines.append(talk(rng, asker, told, one))
    return "".join(lines)


def couple(rng: Random) -> str:
    """Write a passage about two people, then parts of it in other words and questions about it."""
    while part_of((drawn := draw_couple(rng)).text) != TEXT:
        pass
    asker = rng.choice(words.WOMEN + words.MEN)
    told = [Told(fact, SAID, drawn.phrasings[fact]) for fact in drawn.facts]
    lines = [drawn.text + "\n"]
    for one in rng.sample(told, 3):
        talk = _summary if rng.random() < 0.75 else _question
        lines.append(talk(rng, asker, told, one))
    return "".join(lines)


def _draw_passage(rng: Random, subject: Subject) -> tuple[str, list[Told]]:
    """Draw one to three facts and tell them in a passage that belongs to the text."""
    while True:
        count = rng.choice((1, 1, 2, 2, 3, 3))
        facts = draw_facts(rng, subject, count, paired=count > 1 and rng.random() < 0.7)
        moods = rng.choices(MOODS, weights=MOOD_WEIGHTS, k=count)
        phrasings = [tell(rng, fact, mood) for fact, mood in zip(facts, moods, strict=True)]
        text = passage(rng, subject, facts, [template for template, _ in phrasings])
        if part_of(text) == TEXT:
            plain = [base for _, base in phrasings]
            return text, [Told(*one) for one in zip(facts, moods, plain, strict=True)]


def _claim(rng: Random, asker: str, subject: Subject, told: list[Told], one: Told) -> str:
    """Write a claim about a fact, or a yes-no question, and whether it is right."""
    claimed, mood, facts = one.fact, one.mood, [t.fact for t in told]
    if mood == SAID and rng.random() < WRONG_VALUE:
        claimed, mood = replace(claimed, value=wrong_value(rng, facts, claimed)), DENIED
    elif rng.random() < UNNAMED:
        claimed, mood = _unnamed(rng, subject, facts), OPEN
    if rng.random() < 0.5:
        avoid = one.plain if rng.random() < 0.6 else None
        line = rng.choice(CLAIMS).format(a=asker, c=claimed.state(rng, avoid=avoid))
    else:
        name = rng.choice((subject.name, subject.pronoun, subject.pronoun))
        question = polar_question(rng, claimed, name)
        question = f"{question[0].upper()}{question[1:]}?"
        line = rng.choice(POLAR_ASKED).format(a=asker, q=question)
    return f"{line}{rng.choice(ANSWERS[mood])}\n"


def _unnamed(rng: Random, subject: Subject, facts: list[Fact]) -> Fact:
    """Draw a fact of a relation that none of `facts` has."""
    named = {fact.relation for fact in facts}
    while (drawn := draw_facts(rng, subject, 1)[0]).relation in named:
        pass
    return drawn


def _question(rng: Random, asker: str, told: list[Told], one: Told) -> str:
    """Write a question about a fact and its reply."""
    line = rng.choice(ASKED).format(a=asker, q=one.fact.ask(rng))
    reply = rng.choice(REPLIES).format(v=one.fact.value, s=one.fact.state(rng, avoid=one.plain))
    return f"{line}{reply}\n"


def _proposal(rng: Random, asker: str, told: list[Told], one: Told) -> str:
    """Write a question about a fact, somebody's answer, and whether that is right."""
    value, mood = one.fact.value, SAID
    if rng.random() < WRONG_PROPOSAL:
        value, mood = wrong_value(rng, [t.fact for t in told], one.fact), DENIED
    line = rng.choice(PROPOSED).format(a=asker, v=value)
    return f"{one.fact.ask(rng)}\n{line}{rng.choice(ANSWERS[mood])}\n"


def _summary(rng: Random, asker: str, told: list[Told], one: Told) -> str:
    """Write a fact once more, mostly in other words."""
    avoid = one.plain if rng.random() < 0.7 else None
    return rng.choice(SUMMARIES).format(c=one.fact.state(rng, avoid=avoid))
