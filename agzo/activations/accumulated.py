"""AGZO's bases of inputs that come in parts: micro-batches, several calls of one weight.

They are the same as those of the whole. Algorithm 1 needs Y = H Omega and then K times
Y = H (H^T Q), with H over all of the batch, of which only one part is there at a time.

| basis      | how                                               | costs                           |
|------------|---------------------------------------------------|---------------------------------|
| `gram`     | H H^T is summed up; the products follow from it   | d_in^2 float32 a distinct input |
| `first`    | the basis of the first micro-batch (of each       | nothing, and it is another one  |
|            | process, together): `ActivationCapture` itself    |                                 |

Of a weight that a forward calls several times (`agzo.activations.calls`) H has the rows of all
calls, by `gram`, with a sum of its own. Such bases are there when all has been through. Memory
beside the above: Q and Y, (r, d_in) float32 each, for each distinct input.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agzo.activations.capture import ActivationCapture
from agzo.activations.subspace import COPY, leading_of_gram, product
from agzo.distributed.pieces import running
from agzo.kernels import thin
from agzo.kernels.orthonormal import orthonormal
from agzo.torch_calls.inputs import Leaders
from agzo.torch_calls.surroundings import Closure

ACCUMULATED = ("gram", "first")


def check_parts(basis: str, shared: Mapping[str, Any], accumulated: str | None) -> None:
    """Refuse what has no basis of rows that are not in one place, and say what has.

    Args:
        basis: AGZO's.
        shared: arguments of every method.
        accumulated: AGZO's `accumulated_basis`, None where a batch is in one piece.
    """
    if shared.get("stream") is not None and shared.get("embeddings") == "seen":
        raise ValueError(
            "embeddings='seen': the evaluations of streamed layers run side by side, and the "
            "basis of a head is there when they have looked up its table; allowed are 'tuned' "
            "and 'frozen'"
        )
    group = shared.get("group")
    several = None
    if group is not None and group.size > 1:
        several = f"{group.size} processes"
    elif accumulated is not None:
        several = f"accumulated_basis={accumulated!r}"
    if several is None:
        return
    alone = " (or accumulated_basis='first')" if several.startswith("acc") else ""
    if basis == "exact":
        raise ValueError(
            f"basis='exact': with {several} allowed is 'power'{alone}; rounding turns the signs of "
            "a decomposition"
        )
    if accumulated is not None and shared.get("stream") is not None:
        raise ValueError(
            f"accumulated_basis={accumulated!r}: the evaluations of streamed layers run side by "
            "side, and bases of all micro-batches are there too late; allowed is 'first'"
        )


@dataclass
class Sums:
    """What is known of one distinct input so far."""

    tokens: Tensor  # 0-dim int64
    gram: Tensor  # (d_in, d_in) float32; float64 for the exact directions
    calls: int = 0  # each of at least one token
    y: Tensor | None = None  # (r, d_in), H Omega; None where an earlier basis begins the iteration


class AccumulatedCapture(ActivationCapture):
    """Collects bases of inputs in parts.

    Args:
        whole: of all micro-batches, as "gram" does; else of the first alone.
        given, named: as `ActivationCapture`.
    """

    def __init__(self, whole: bool, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._whole = whole
        self._sums: dict[str, Sums] = {}
        self._leaders = Leaders()
        self._index = -1
        self._seen: Counter[str] = Counter()  # calls of layers in this micro-batch

    def watch(self, closure: Closure) -> Tensor:
        """Return the closure's loss, and have the bases of all that it ran on."""
        loss = super().watch(closure)
        found = {name: self._checked(self._basis_of(name, s)) for name, s in self._sums.items()}
        self.bases.update({name: found[leader] for name, leader in self._leaders.of.items()})
        self._sums.clear()
        return loss

    def _see(self, x: Tensor, name: str) -> None:
        now = running()
        index = 0 if now is None else now.index
        if index != self._index:
            self._index = index
            self._seen.clear()
        several = name in self._calls and self._calls[name].several
        if not self._whole and (not several or index > 0):
            super()._see(x, name)
            return
        call = self._seen[name]
        self._seen[name] += 1
        if several:
            self._leaders.of[name] = name  # a sum of its own: later calls may share no input
            self._add(x, name, call)
        elif call == 0 and self._leaders.leads(x, name):
            self._add(x, name, call)

    def _add(self, x: Tensor, name: str, call: int) -> None:
        flat, keep, examples, positions = self._rows(x, name)
        if name not in self._sums:
            width, device = x.shape[-1], x.device
            dtype = torch.float64 if self._power_steps is None else torch.float32
            tokens = torch.zeros((), dtype=torch.int64, device=device)
            self._sums[name] = Sums(tokens, torch.zeros(width, width, dtype=dtype, device=device))
        sums = self._sums[name]
        sums.calls += 1
        sums.tokens += flat.shape[0] if keep is None else torch.count_nonzero(keep)
        _add_gram(sums.gram, flat, keep)
        rank = min(self._rank, flat.shape[1])
        if self._power_steps is not None and self._warm(name, rank) is None:
            address = name if call == 0 else f"{name}, call {call}"
            omega = self._omega(x, examples, positions, rank, address)
            y = product(flat, keep, drawn=thin.rows(omega))
            sums.y = y if sums.y is None else sums.y + y

    def _basis_of(self, name: str, sums: Sums) -> Tensor:
        """Return the basis (d_in, r) of the rows that were summed up."""
        if self._power_steps is None:
            return leading_of_gram(sums.gram, self._capped(sums))
        q = self._begin(name, sums)  # (r, d_in) orthonormal rows
        for _ in range(self._power_steps):
            q = orthonormal(self._group.sum(q @ sums.gram).T).T
        return q.T

    def _begin(self, name: str, sums: Sums) -> Tensor:
        """Return the first Q, (r, d_in): of the processes' products H Omega, or a basis before."""
        if sums.y is None:
            return orthonormal(self._start[name]).T  # there would be products without one
        y = self._group.sum(sums.y)
        return orthonormal(y[: self._capped(sums)].T).T

    def _capped(self, sums: Sums) -> int:
        """Return r, or the number of all tokens where that is less."""
        if self._rank <= self._group.size * sums.calls:
            return self._rank  # each call has a token
        return min(self._rank, int(self._group.sum(sums.tokens)))


def _add_gram(gram: Tensor, x: Tensor, keep: Tensor | None) -> None:
    """Add X^T X of the rows that are kept, in the sum's dtype, in parts as `product` has them."""
    width = x.shape[1]
    for start in range(0, x.shape[0], max(1, COPY // width)):
        h = x[start : start + max(1, COPY // width)].to(gram.dtype)
        if keep is not None:
            h = h.masked_fill(~keep[start : start + h.shape[0], None], 0.0)
        gram.addmm_(h.T, h)
