"""A batch in pieces: micro-batches one after another, and other processes' shares beside them.

    loss of the batch = sum over pieces of weight * loss / sum of weights

The weight of a piece is what its own loss is a mean over (examples, or tokens), so that pieces of
unequal size give the loss of the whole batch. All pieces are evaluated under one direction:

    optimizer.step([Piece(first_half, mask, weight=8), Piece(second_half, mask, weight=8, rows=8)])
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor

from agzo.distributed.group import Group
from agzo.torch_calls.surroundings import Closure


@dataclass(frozen=True)
class Piece:
    """A part of a batch that goes through the model at once.

    AGZO's test matrix is addressed by the place of a row in the whole batch; other methods do not
    ask where a piece stands. Rows must be padded as in the whole batch: to its width.
    """

    closure: Closure
    """Returns the mean loss of the piece, 0-dim."""
    token_mask: Tensor | None = None
    """Boolean (rows, sequence), True for real tokens."""
    weight: float = 1.0
    """Of its loss in that of the batch, > 0."""
    rows: int = 0
    """How many rows of the whole batch come before its own."""
    before: Mapping[int, int] = field(default_factory=dict)
    """Of packed rows, inputs (1, n, width): how many of the whole batch's come before its own n."""


@dataclass(frozen=True)
class Running:
    """The piece whose closure is running, and its number in this process."""

    index: int
    piece: Piece


_running: ContextVar[Running | None] = ContextVar("running", default=None)


def running() -> Running | None:
    """Return which piece the model is running on, None outside of a `Joint`."""
    return _running.get()


def mask_now(given: Tensor | None) -> Tensor | None:
    """Return the mask of the piece that is running; `given` outside of any, or where it is None."""
    now = running()
    return given if now is None or given is None else now.piece.token_mask


class Joint:
    """The loss of this process's pieces as one closure: a pass of all of them is one forward."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = list(pieces)
        self.weight = sum(piece.weight for piece in pieces)

    @property
    def token_mask(self) -> Tensor | None:
        """The mask of a piece that has one, None where no piece does: all tokens are real."""
        masks = (piece.token_mask for piece in self.pieces)
        return next((mask for mask in masks if mask is not None), None)

    def __call__(self) -> Tensor:
        """Run every piece; return their weighted mean, of a single piece its own loss."""
        if len(self.pieces) == 1:
            with self.entered(0):
                return self.pieces[0].closure()
        total: Tensor | None = None
        for index, piece in enumerate(self.pieces):
            with self.entered(index):
                loss = piece.closure()
            loss = loss.to(torch.promote_types(loss.dtype, torch.float32))
            loss = loss * (piece.weight / self.weight)
            total = loss if total is None else total + loss
        assert total is not None
        return total

    @contextmanager
    def entered(self, index: int) -> Iterator[None]:
        """Say meanwhile that the piece of this number is running."""
        token = _running.set(Running(index, self.pieces[index]))
        try:
            yield
        finally:
            _running.reset(token)


def check_mask(token_mask: Tensor | None) -> None:
    """Raise ValueError unless the mask is None or boolean (batch, sequence)."""
    if token_mask is not None and (token_mask.dtype != torch.bool or token_mask.dim() != 2):
        raise ValueError(
            f"token_mask: dtype {token_mask.dtype}, shape {tuple(token_mask.shape)}; allowed is "
            "boolean (batch, sequence), True for real tokens"
        )


Batch = Closure | Sequence[Piece]  # what a step takes: the whole loss, or pieces of it


def joint(batch: Batch | None, token_mask: Tensor | None, accumulation: int, group: Group) -> Joint:
    """Return the pieces of a step that a method was given, checked."""
    group.check()
    if batch is None:
        raise ValueError(
            "closure=None: a step evaluates the loss itself, at several weights; allowed is a "
            "function that returns the loss, optimizer.step(lambda: model(x).loss), or a list of "
            "agzo.distributed.Piece"
        )
    if callable(batch):
        if accumulation > 1 or group.size > 1:
            raise ValueError(
                f"closure: with accumulation={accumulation} and {group.size} process(es) allowed "
                "is a list of agzo.distributed.Piece, which say what each has of the batch"
            )
        pieces = [Piece(batch, token_mask)]
    else:
        pieces = list(batch) if isinstance(batch, Sequence) else [batch]
        for piece in pieces:
            if not isinstance(piece, Piece):
                raise ValueError(
                    f"closure: a {type(piece).__name__}; allowed is a function that returns the "
                    "loss, or a list of agzo.distributed.Piece"
                )
    if not 1 <= len(pieces) <= accumulation:
        raise ValueError(f"{len(pieces)} pieces: allowed are 1 to accumulation={accumulation}")
    for piece in pieces:
        check_mask(piece.token_mask)
        if not piece.weight > 0:
            raise ValueError(f"weight={piece.weight}: allowed are numbers > 0")
    return Joint(pieces)
