"""Pocket WSC: does a pronoun stand for a person that the sentence names (0 no, 1 yes)?

The person asked about is either of the two, so neither place nor name tells the label.
"""

from __future__ import annotations

from random import Random

from experiments.pocket.pronouns import draw_mention
from experiments.pocket.tasks.base import PocketTask, Row, with_idx


def draw(rng: Random, label: int) -> Row:
    """Draw a sentence with two people and ask about the one that the label says."""
    mention = draw_mention(rng)
    asked = mention.people[mention.refers if label else 1 - mention.refers]
    tokens = mention.text.split(" ")
    return {
        "text": mention.text,
        "span1_index": tokens.index(asked),
        "span2_index": tokens.index(mention.pronoun),
        "span1_text": asked,
        "span2_text": mention.pronoun,
        "label": label,
    }


WSC = PocketTask("wsc", 2, draw, lambda row: row["text"], with_idx)
