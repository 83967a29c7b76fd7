"""Packing: the real tokens of a batch as one sequence, and attention row by row all the same.

A padded batch has R rows of T columns, N of whose positions are tokens; all layers but attention
take each position alone. Packed, the input is (1, N), row after row, so embedding, norms, linear
layers and head see no padding. Attention alone needs the rows: its queries, keys and values are
moved to (R, T), padded on the right, and what it gives is moved back. No mask is needed for a
causal model, since padding stands behind every token of its row: no token sees it, and what it
sees is dropped.

`packed(layout)` tells the attention (attention.py) that the model runs on a packed batch. Memory
beside the packed forward: one layer's queries, keys, values and output at (R, T).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

ATTENTION = "sdpa_rows"  # the attention that knows packed batches, by its name in a model's config


@dataclass(frozen=True)
class Layout:
    """Where the N tokens of a packed batch stand among R rows of T columns, padded on the right.

    Padding is filled with the batch's first token: any finite value will do.
    """

    rows: int
    width: int
    slots: Tensor  # (N,) int64, row * T + column of each token
    sources: Tensor  # (R * T,) int64, the token that fills each of them
    options: Tensor  # (M,) int64, which of the (R, L) label positions predict an option's token

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Layout":
        """Return the layout on a device."""
        tensors = (self.slots, self.sources, self.options)
        moved = (one.to(device, non_blocking=non_blocking) for one in tensors)
        return Layout(self.rows, self.width, *moved)

    def spread(self, x: Tensor) -> Tensor:
        """Move (1, heads, N, size) to (R, heads, T, size)."""
        _, heads, tokens, size = x.shape
        if x.shape[0] != 1 or tokens != len(self.slots):
            raise ValueError(
                f"attention got {tuple(x.shape)} for a packed batch of {len(self.slots)} tokens; "
                f"allowed is (1, heads, {len(self.slots)}, size); set train.packing=never"
            )
        flat = x[0].transpose(0, 1).reshape(tokens, heads * size)
        filled = flat.index_select(0, self.sources)
        return filled.view(self.rows, self.width, heads, size).transpose(1, 2)

    def collect(self, x: Tensor) -> Tensor:
        """Move (R, T, heads, size) to (1, N, heads, size)."""
        return x.flatten(0, 1).index_select(0, self.slots)[None]


def layout_of(token_mask: Tensor, target_mask: Tensor) -> Layout:
    """Return the layout of a batch's real tokens (R, T) bool and option tokens (R, L) bool.

    Its rows may be padded on either side.
    """
    rows, width = token_mask.shape
    columns = token_mask.cumsum(1) - 1  # from each row's first real token
    slots = (torch.arange(rows, device=token_mask.device)[:, None] * width + columns)[token_mask]
    sources = slots.new_zeros(rows * width)
    sources[slots] = torch.arange(len(slots), device=slots.device)
    return Layout(rows, width, slots, sources, target_mask.flatten().nonzero()[:, 0])


def packed_columns(token_mask: Tensor, columns: Tensor) -> Tensor:
    """Return where columns (L,) of each row are in the packed axis, (R * L,).

    Of a column that is padding it says nothing of use.
    """
    places = token_mask.flatten().cumsum(0) - 1
    return places.view(token_mask.shape)[:, columns].flatten()


class _Running:
    """A packed batch that a model runs on, and whether its attention has asked for it."""

    def __init__(self, layout: Layout) -> None:
        self.layout, self.asked = layout, False


# Of its thread: evaluations that run side by side (agzo/execution/lockstep.py) have each their own.
_running: ContextVar[_Running | None] = ContextVar("running", default=None)


@contextmanager
def packed(layout: Layout | None) -> Iterator[None]:
    """Run a model on a packed batch meanwhile; None: on an ordinary one.

    Raises RuntimeError behind a model whose attention never asked: it saw one long row.
    """
    if layout is None:
        yield
        return
    running = _Running(layout)
    token = _running.set(running)
    try:
        yield
    finally:
        _running.reset(token)
    if not running.asked:
        raise RuntimeError(
            "the model ran on a packed batch with an attention that knows nothing of its rows; "
            "allowed are models with experiments.models.attention installed and eager layers, or "
            "padded batches (train.packing=never)"
        )


def active() -> Layout | None:
    """Return the layout of the packed batch that the model runs on, None of an ordinary one."""
    running = _running.get()
    return None if running is None else running.layout


def attended() -> Layout | None:
    """Return the same to an attention that is about to go by it.

    Compiled layers cannot ask: behind a packed batch that they ran on, `packed` raises.
    """
    if torch.compiler.is_compiling():
        return None
    running = _running.get()
    if running is None:
        return None
    running.asked = True
    return running.layout


def can_pack(model: nn.Module) -> bool:
    """Tell whether a model's attention knows packed batches."""
    config: Any = getattr(model, "config", None)
    return getattr(config, "_attn_implementation", None) == ATTENTION
