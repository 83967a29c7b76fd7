"""Pocket ReCoRD: which name of a passage belongs into a sentence about it?

The passage tells four facts of two people and repeats one of them as a highlight; the query tells
another one in other words, with a gap for the person or for the town or person that it names. The
gap is as likely for each of the four names. The highlight is chosen so that being in it says
nothing: for a gap that is a person it is about either person as often, for another gap it has no
name but a person's.
"""

from __future__ import annotations

from random import Random

from experiments.pocket.couples import draw_couple
from experiments.pocket.tasks.base import PocketTask, Row

GAP = "@placeholder"
HIGHLIGHT = "\n@highlight\n"


def draw(rng: Random, label: int) -> Row:
    """Draw a passage with a highlight and a query about it (`label` unused)."""
    couple = draw_couple(rng)
    who, about = rng.randrange(2), rng.randrange(2)  # whose fact is asked, whose is highlighted
    if rng.random() < 0.5:
        asked, answer = couple.plain[who], couple.plain[who].subject
        lit = couple.named[who] if about == who else rng.choice((couple.named, couple.plain))[about]
        query = asked.render(asked.choose(rng, couple.phrasings[asked]), GAP)
    else:
        asked, answer = couple.named[who], couple.named[who].value
        lit = couple.plain[about]
        template = asked.choose(rng, couple.phrasings[asked])
        query = template.format(s=asked.subject, v=GAP)
    highlight = lit.state(rng, avoid=couple.phrasings[lit]).removesuffix(".")
    names = {fact.subject for fact in couple.facts} | {fact.value for fact in couple.named}
    return {
        "passage": f"{couple.text}{HIGHLIGHT}{highlight}",
        "query": query,
        "entities": sorted(names),
        "answers": [answer],
    }


def key(row: Row) -> str:
    """Return the passage without its highlight."""
    return row["passage"].split(HIGHLIGHT)[0]


def identify(row: Row, index: int) -> Row:
    """Number passage and query, as ReCoRD does."""
    return {**row, "idx": {"passage": index, "query": index}}


RECORD = PocketTask("record", 1, draw, key, identify)
