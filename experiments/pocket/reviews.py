"""Film reviews: clauses with a worth, joined by words that say which clause counts for more.

The world's own rule for the sentiment of a sentence is `Review.score`: each clause is worth its
word's strength, times 1.5 or 0.5 under an intensifier, turned round by a negation, doubled after
"but" and halved under "although". Its sign is the label; a score near zero has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from experiments.pocket import words

MARGIN = 1.0  # |score| below this is too mixed to be labelled
STRONGER_BY, WEAKER_BY = 1.5, 0.5
NEGATED_BY = -0.75  # "not superb" blames less than "awful" does
MAIN_CLAUSE_BY, SIDE_CLAUSE_BY = 2.0, 0.5


@dataclass(frozen=True)
class Review:
    """One sentence of a review and what it is worth (positive: praise)."""

    text: str
    score: float

    @property
    def label(self) -> int | None:
        """Return 1 for praise, 0 for blame, None where the sentence is too mixed to say."""
        if abs(self.score) < MARGIN:
            return None
        return int(self.score > 0)


def draw_review(rng: Random, mood: int | None = None) -> Review:
    """Draw one review sentence of one to three clauses; with a `mood` (1 or -1) all agree."""
    shape = rng.choices(SHAPES, weights=SHAPE_WEIGHTS)[0]
    first, second = _clause(rng, mood), _clause(rng, mood)
    if shape == "one":
        text, score = first.text, first.score
    elif shape == "and":
        text, score = f"{first.text} and {second.text}", first.score + second.score
    elif shape == "but":
        text = f"{first.text} , but {second.text}"
        score = first.score + MAIN_CLAUSE_BY * second.score
    elif shape == "although":
        text = f"although {first.text} , {second.text}"
        score = SIDE_CLAUSE_BY * first.score + second.score
    elif shape == "even if":
        text = f"{first.text} , even if {second.text}"
        score = first.score + SIDE_CLAUSE_BY * second.score
    else:
        phrase = _phrase(rng, mood)
        text = f"{phrase.text} : {first.text} and {second.text}"
        score = phrase.score + first.score + second.score
    if rng.random() < 0.3:
        text = f"{rng.choice(words.ASIDES)} , {text}"
    return Review(f"{text} .", score)


SHAPES = ("one", "and", "but", "although", "even if", "list")
SHAPE_WEIGHTS = (2, 2, 2, 1, 1, 1)


def _clause(rng: Random, mood: int | None) -> Review:
    """Draw a clause about one part of the film."""
    subject = f"the {rng.choice(words.FILM_PARTS)}"
    negated = rng.random() < 0.2
    sign = rng.choice((1, -1)) if mood is None else -mood if negated else mood
    kind = rng.choices(("adjective", "verb", "thing"), weights=(4, 1, 1))[0]
    if kind == "adjective":
        opinion = _opinion(rng, sign, negated)
        return Review(f"{subject} is {opinion.text}", opinion.score)
    score = 2.0 * sign * (NEGATED_BY if negated else 1.0)
    if kind == "verb":
        verb = rng.choice(words.GOOD_VERBS if sign > 0 else words.BAD_VERBS)
        return Review(f"{subject} never {verb}" if negated else f"{subject} {verb}", score)
    thing = rng.choice(words.GOOD_THINGS if sign > 0 else words.BAD_THINGS)
    how = rng.choice(("has no", "is free of") if negated else ("is full of", "is rich in"))
    return Review(f"{subject} {how} {thing}", score)


def _opinion(rng: Random, sign: int, negated: bool) -> Review:
    """Draw an adjective of the given sign, negated or perhaps intensified."""
    strengths = words.PRAISE if sign > 0 else words.BLAME
    adjective = rng.choice(tuple(strengths))
    score = float(sign * strengths[adjective])
    turn = rng.random()
    if negated:
        return Review(f"{rng.choice(('not', 'hardly'))} {adjective}", score * NEGATED_BY)
    if turn < 0.25:
        return Review(f"{rng.choice(words.STRONGER)} {adjective}", score * STRONGER_BY)
    if turn < 0.5:
        return Review(f"{rng.choice(words.WEAKER)} {adjective}", score * WEAKER_BY)
    return Review(adjective, score)


def _phrase(rng: Random, mood: int | None) -> Review:
    """Draw a noun phrase: "a superb thriller"."""
    sign = mood or rng.choice((1, -1))
    strengths = words.PRAISE if sign > 0 else words.BLAME
    adjective = rng.choice(tuple(strengths))
    part = rng.choice(words.FILM_PARTS)
    article = "an" if adjective[0] in "aeiou" else "a"
    return Review(f"{article} {adjective} {part}", float(sign * strengths[adjective]))
