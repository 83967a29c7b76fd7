"""Pocket SST-2: the sentiment of one film-review sentence (0 negative, 1 positive)."""

from __future__ import annotations

from random import Random

from experiments.pocket.reviews import draw_review
from experiments.pocket.tasks.base import PocketTask, Row, with_idx


def draw(rng: Random, label: int) -> Row:
    """Draw a review sentence that the world's rule gives this label."""
    while (review := draw_review(rng)).label != label:
        pass
    return {"sentence": review.text, "label": label}


SST2 = PocketTask("sst2", 2, draw, lambda row: row["sentence"], with_idx)
