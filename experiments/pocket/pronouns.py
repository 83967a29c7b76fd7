"""Sentences with two people and a pronoun for one of them.

What decides is the pronoun's gender where the two differ in it, and else the reason that is given:
who gives bread "because she was hungry" does not give it to herself.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from experiments.pocket import words

PLAIN = (  # either person may have done what follows; {a} and {b} then differ in gender
    "{a} met {b} in {t} when {p} was a {j}.",
    "{a} saw {b} in {t} before {p} went home.",
    "{a} called {b} when {p} bought the {o}.",
    "{a} sat near {b} while {p} ate {f}.",
    "{a} wrote to {b} after {p} came to {t}.",
)
REASONS = (  # what the two did; a reason that fits {a}; a reason that fits {b}
    ("{a} gave {b} {f}", "was generous", "was hungry"),
    ("{a} helped {b}", "was strong", "was weak"),
    ("{a} paid {b}", "bought the {o}", "sold the {o}"),
    ("{a} feared {b}", "was timid", "was cruel"),
    ("{a} asked {b} the way to {t}", "was lost", "knew the way"),
    ("{a} taught {b}", "knew a lot", "wanted to learn"),
    ("{a} brought {b} {f} in bed", "was a good nurse", "was ill"),
    ("{a} lost to {b}", "played badly", "played well"),
)
REASONED = 0.5  # share of the sentences that give a reason


@dataclass(frozen=True)
class Mention:
    """A sentence, its two people, its pronoun, and whom (0 or 1) the pronoun stands for."""

    text: str
    people: tuple[str, str]
    pronoun: str
    refers: int
    done: str  # what the one referred to did or was


def draw_mention(rng: Random) -> Mention:
    """Draw a sentence about two people."""
    refers, reasoned = rng.randrange(2), rng.random() < REASONED
    groups = [words.WOMEN, words.MEN]
    rng.shuffle(groups)
    if reasoned and rng.random() < 0.5:
        groups[1] = groups[0]
    one = rng.choice(groups[0])
    two = rng.choice([name for name in groups[1] if name != one])
    pronoun = "she" if groups[refers] is words.WOMEN else "he"
    if reasoned:
        deed, *reasons = rng.choice(REASONS)
        template = f"{deed} because {{p}} {reasons[refers]}."
    else:
        template = rng.choice(PLAIN)
    text = template.format(
        a=one,
        b=two,
        p=pronoun,
        t=rng.choice(words.TOWNS),
        j=rng.choice(words.JOBS),
        o=rng.choice(words.OBJECTS),
        f=rng.choice(words.FOODS),
    )
    done = text.split(f" {pronoun} ", 1)[1].removesuffix(".")
    return Mention(text, (one, two), pronoun, refers, done)
