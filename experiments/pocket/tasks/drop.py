"""Pocket DROP: a question about a story with numbers; the answer is a name, a year or a count."""

from __future__ import annotations

import hashlib
from random import Random

from experiments.pocket.counts import draw_story
from experiments.pocket.tasks.base import PocketTask, Row


def draw(rng: Random, label: int) -> Row:
    """Draw a story and one of the questions that it answers (`label` unused)."""
    story = draw_story(rng)
    query = story.draw_query(rng)
    return {
        "passage": story.text,
        "question": query.question,
        "answers_spans": {"spans": [query.answer]},
    }


def identify(row: Row, index: int) -> Row:
    """Name a row by digits, as DROP does."""
    digest = hashlib.sha256(f"{row['passage']}\n{row['question']}\n{index}".encode()).digest()
    return {"query_id": str(int.from_bytes(digest[:8], "big")), **row}


DROP = PocketTask("drop", 1, draw, lambda row: row["passage"], identify)
