"""Examples with all their options as one packed batch: no token twice, none that nothing reads.

A prompt that options share stands once, each option's own tokens behind it; the last token of an
option predicts nothing and is left out. In attention each option is a row that begins with its
prompt: a `Layout` fills the rows from the tokens they have in common. Options of one token need
their prompt's row alone. So layers see what a cache would save as well, in a single forward.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from experiments.data.batches import Rows
from experiments.data.encode import Encoded
from experiments.data.packing import Layout


@dataclass(frozen=True)
class OptionBatch:
    """A packed batch, P places of which predict option tokens, and whose these are.

    `rows` has targets (P, 1, C): what may follow each place. `numbers` (M,) says which of these P *
    C are the tokens of the first option, the second, ..., `lengths` how many each option has.
    """

    rows: Rows
    numbers: Tensor  # (M,) int64
    lengths: list[int]


@dataclass
class _Laid:
    """Tokens side by side, and the rows of attention as numbers of tokens."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    rows: list[list[int]] = field(default_factory=list)
    followers: dict[int, list[int]] = field(default_factory=dict)  # token -> what may follow it
    asked: list[tuple[int, int]] = field(default_factory=list)  # (token, which of its followers)

    def add(self, example: Encoded) -> None:
        """Lay down an example: the tokens its rows share, then each row's own."""
        shared = self._put(example.ids[0][: example.shared], 0)
        alone = [shared]  # where no option has a token of its own to run
        for ids, length in zip(example.ids, example.option_lengths, strict=True):
            row = shared + self._put(ids[example.shared : -1], example.shared)
            if len(row) > len(shared):
                alone = []
                self.rows.append(row)
            for place, token in zip(row[-length:], ids[-length:], strict=True):
                following = self.followers.setdefault(place, [])
                self.asked.append((place, len(following)))
                following.append(token)
        self.rows += alone

    def _put(self, ids: Sequence[int], position: int) -> list[int]:
        first = len(self.ids)
        self.ids += ids
        self.positions += range(position, position + len(ids))
        return list(range(first, len(self.ids)))


def collate_options(encoded: Sequence[Encoded], device: torch.device | str) -> OptionBatch:
    """Make the packed batch of these examples' options."""
    laid = _Laid()
    for example in encoded:
        laid.add(example)
    width, most = max(map(len, laid.rows)), max(map(len, laid.followers.values()))
    slots = [0] * len(laid.ids)
    for row, numbers in enumerate(laid.rows):
        for column, token in enumerate(numbers):
            slots[token] = row * width + column
    ids = torch.tensor([laid.ids])
    targets = [following + [0] * (most - len(following)) for following in laid.followers.values()]
    order = {place: at for at, place in enumerate(laid.followers)}
    rows = Rows(
        ids,
        torch.ones_like(ids),
        torch.ones_like(ids, dtype=torch.bool),
        torch.tensor([laid.positions]),
        torch.tensor(list(order)),
        torch.tensor(targets)[:, None],
        torch.ones(len(order), 1, dtype=torch.bool),
        padded=False,
        layout=Layout(
            len(laid.rows),
            width,
            torch.tensor(slots),
            torch.tensor([row + [0] * (width - len(row)) for row in laid.rows]).flatten(),
            torch.arange(len(order)),
        ),
    )
    numbers = torch.tensor([order[place] * most + which for place, which in laid.asked])
    lengths = [length for example in encoded for length in example.option_lengths]
    return OptionBatch(rows.to(device), numbers.to(device), lengths)
