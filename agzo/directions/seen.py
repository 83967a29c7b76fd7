"""embeddings="seen": of an embedding table, perturb what a batch can tell something about.

An embedding is a linear layer whose inputs are one-hot vectors, so its gradient lies in the span of
its inputs as any linear layer's does: in the rows of the batch's tokens. Where the table is the
head as well (tied weights), the gradient of that use lies in the span of the hidden states H that
enter the head. With S the diagonal matrix that has 1 at the rows seen and 0 elsewhere:

    Delta = S Z + R A^T,    A the basis of H as for any linear layer (AGZO alone), R ~ N(0, 1)

and Z what the method draws for a matrix: N(0, 1), or LOZO's U V^T. One Delta serves every use of
the table. Rows of padding alone are not seen. The rows are those of all micro-batches and of all
processes; a step has other rows than the one before.

Memory and time go with the tokens of a batch: n rows of the table's width, and n numbers of a row
(at most) for each; one flag for each row of the table; for a tied head R, r numbers for each row,
and one pass over the table for its update.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agzo.activations.capture import ActivationCapture
from agzo.directions.direction import Direction, at_least_float32
from agzo.directions.low_rank import Branch, LowRank
from agzo.directions.sampler import DirectionSampler
from agzo.distributed.group import ALONE, Group
from agzo.distributed.pieces import Joint, mask_now, running
from agzo.kernels import Key
from agzo.rng import Noise
from agzo.torch_calls.surroundings import Closure, Watch
from agzo.torch_calls.uses import ADDRESSES, TorchCalls, among, used
from agzo.tuned.coordinates import Moved
from agzo.tuned.select import Tuned


@dataclass(frozen=True)
class Rows:
    """Which rows of a table a batch has seen."""

    ids: Tensor  # (n,) int64, with repeats where finding them would wait for the device
    member: Tensor  # (rows of the table,) float32, 1 at those seen, 0 elsewhere


@dataclass(frozen=True)
class SeenRows(Branch):
    """``S source + head``: a direction on some rows of a table, and a low-rank one on all."""

    source: Direction
    seen: Rows
    head: LowRank | None

    @property
    def shape(self) -> torch.Size:
        """Shape of the table."""
        return self.source.shape

    def rows(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yield the sum in the blocks of its source: the readable reference of what follows."""
        for start, stop, values in self.source.rows():
            values.mul_(self.seen.member[start:stop, None])
            if self.head is not None:
                values.addmm_(self.head.left[start:stop], self.head.right.T)
            yield start, stop, values
            del values  # before the next block is made

    def take(self, ids: Tensor) -> Tensor:
        """Return some rows of the direction; see `Direction.take`."""
        values = self._on_rows(ids)
        return values if self.head is None else values.add_(self.head.take(ids))

    def _on_rows(self, ids: Tensor) -> Tensor:
        return self.source.take(ids).mul_(self.seen.member[ids, None])

    def add_linear(self, y: Tensor, x: Tensor, scale: float) -> None:
        """Set y to ``y + scale * x direction^T``; see `Branch.add_linear`."""
        ids = self.seen.ids
        values = self._on_rows(ids).mul_(scale).to(x.dtype)
        y.index_copy_(1, ids, y[:, ids] + x @ values.T)  # repeated ids write the same values
        if self.head is not None:
            self.head.add_linear(y, x, scale)

    def add_to(
        self, weight: Tensor, keep: Tensor | None, scale: Tensor, rounding: Key | None
    ) -> None:
        """Set weight to ``keep * weight + scale * direction``; see `Direction.add_to`.

        Writes the rows seen alone, and all where the head or weight decay must.
        """
        if keep is not None or rounding is not None:
            super().add_to(weight, keep, scale, rounding)
            return
        ids = self.seen.ids
        exact = at_least_float32(weight.dtype)
        new = weight[ids].to(exact) + self.take(ids).to(exact) * scale
        if self.head is not None:
            self.head.add_to(weight, None, scale, None)
        weight.index_copy_(0, ids, new.to(weight.dtype))  # repeated ids write the same values


class SeenTokens(TorchCalls):
    """Collects the rows of each table that a batch looks up.

        tokens.watch(closure)     sees a forward that is made anyway
        tokens.peek(batch)        where there is none: runs the closure as far as its last lookup

    Args:
        tables: the embedding weights.
        group: processes that share the batch.
    """

    def __init__(self, tables: Sequence[Tuned], group: Group = ALONE) -> None:
        super().__init__()
        self._tables = {id(each.parameter): each for each in tables}
        self._group = group
        self._mask: Tensor | None = None
        self._found: dict[str, list[Tensor]] = {}
        self._rows: dict[str, Rows] = {}
        self._last: int | None = None  # the lookup after which a closure need not go on
        self.lookups = 0
        """Lookups of the forward that was watched last."""
        self.most = 0
        """Lookups of a piece in an evaluation that was counted, since the batch began, at most."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)  # a copy: its tables are others
        self._tables = {id(each.parameter): each for each in self._tables.values()}

    @property
    def tables(self) -> set[nn.Parameter]:
        """The tables whose rows are looked for."""
        return {each.parameter for each in self._tables.values()}

    def begin(self, mask: Tensor | None) -> None:
        """Forget the batch before; `mask` (batch, sequence) tells the next one's real tokens."""
        self._mask = mask
        self._found = {each.name: [] for each in self._tables.values()}
        self._rows.clear()
        self.most = 0

    def beside(self, watch: Watch | None, mask: Tensor | None) -> Watch:
        """Begin with a batch of this mask; return what watches its forward beside `watch`."""
        self.begin(mask)
        return self.watch if watch is None else lambda closure: self.watch(lambda: watch(closure))

    def watch(self, closure: Closure) -> Tensor:
        """Return the closure's loss, and take in the rows that it looks up."""
        self.lookups = 0
        with self:
            return closure()

    def peek(self, batch: Joint, lookups: int) -> None:
        """Take in the rows of a batch: run each piece of it as far as its lookup of this number."""
        for index, piece in enumerate(batch.pieces):
            self._last = lookups
            try:
                with batch.entered(index):
                    self.watch(piece.closure)
            except _Enough:
                pass
            finally:
                self._last = None

    def counted(self, closure: Closure) -> Tensor:
        """Return an evaluation's loss, and note in `most` the lookups of a piece of the batch."""
        lookups = Lookups(self.tables)
        with lookups:
            loss = closure()
        self.most = max(self.most, *lookups.of_pieces.values(), 0)
        return loss

    def rows(self, name: str) -> Rows:
        """Return the rows of a table that this batch has seen, on all processes together."""
        if name not in self._rows:
            table = next(each for each in self._tables.values() if each.name == name)
            self._rows[name] = self._of(table, self._found[name])
        return self._rows[name]

    def _of(self, table: Tuned, found: list[Tensor]) -> Rows:
        device = table.device
        ids = torch.cat([torch.empty(0, dtype=torch.int64, device=device), *found])
        member = torch.zeros(table.parameter.shape[0], dtype=torch.float32, device=device)
        member.index_fill_(0, ids, 1.0)
        if self._group.size > 1:
            member = self._group.sum(member).clamp_(max=1.0)
        if self._group.size > 1 or device.type == "cpu":
            ids = member.nonzero().view(-1)
        return Rows(ids, member)

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Answer a call of torch."""
        if func is F.embedding:
            ids, weight = _looked_up(*args, **kwargs)
            if id(weight) in self._tables:
                self._see(ids, self._tables[id(weight)])
            return func(*args, **kwargs)
        given = used(func, args, kwargs)
        if func is F.linear:  # as a head: its weight tells
            given = (args[:1], args[2:], {k: v for k, v in kwargs.items() if k != "weight"})
        found = next(among(self._tables, given), None)
        if found is not None and func not in ADDRESSES:
            raise ValueError(
                f"embeddings='seen': {self._tables[found].name} is used by "
                f"{getattr(func, '__name__', func)}, which does not tell what rows it takes; "
                "allowed are embeddings='tuned' and 'frozen' for this model"
            )
        return func(*args, **kwargs)

    def _see(self, ids: Tensor, table: Tuned) -> None:
        flat = ids.reshape(-1)
        mask = mask_now(self._mask)
        if mask is not None and ids.shape in (mask.shape, (mask.numel(),)):
            keep = mask.reshape(-1).to(flat.device)
            some = flat[keep.to(torch.int8).argmax()]  # a real one, in place of each padding token
            flat = torch.where(keep, flat, some)
        self._found[table.name].append(flat)
        self.lookups += 1
        if self.lookups == self._last:
            raise _Enough


def _looked_up(input: Tensor, weight: nn.Parameter, *_: Any, **__: Any) -> Any:
    """Return the ids and the table of a call of `F.embedding`."""
    return input, weight


class Lookups(TorchCalls):
    """Counts the lookups in some tables, for each piece of a batch."""

    def __init__(self, tables: set[nn.Parameter]) -> None:
        super().__init__()
        self.tables = tables
        self.of_pieces: Counter[int] = Counter()

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Answer a call of torch."""
        if func is F.embedding and _looked_up(*args, **kwargs)[1] in self.tables:
            now = running()
            self.of_pieces[0 if now is None else now.index] += 1
        return func(*args, **kwargs)


class _Enough(BaseException):
    """Unwinds a closure that need not go on."""


class OnSeenRows:
    """A sampler whose directions of embedding tables lie on the rows that the batch has seen."""

    def __init__(self, inner: DirectionSampler, tokens: SeenTokens) -> None:
        self._inner, self._tokens, self.dense = inner, tokens, inner.dense

    def capture(self, noise: Noise, token_mask: Tensor | None) -> ActivationCapture | None:
        """Return the inner sampler's capture."""
        return self._inner.capture(noise, token_mask)

    def sample(self, tuned: Tuned, noise: Noise) -> Direction:
        """Return the inner sampler's direction, of a table on the rows seen alone."""
        direction = self._inner.sample(tuned, noise)
        if tuned.role != "embedding":
            return direction
        return SeenRows(direction, self._tokens.rows(tuned.name), self._inner.head(tuned, noise))

    def head(self, tuned: Tuned, noise: Noise) -> LowRank | None:
        """Return the inner sampler's."""
        return self._inner.head(tuned, noise)

    def learn(self, token_mask: Tensor | None) -> AbstractContextManager[object]:
        """Return the inner sampler's."""
        return self._inner.learn(token_mask)

    def looking(self) -> AbstractContextManager[object]:
        """Return the inner sampler's."""
        return self._inner.looking()

    def stepped(self) -> None:
        """End the inner sampler's step."""
        self._inner.stepped()

    def sizes(self, tuned: Tuned) -> tuple[int, int]:
        """Count what the inner sampler draws; moments, which this is for, are refused."""
        return self._inner.sizes(tuned)

    def kept(self, tuned: Tuned) -> int:
        """Count what the inner sampler keeps."""
        return self._inner.kept(tuned)

    def moved(self, tuned: Tuned) -> Moved:
        """Say that a table moves inside the span of its inputs, the rows of tokens."""
        if tuned.role != "embedding":
            return self._inner.moved(tuned)
        return Moved(tuned.name, tuned.parameter.numel(), inside=True)
