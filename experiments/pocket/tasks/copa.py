"""Pocket COPA: which of two events is the cause, or the effect, of a third (label: 0 or 1)?

The wrong choice is the same end of another of the world's rules, so that every event is as often
the wrong choice as the right one.
"""

from __future__ import annotations

from random import Random

from experiments.pocket.events import draw_pair, other_event
from experiments.pocket.tasks.base import PocketTask, Row, with_idx


def draw(rng: Random, label: int) -> Row:
    """Draw an event with its cause or effect in the place that the label says."""
    pair = draw_pair(rng)
    choices = [pair.second, other_event(rng, pair)]
    if label == 1:
        choices.reverse()
    return {
        "premise": pair.first,
        "choice1": choices[0],
        "choice2": choices[1],
        "question": "effect" if pair.effect else "cause",
        "label": label,
    }


def key(row: Row) -> str:
    """Return premise and right choice: what has to be known for a row."""
    return f"{row['premise']} {row['choice2' if row['label'] else 'choice1']}"


COPA = PocketTask("copa", 2, draw, key, with_idx)
