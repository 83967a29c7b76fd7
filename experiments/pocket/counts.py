"""Stories with numbers: who owns how many of what, who saw which towns and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from experiments.pocket import words


@dataclass(frozen=True)
class Query:
    """A question about a story, its short answer, and a sentence that gives it."""

    question: str
    answer: str
    sentence: str


@dataclass(frozen=True)
class Story:
    """A passage and the questions that it answers, by kind."""

    text: str
    queries: dict[str, tuple[Query, ...]]

    def draw_query(self, rng: Random) -> Query:
        """Draw a kind of question, then a question of it."""
        return rng.choice(self.queries[rng.choice(tuple(self.queries))])


def draw_story(rng: Random) -> Story:
    """Draw what two people own (often some things alike) and a journey of one of them."""
    one, two = rng.sample(words.WOMEN + words.MEN, 2)
    first, second, third = (f"{thing}s" for thing in rng.sample(words.OBJECTS, 3))
    alike = rng.random() < 0.6
    owned = [(one, first), (one, second), (two, first if alike else third)]
    numbers = rng.sample(range(2, 10), 3)
    traveller, towns = rng.choice((one, two)), rng.sample(words.TOWNS, rng.randint(1, 4))
    year = rng.choice(words.YEARS)
    sentences = [
        f"{one} owns {numbers[0]} {first} and {numbers[1]} {second}.",
        f"{two} owns {numbers[2]} {owned[2][1]}.",
        f"{traveller} went to {_listed(towns)} in {year}.",
    ]
    rng.shuffle(sentences)
    queries = {
        "number": tuple(
            Query(f"How many {thing} does {name} own?", str(n), f"{name} owns {n} {thing}.")
            for (name, thing), n in zip(owned, numbers, strict=True)
        ),
        "count": (
            Query(
                f"How many towns did {traveller} see?",
                str(len(towns)),
                f"{traveller} saw {len(towns)}, {_listed(towns)}.",
            ),
        ),
        "year": (
            Query(
                f"When did {traveller} go to {towns[0]}?",
                year,
                f"{traveller} went to {towns[0]} in {year}.",
            ),
        ),
        "who": (
            Query(f"Who owns {second}?", one, f"{one} owns {second}."),
            Query(f"Who went to {towns[-1]}?", traveller, f"{traveller} went to {towns[-1]}."),
        ),
    }
    if alike:
        more = one if numbers[0] > numbers[2] else two
        queries["more"] = (Query(f"Who owns more {first}?", more, f"{more} owns more {first}."),)
    return Story(" ".join(sentences), queries)


def _listed(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    return f"{', '.join(names[:-1])} and {names[-1]}"
