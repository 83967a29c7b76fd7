"""Batches: which examples a step sees, and their rows as left-padded tensors.

Left padding puts every row's option at the right edge, so the positions whose logits count are the
same columns for all rows. With L the longest option of the batch and T its width, option tokens lie
in columns T-L .. T-1 and are predicted by the logits of columns T-L-1 .. T-2, one to the left.
Where all options are single tokens a row is the prompt alone, and its last logits score them all.

A packed batch (packing.py) is made of a padded one: its rows one behind the other, no padding.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from experiments.data.encode import Encoded
from experiments.data.packing import Layout, layout_of, packed_columns
from experiments.tasks.base import Task


@dataclass(frozen=True)
class Rows:
    """Left-padded rows; R rows of width T, L the longest option.

    `padded` is known here, on the host, so that a batch without padding can run without a mask.
    Packed rows have a `layout`; their first four tensors are (1, N), N the number of real tokens,
    and `label_positions` is (M,), M the number of option tokens: no other position has logits.
    """

    input_ids: Tensor  # (R, T) int64
    attention_mask: Tensor  # (R, T) int64, 1 at real tokens
    token_mask: Tensor  # (R, T) bool, the same for AGZO's capture
    position_ids: Tensor  # (R, T) int64, counted from each row's first real token
    label_positions: Tensor  # (L,) int64, columns whose logits predict option tokens
    targets: Tensor  # (R, L, C) int64; C > 1: options of one token that share their row
    target_mask: Tensor  # (R, L) bool, False left of a shorter option
    padded: bool
    layout: Layout | None = field(default=None, kw_only=True)
    lengths: tuple[int, ...] | None = field(default=None, kw_only=True)
    """Of the rows, where rows of different lengths are not run together, see `asking`."""

    def to(self, device: torch.device | str) -> Self:
        """Return the same rows on a device."""
        moved = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor | Layout)
        }
        return replace(self, **moved)

    @property
    def padding(self) -> float:
        """The share of positions that are padding; to be asked on the CPU."""
        return 1.0 - self.token_mask.double().mean().item()

    def pack(self) -> Self:
        """Return left-padded rows packed: (1, N) instead of (R, T), see packing.py."""
        if self.layout is not None:
            raise ValueError("rows are packed already; allowed are padded ones")
        real = self.token_mask
        layout = layout_of(real, self.target_mask)
        first = ("input_ids", "attention_mask", "token_mask", "position_ids")
        return replace(
            self,
            **{name: getattr(self, name)[real][None] for name in first},
            label_positions=packed_columns(real, self.label_positions)[layout.options],
            padded=False,
            layout=layout,
        )


@dataclass(frozen=True)
class Batch(Rows):
    """The rows of one training batch and how its loss reads them.

    classification: every option of an example has a score; `option_rows` (examples, most options)
    holds its number among the (R, C) scores laid end to end, -1 where an example has fewer options.
    lm: the row of the right option only.
    """

    loss: Literal["classification", "lm"]
    option_rows: Tensor  # (E, O) int64
    labels: Tensor  # (E,) int64
    ragged: bool  # some example has fewer options than another


def pad_left(
    ids: Sequence[Sequence[int]], pad_id: int, multiple: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the padded ids, the mask of real tokens and the positions, each (R, T), on the CPU.

    T is the longest row's length, or the next multiple.
    """
    lengths = [len(row) for row in ids]
    width = -(-max(lengths) // multiple) * multiple
    padded = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in ids])
    columns = torch.arange(width) - (width - torch.tensor(lengths))[:, None]  # below 0 in padding
    return padded, columns >= 0, columns.clamp(min=0)


def collate_rows(
    ids: Sequence[Sequence[int]],
    option_lengths: Sequence[int],
    pad_id: int,
    device: torch.device | str = "cpu",
    multiple: int = 1,
    one_length: bool = False,
) -> Rows:
    """Pad rows on the left, see `pad_left`; `option_lengths` count each row's last tokens.

    With `one_length` they are run length by length, none of them padded.
    """
    if not ids:
        raise ValueError("a batch of 0 rows is not allowed, needed: at least one")
    input_ids, token_mask, position_ids = pad_left(ids, pad_id, multiple)
    width, longest = input_ids.shape[1], max(option_lengths)
    skipped = longest - torch.tensor(option_lengths)[:, None]  # (R, 1)
    return Rows(
        input_ids,
        token_mask.long(),
        token_mask,
        position_ids,
        torch.arange(width - longest - 1, width - 1),
        input_ids[:, width - longest :, None].contiguous(),
        torch.arange(longest) >= skipped,
        padded=not bool(token_mask.all()),
        lengths=tuple(map(len, ids)) if one_length else None,
    ).to(device)


def collate_prompts(
    encoded: Sequence[Encoded],
    pad_id: int,
    device: torch.device | str = "cpu",
    multiple: int = 1,
    one_length: bool = False,
) -> Rows:
    """Make one row of each example, its prompt; the options, as many tokens each, are targets."""
    prompts = [example.ids[0][:-1] for example in encoded]
    input_ids, token_mask, position_ids = pad_left(prompts, pad_id, multiple)
    return Rows(
        input_ids,
        token_mask.long(),
        token_mask,
        position_ids,
        torch.tensor([input_ids.shape[1] - 1]),
        torch.tensor([[[row[-1] for row in example.ids]] for example in encoded]),
        torch.ones(len(encoded), 1, dtype=torch.bool),
        padded=not bool(token_mask.all()),
        lengths=tuple(map(len, prompts)) if one_length else None,
    ).to(device)


def collate(
    encoded: Sequence[Encoded],
    task: Task,
    pad_id: int,
    device: torch.device | str = "cpu",
    share: bool = True,
    pack_from: float | None = None,
    multiple: int = 1,
    one_length: bool = False,
) -> Batch:
    """Make the training batch of these examples for the task's loss.

    `share`=False gives every option a row of its own even where one row could serve them all: the
    same loss, MeZO's own rows, the slower reference. A padded batch of which at least
    `pack_from` of the positions are padding is packed; None packs none. Its width is padded to
    a `multiple`. With `one_length` rows of different lengths are not run together.
    """
    if task.loss == "classification":
        options = [list(range(len(example.ids))) for example in encoded]
        labels = [example.label for example in encoded]
    else:
        options = [[example.label] for example in encoded]
        labels = [0] * len(encoded)
    counts = [len(own) for own in options]
    most = max(counts)
    one_row = share and task.loss == "classification" and min(counts) == most > 1
    if one_row and all(example.one_token for example in encoded):
        rows = collate_prompts(encoded, pad_id, multiple=multiple, one_length=one_length)
    else:
        pairs = [(e, option) for e, own in zip(encoded, options, strict=True) for option in own]
        ids = [example.ids[option] for example, option in pairs]
        lengths = [example.option_lengths[option] for example, option in pairs]
        rows = collate_rows(ids, lengths, pad_id, multiple=multiple, one_length=one_length)
    firsts = np.cumsum([0, *counts[:-1]]).tolist()
    option_rows = [
        [first + option if option < count else -1 for option in range(most)]
        for first, count in zip(firsts, counts, strict=True)
    ]
    batch = Batch(
        **vars(rows),
        loss=task.loss,
        option_rows=torch.tensor(option_rows),
        labels=torch.tensor(labels),
        ragged=min(counts) != most,
    )
    return (batch.pack() if packs(batch, pack_from) else batch).to(device)


def packs(batch: Batch, pack_from: float | None) -> bool:
    """Tell whether a padded batch on the CPU is to be packed, see `collate`."""
    return pack_from is not None and batch.padded and batch.padding >= pack_from


def longest_first(
    lengths: Sequence[int], batch_size: int, rows: Sequence[int] | None = None
) -> Iterator[list[int]]:
    """Yield batches of item numbers in order of falling length, at most `batch_size` rows each.

    `rows` says how many rows each item brings, one without it; an item is never divided.
    """
    batch: list[int] = []
    taken = 0
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        own = 1 if rows is None else rows[item]
        if batch and taken + own > batch_size:
            yield batch
            batch, taken = [], 0
        batch.append(item)
        taken += own
    if batch:
        yield batch


def sample_batch(n_train: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Return the example numbers of step `step` (from 0), a pure function of the arguments.

    Epochs are permutations laid end to end and cut into batches of exactly `batch_size`: each
    example comes once an epoch, nothing is dropped, and a batch may straddle two epochs.
    """
    if not 1 <= batch_size <= n_train:
        raise ValueError(
            f"batch_size={batch_size} is not allowed, "
            f"needed: 1 to the number of training examples, {n_train}"
        )
    if step < 0 or seed < 0:
        raise ValueError(f"step={step}, seed={seed} are not allowed, needed: 0 or more")
    epoch, start = divmod(step * batch_size, n_train)
    batch = _epoch(n_train, seed, epoch)[start : start + batch_size]
    if len(batch) < batch_size:
        batch = batch + _epoch(n_train, seed, epoch + 1)[: batch_size - len(batch)]
    return list(batch)


@functools.lru_cache(maxsize=4)
def _epoch(n_train: int, seed: int, epoch: int) -> tuple[int, ...]:
    # A frozen stream: the order of a run must not change with numpy's version. The seed's two
    # words, the epoch and a constant keep it apart from the stream that samples the splits.
    key = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, epoch, 0xBA7C4]
    return tuple(np.random.RandomState(key).permutation(n_train).tolist())
