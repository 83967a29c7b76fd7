"""Pocket WiC: does a word have the same meaning in two sentences (0 no, 1 yes)?

Only some of the world's ambiguous words are asked about: with all eight, first-order training needs
many hundred steps before it finds a rule at all.
"""

from __future__ import annotations

from random import Random

from experiments.pocket.senses import draw_uses
from experiments.pocket.tasks.base import PocketTask, Row, with_idx

WORDS = ("bank", "bat", "letter")


def draw(rng: Random, label: int) -> Row:
    """Draw a word with two senses and two sentences with it."""
    uses = draw_uses(rng, same=label == 1, among=WORDS)
    starts = [sentence.index(f" {uses.word}") + 1 for sentence in uses.sentences]
    return {
        "word": uses.word,
        "sentence1": uses.sentences[0],
        "sentence2": uses.sentences[1],
        "start1": starts[0],
        "start2": starts[1],
        "end1": starts[0] + len(uses.word),
        "end2": starts[1] + len(uses.word),
        "label": label,
    }


WIC = PocketTask("wic", 2, draw, lambda row: f"{row['sentence1']} {row['sentence2']}", with_idx)
