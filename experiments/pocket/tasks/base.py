"""What one task of the pocket world has to provide: the door through which tasks are added."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class PocketTask:
    """How the rows of one data set are drawn.

    `draw(rng, label)` returns a row with that label (0 where the task has no labels) in the hub's
    fields but without its identity; `key(row)` is the text whose hash decides the split;
    `identify(row, index)` returns the finished row, with `idx` or `id`.
    """

    name: str
    labels: int
    draw: Callable[[Random, int], Row]
    key: Callable[[Row], str]
    identify: Callable[[Row, int], Row]


def with_idx(row: Row, index: int) -> Row:
    """Number a row as GLUE and SuperGLUE do; `idx` goes before the label."""
    label = row.pop("label")
    return {**row, "idx": index, "label": label}
