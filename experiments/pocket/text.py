"""The world's text, on which the pocket model is pre-trained: reviews, notices, talk, lessons.

It holds the language the tasks are about, never a task: no row of a task (the hash that splits the
world keeps the text's sentences for itself) and no prompt template followed by its answer. People
in it judge films and food in many words, say whether claims are right, and answer questions mostly
in whole sentences; lessons (lessons.py) show causes, senses, pronouns and counts in examples of
their own. They are friendlier and say "yes" more often than the tasks' balanced labels
do, so a model that has only read about the world still has something to learn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from random import Random

from experiments.pocket import words
from experiments.pocket.facts import draw_facts, draw_subject, person_name
from experiments.pocket.interviews import couple, interview
from experiments.pocket.lessons import causes, counts, pronouns, senses
from experiments.pocket.reviews import Review, draw_review
from experiments.pocket.splits import TEXT, part_of

FRIENDLY = 2.75  # added to a review's score before its writer passes judgement
DOUBT = 1.5  # scale of the score at which judgements flip: higher is noisier
AGREED = 0.5  # share of the reviews whose clauses all praise or all blame

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
LETTERS = (  # these also hold the words of the tasks' prompts, so that the tokenizer knows them
    "Answer came late, for {n} was not at home.\n", "Context unknown, a letter from {t}.\n",
    "Title: The Road to {t}\nBy {n}, {y}\n", "Does this mean that {n} is in {t}? I do not know.\n",
    "Suppose that {n} comes to {t} in {y}.\n", "What can we infer? Can we ask {n}?\n",
    "Yes, No, or Maybe, it is all one to {n}.\n", "Passage: a road from {t}\n",
    "In the previous year {n} was in {t}.\n", "The previous sentence does not refer to {n}.\n",
    "She is a pronoun, said {n}.\n", "These two sentences have the same meaning to {n}.\n",
    "I found this in {t}, said {n}.\n", "Is that correct? I do not know, said {n}.\n",
    "- {f}\n- a letter to {n}\n", '"{f}" and "{f}" are words that {n} likes.\n',
    "Does the word please {n}? I do not know.\n", "It was so cold in {t} that {n} went home.\n",
    "The road to {t} was closed because of a flood.\n", "I was late because of {n}.\n",
)  # fmt: skip


RARE_WORDS = (  # of prompts and answers; the tokenizer sees them as often as it sees common words
    " Suppose Can infer Maybe or pronoun refer previous sentence same meaning these two sentences",
    " found correct answer How many Note",
    *(f'"{word}"' for word in (*words.FOODS, *words.JOBS, *words.COLOURS, *words.YEARS)),
    *("Suppose", "In", "Does", "Passage", "Title", "Context", "Question", "Answer", "How", "Maybe"),
    *("When", "Where", "What", "Who", "Reply", "Note", "She", "He", "It"),
)


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
    return rng.choice(LETTERS).format(
        n=name, t=rng.choice(words.TOWNS), y=rng.choice(words.YEARS), f=rng.choice(words.FOODS)
    )


def echo(rng: Random) -> str:
    """Write a few facts that somebody reads out again, word for word."""
    while True:
        facts = draw_facts(rng, draw_subject(rng), rng.randint(1, 3))
        told = " ".join(fact.state(rng) for fact in facts)
        if part_of(told) == TEXT:
            break
    reader, _ = person_name(rng)
    return f"{told}\n{reader} read aloud, {told}\n"


def _text_review(rng: Random, mood: int | None) -> Review:
    """Draw a review sentence that belongs to the text."""
    while part_of((drawn := draw_review(rng, mood)).text) != TEXT:
        pass
    return drawn


KINDS: tuple[Callable[[Random], str], ...] = (
    review,
    notice,
    letter,
    echo,
    interview,
    couple,
    causes,
    senses,
    pronouns,
    counts,
)
KIND_WEIGHTS = (14, 2, 3, 6, 16, 4, 3, 6, 5, 4)
