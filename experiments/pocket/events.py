"""Everyday events and what they lead to: the causes and effects of the world.

A rule ties a cause to its effect; both happen to one person. In a pair the event told first names
the person and the other says "she" or "he".
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from experiments.pocket import words
from experiments.pocket.facts import person_name

RULES = (  # cause, effect; {s} the person, {f} a food, {c} a colour, {t} a town, {j} a job
    ("{s} was hungry.", "{s} ate some {f}."),
    ("{s} was thirsty.", "{s} drank a cup of water."),
    ("{s} was tired.", "{s} went to bed."),
    ("{s} was cold.", "{s} put on a {c} coat."),
    ("{s} was ill.", "{s} coughed all day."),
    ("{s} lost the key.", "{s} could not open the door."),
    ("{s} broke a {c} cup.", "{s} swept the floor."),
    ("{s} fell off the horse.", "{s} hurt a leg."),
    ("{s} won a prize.", "{s} was very proud."),
    ("{s} missed the train to {t}.", "{s} came home late."),
    ("{s} told a good joke.", "{s} heard people laugh."),
    ("{s} forgot the {c} umbrella.", "{s} got wet in the rain."),
    ("{s} worked very hard as a {j}.", "{s} earned a lot."),
    ("{s} spent all the money.", "{s} could not pay the {j}."),
    ("{s} heard a loud noise.", "{s} woke up at night."),
    ("{s} sat in the dark.", "{s} lit a {c} lamp."),
    ("{s} had to cross the lake.", "{s} took a {c} boat."),
    ("{s} sold the house.", "{s} moved to {t}."),
    ("{s} had a birthday.", "{s} got a {c} hat."),
    ("{s} stole a {c} clock.", "{s} was put in prison."),
    ("{s} planted seeds.", "{s} picked flowers."),
    ("{s} left {f} in the oven.", "{s} smelled smoke."),
    ("{s} ran too fast.", "{s} was out of breath."),
    ("{s} looked into the sun.", "{s} closed both eyes."),
    ("{s} saw a bear near {t}.", "{s} climbed a tree."),
    ("{s} ate too much.", "{s} refused supper."),
    ("{s} had the best horse.", "{s} won the race in {t}."),
    ("{s} had dirty hands.", "{s} washed with soap."),
    ("{s} heard sad news from {t}.", "{s} wept."),
    ("{s} had nothing to do.", "{s} read a book about {t}."),
    ("{s} bought rotten {f}.", "{s} threw it away."),
    ("{s} had no more flour.", "{s} went to the miller."),
)


@dataclass(frozen=True)
class Pair:
    """Two events of which one causes the other; `first` is told first, `effect` if `second` is."""

    first: str
    second: str
    effect: bool
    rule: int
    pronoun: str

    @property
    def key(self) -> str:
        """Return the text whose hash decides which part of the world owns the pair."""
        return f"{self.first} {self.second}"


def draw_pair(rng: Random) -> Pair:
    """Draw a rule and a person and tell either end of it first."""
    name, pronoun = person_name(rng)
    rule, effect = rng.randrange(len(RULES)), rng.random() < 0.5
    first, second = RULES[rule] if effect else RULES[rule][::-1]
    return Pair(_fill(rng, first, name), _fill(rng, second, pronoun), effect, rule, pronoun)


def other_event(rng: Random, pair: Pair) -> str:
    """Draw an event that `pair.second` could be mistaken for: the same end of another rule."""
    rule = rng.choice([k for k in range(len(RULES)) if k != pair.rule])
    return _fill(rng, RULES[rule][1 if pair.effect else 0], pair.pronoun)


def _fill(rng: Random, template: str, subject: str) -> str:
    text = template.format(
        s=subject,
        f=rng.choice(words.FOODS),
        c=rng.choice(words.COLOURS),
        t=rng.choice(words.TOWNS),
        j=rng.choice(words.JOBS),
    )
    return text[0].upper() + text[1:]
