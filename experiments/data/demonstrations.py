"""In-context learning's prompts: answered training examples in front of each question.

As in MeZO's protocol every question gets its own random demonstrations, separated by a blank line.
Two things differ: they come from the run's own training examples, so that every method learns from
the same data, and where they do not fit, whole demonstrations are left out (MeZO's prompt loses its
beginning, wherever that cuts). How many were used is part of the result.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from experiments.data.encode import Encoder
from experiments.tasks.base import Example

SEPARATOR = "\n\n"


def answered(example: Example) -> str:
    """Return an example with its answer, as a demonstration reads."""
    return (example.prompt + example.options[example.label or 0]).strip()


def with_demonstrations(
    examples: Sequence[Example],
    pool: Sequence[Example],
    count: int,
    encoder: Encoder,
    max_length: int,
    seed: int,
) -> tuple[list[Example], list[int]]:
    """Put `count` demonstrations from `pool` before each example, fewer where they do not fit.

    `max_length` is the room in tokens for demonstrations, prompt and option; where answers are
    generated, without the option, which nobody may look at. Returns the new examples and how many
    demonstrations each one got (at most the whole pool).
    """
    shown = [answered(example) + SEPARATOR for example in pool]
    lengths = encoder.count(shown)
    own = [encoder.length(example) for example in examples]
    # One question's demonstrations must not depend on how many questions there are.
    orders = [np.random.RandomState([seed, index, 0x1C1]) for index in range(len(examples))]
    made, used = [], []
    for example, taken, order in zip(examples, own, orders, strict=True):
        chosen = order.permutation(len(pool))[:count].tolist()
        room, kept = max_length - taken, 0
        while kept < len(chosen) and lengths[chosen[kept]] <= room:
            room -= lengths[chosen[kept]]
            kept += 1
        new, kept = _fitted(example, [shown[i] for i in chosen[:kept]], encoder, max_length)
        made.append(new)
        used.append(kept)
    return made, used


def _fitted(
    example: Example, shown: list[str], encoder: Encoder, max_length: int
) -> tuple[Example, int]:
    """Drop demonstrations until it fits: joined text may be a few tokens longer than its parts."""
    while shown:
        joined = replace(example, prompt="".join(shown) + example.prompt)
        if encoder.length(joined) <= max_length:
            return joined, len(shown)
        shown = shown[:-1]
    return example, 0
