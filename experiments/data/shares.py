"""A step's batch cut into shares: one for each process, each in `train.accumulation` micro-batches.

Every process samples and pads the whole batch, then keeps its own rows: padded to the batch's width
and packed or not as the whole batch would be, so that AGZO's test matrix and the loss are those of
one process. Shares are runs of examples as equal as can be; the losses are weighted by what they
are a mean over, examples (classification) or option tokens (lm).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from agzo.distributed.group import ALONE, Group
from agzo.distributed.pieces import Piece
from experiments.config.errors import BadInput
from experiments.config.schema import TrainConfig
from experiments.data.batches import Batch

BY_ROW = ("input_ids", "attention_mask", "token_mask", "position_ids", "targets", "target_mask")


@dataclass(frozen=True)
class Shares:
    """How the batches of a run are divided."""

    group: Group = ALONE
    accumulation: int = 1

    @property
    def count(self) -> int:
        """How many pieces a batch has, over all processes."""
        return self.group.size * self.accumulation

    def ranges(self, examples: int) -> list[range]:
        """Return the examples of each piece of a batch, process after process."""
        cuts = [examples * i // self.count for i in range(self.count + 1)]
        return [range(a, b) for a, b in pairwise(cuts)]

    def mine(self, examples: int) -> list[range]:
        """Return the examples of each of this process's pieces."""
        first = self.group.rank * self.accumulation
        return self.ranges(examples)[first : first + self.accumulation]


def check_shares(train: TrainConfig, shares: Shares) -> None:
    """Refuse a batch that cannot be divided so."""
    processes = shares.group.size
    if shares.count == 1:
        return
    if train.batch_size < shares.count:
        raise BadInput(
            f"train.batch_size={train.batch_size}: allowed with {processes} process(es) and "
            f"train.accumulation={train.accumulation} are {shares.count} or more, an example for "
            "each micro-batch"
        )
    if train.objective == "metric":
        raise BadInput(
            f"train.objective=metric: allowed with {processes} process(es) and "
            f"train.accumulation={train.accumulation} is loss"
        )


def pieces(
    loss: Callable[[Batch], Tensor],
    batch: Batch,
    ranges: list[range],
    pack: bool,
    device: torch.device,
    seen: Callable[[Tensor], Tensor | None],
) -> list[Piece]:
    """Return pieces of a padded batch (on the CPU), which run on a device.

    Args:
        loss: runs the model on a batch that is there.
        ranges: the examples of each.
        pack: run them packed.
        seen: turns a mask of real tokens into the one that tuned layers see.
    """
    return [_piece(loss, batch, each, pack, device, seen) for each in ranges]


def _piece(
    loss: Callable[[Batch], Tensor],
    batch: Batch,
    examples: range,
    pack: bool,
    device: torch.device,
    seen: Callable[[Tensor], Tensor | None],
) -> Piece:
    part, rows = cut(batch, examples)
    weight = int(part.target_mask.sum()) if batch.loss == "lm" else len(examples)
    before: dict[int, int] = {}
    if pack:
        for mask in (batch.token_mask, batch.target_mask):
            own = int(mask[rows : rows + len(part.input_ids)].sum())
            before[own] = int(mask[:rows].sum())
        part = part.pack()
    part = part.to(device)
    return Piece(lambda: loss(part), seen(part.token_mask), float(weight), rows, before)


def cut(batch: Batch, examples: range) -> tuple[Batch, int]:
    """Return some examples of a padded batch, at its width, and how many rows come before."""
    scored = batch.option_rows[examples.start : examples.stop]  # (E, O)
    real, choices = scored[scored >= 0], batch.targets.shape[2]
    first, last = int(real.min()) // choices, int(real.max()) // choices + 1
    part = replace(
        batch,
        **{name: getattr(batch, name)[first:last] for name in BY_ROW},
        option_rows=torch.where(scored >= 0, scored - first * choices, scored),
        labels=batch.labels[examples.start : examples.stop],
        lengths=None if batch.lengths is None else batch.lengths[first:last],
    )
    return part, first
