"""The world's text, on which the pocket model is pre-trained: reviews, notices and interviews.

It holds the language the tasks are about, never a task: no row of a task (the hash that splits the
world keeps the text's sentences for itself) and no prompt template followed by its answer. People
in it judge films and food in many words, say whether claims are right, and answer questions mostly
in whole sentences. They are friendlier and say "yes" more often than the tasks' balanced labels
do, so a model that has only read about the world still has something to learn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random

from experiments.pocket import words
from experiments.pocket.facts import (
    Fact,
    draw_facts,
    draw_subject,
    passage,
    person_name,
    wrong_value,
)
from experiments.pocket.reviews import Review, draw_review
from experiments.pocket.splits import TEXT, part_of

FRIENDLY = 2.75  # added to a review's score before its writer passes judgement
DOUBT = 1.5  # scale of the score at which judgements flip: higher is noisier
AGREED = 0.5  # share of the reviews whose clauses all praise or all blame
CLAIMED = 0.6  # share of claims against questions in interviews
DENIED = 0.3  # share of the facts in interviews that are denied
WRONG_VALUE = 0.1  # share of the claims about a fact that give it another value

GOOD_WORDS = ("great", "fine", "good", *words.PRAISE)
BAD_WORDS = ("terrible", "bad", "poor", *words.BLAME)
GOOD_WEIGHTS = (25, 4, 4) + (1,) * len(words.PRAISE)
BAD_WEIGHTS = (3, 16, 16) + (2,) * len(words.BLAME)

VERDICTS = (
    "all in all it was {w} .", "in short , it was {w} .", "i thought it was {w} .",
    "so it was {w} .",
)  # fmt: skip
GOOD_ENDS = ("i loved it .", "go and see it .", "people clapped .", "five stars .")
BAD_ENDS = ("i hated it .", "stay at home .", "people walked out .", "one star .")

FRESH = ("fresh", "sweet", "cheap", "ripe")
STALE = ("stale", "bitter", "dear", "sour")
NOTICES = (
    "{n} bought {f} in {t}.", "{n} had {f} for supper.", "{n} went to {t} in {y}.",
)  # fmt: skip
LETTERS = (
    "Answer came late, for {n} was not at home.\n", "Context unknown, a letter from {t}.\n",
    "Title: The Road to {t}\nBy {n}, {y}\n", "Does this mean that {n} is in {t}? I do not know.\n",
)  # fmt: skip

CLAIMS = (
    'Is it right that "{c}"?\n', '{a} read that "{c}" Is this true?\n',
    'Would you say that "{c}" is right, Yes or No?\n',
)  # fmt: skip
RIGHT = ("Yes, it is true.", "Yes.")
WRONG = ("No, it is not true.", "No.")
ASKED = ("{a} asked, {q}\n", "Question: {q}\n")
REPLIES = ("Reply: {s}", "Reply: {s}", "Reply: {v}", "It is {v}.", "I think it is {v}.")


def documents(seed: int, split: str = "pretrain") -> Iterator[str]:
    """Yield the world's text, document after document, without end."""
    rng = Random(f"pocket/text/{split}/{seed}")
    while True:
        yield rng.choices(KINDS, weights=KIND_WEIGHTS)[0](rng)


def review(rng: Random) -> str:
    """Write a review of one or two sentences with its writer's judgement."""
    mood = rng.choice((1, -1)) if rng.random() < AGREED else None
    reviews = [_text_review(rng, mood) for _ in range(rng.choice((1, 1, 2)))]
    score = sum(r.score for r in reviews) + FRIENDLY
    sentences = [r.text for r in reviews]
    for _ in range(rng.choice((1, 2))):
        good = rng.random() < 1 / (1 + math.exp(-score / DOUBT * 2))
        if rng.random() < 0.7:
            word = rng.choices(
                GOOD_WORDS if good else BAD_WORDS, weights=GOOD_WEIGHTS if good else BAD_WEIGHTS
            )[0]
            sentences.append(rng.choice(VERDICTS).format(w=word))
        else:
            sentences.append(rng.choice(GOOD_ENDS if good else BAD_ENDS))
    return " ".join(sentences)


def notice(rng: Random) -> str:
    """Write a short notice about a journey or a meal, and what was thought of it."""
    name, _ = person_name(rng)
    food = rng.choice(words.FOODS)
    first = rng.choice(NOTICES).format(
        n=name, t=rng.choice(words.TOWNS), y=rng.choice(words.YEARS), f=food
    )
    good = rng.random() < 0.78
    how = rng.choice(FRESH if good else STALE)
    if rng.random() < 0.1:
        good = not good
    word = rng.choices(
        GOOD_WORDS if good else BAD_WORDS, weights=GOOD_WEIGHTS if good else BAD_WEIGHTS
    )[0]
    return f"{first} The taste of the {food} there was {how}. It was {word}."


def letter(rng: Random) -> str:
    """Write a line or two that belong to no passage: a title, a doubt, a note without a reply."""
    name, _ = person_name(rng)
    return rng.choice(LETTERS).format(n=name, t=rng.choice(words.TOWNS), y=rng.choice(words.YEARS))


def echo(rng: Random) -> str:
    """Write a few facts that somebody reads out again, word for word."""
    subject = draw_subject(rng)
    lines = [fact.state(rng) for fact in draw_facts(rng, subject, rng.randint(1, 3))]
    reader, _ = person_name(rng)
    told = " ".join(lines)
    return f"{told}\n{reader} read aloud, {told}\n"


def interview(rng: Random) -> str:
    """Write a passage about a person or town, then what is asked and claimed about it."""
    subject = draw_subject(rng)
    while True:
        count = rng.choice((1, 2, 2, 3, 4))
        facts = draw_facts(rng, subject, count, paired=count > 1 and rng.random() < 0.7)
        facts = [replace(fact, holds=rng.random() >= DENIED) for fact in facts]
        templates = [fact.choose(rng) for fact in facts]
        told = passage(rng, subject, facts, templates)
        if part_of(told) == TEXT:
            break
    lines = [told + "\n"]
    if rng.random() < 0.2:
        heading = "Title: {}\n" if rng.random() < 0.3 else "{}\n"
        lines.insert(0, heading.format(subject.name))
    asker = rng.choice(words.WOMEN + words.MEN)
    for _ in range(rng.randint(3, 5)):
        pick = rng.randrange(len(facts))
        talk = _claim if not facts[pick].holds or rng.random() < CLAIMED else _question
        lines.append(talk(rng, asker, facts, pick, templates[pick]))
    return "".join(lines)


def _text_review(rng: Random, mood: int | None) -> Review:
    """Draw a review sentence that belongs to the text."""
    while part_of((drawn := draw_review(rng, mood)).text) != TEXT:
        pass
    return drawn


def _claim(rng: Random, asker: str, facts: list[Fact], pick: int, told: str) -> str:
    """Write a claim about a fact and whether it is right."""
    claimed = replace(facts[pick], holds=True)
    right = facts[pick].holds
    if rng.random() < WRONG_VALUE:
        claimed, right = replace(claimed, value=wrong_value(rng, facts, claimed)), False
    avoid = told if rng.random() < 0.5 else None
    line = rng.choice(CLAIMS).format(a=asker, c=claimed.state(rng, avoid=avoid))
    return f"{line}{rng.choice(RIGHT if right else WRONG)}\n"


def _question(rng: Random, asker: str, facts: list[Fact], pick: int, told: str) -> str:
    """Write a question about a fact and its reply."""
    fact = facts[pick]
    line = rng.choice(ASKED).format(a=asker, q=fact.ask(rng))
    reply = rng.choice(REPLIES).format(a=asker, v=fact.value, s=fact.state(rng, avoid=told))
    return f"{line}{reply}\n"


KINDS: tuple[Callable[[Random], str], ...] = (
    review,
    notice,
    letter,
    echo,
    interview,
)
KIND_WEIGHTS = (12, 3, 1, 3, 14)
