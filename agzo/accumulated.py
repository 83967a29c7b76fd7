"""AGZO's bases of a batch that comes in micro-batches, the same as those of the whole batch.

Algorithm 1 needs Y = H Omega and then K times Y = H (H^T Q), with H over all of the batch, of which
only one micro-batch is there at a time.

| basis      | how                                               | costs                           |
|------------|---------------------------------------------------|---------------------------------|
| `gram`     | H H^T is summed up; the products follow from it   | d_in^2 float32 a distinct input |
| `first`    | the basis of the first micro-batch (of each       | nothing, and it is another one  |
|            | process, together): `ActivationCapture` itself    |                                 |

The bases are there when all micro-batches have been through. Memory beside the above: Q and Y,
(r, d_in) float32 each, for each distinct input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agzo.activations import ActivationCapture
from agzo.inputs import Leaders
from agzo.kernels import thin
from agzo.kernels.orthonormal import orthonormal
from agzo.perturb import Closure
from agzo.pieces import running
from agzo.subspace import COPY, product

ACCUMULATED = ("gram", "first")


@dataclass
class _Sums:
    """What is known of one distinct input so far."""

    tokens: Tensor  # 0-dim int64
    gram: Tensor  # (d_in, d_in)
    y: Tensor | None = None  # (r, d_in), H Omega; None where an earlier basis begins the iteration


class AccumulatedCapture(ActivationCapture):
    """Collects bases over all micro-batches of a forward, as "gram" does; the iteration only."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._sums: dict[str, _Sums] = {}
        self._leaders = Leaders()
        self._index = -1
        self._seen: set[str] = set()  # layers in this micro-batch

    def watch(self, closure: Closure) -> Tensor:
        """Return the closure's loss, and have the bases of all that it ran on."""
        loss = super().watch(closure)
        assert self._power_steps is not None
        found: dict[str, Tensor] = {}
        for name, sums in self._sums.items():
            q = self._begin(name, sums)  # (r, d_in) orthonormal rows
            for _ in range(self._power_steps):
                q = orthonormal(self._group.sum(q @ sums.gram).T).T
            found[name] = self._checked(q.T)
        self.bases.update({name: found[leader] for name, leader in self._leaders.of.items()})
        return loss

    def _see(self, x: Tensor, name: str) -> None:
        now = running()
        index = 0 if now is None else now.index
        if index != self._index:
            self._index = index
            self._seen.clear()
        if name in self._seen:
            return
        self._seen.add(name)
        if self._leaders.leads(x, name):
            self._add(x, name)

    def _add(self, x: Tensor, name: str) -> None:
        flat, keep, examples, positions = self._rows(x, name)
        if name not in self._sums:
            width, device = x.shape[-1], x.device
            tokens = torch.zeros((), dtype=torch.int64, device=device)
            gram = torch.zeros(width, width, dtype=torch.float32, device=device)
            self._sums[name] = _Sums(tokens, gram)
        sums = self._sums[name]
        sums.tokens += flat.shape[0] if keep is None else torch.count_nonzero(keep)
        _add_gram(sums.gram, flat, keep)
        rank = min(self._rank, flat.shape[1])
        if self._warm(name, rank) is None:
            omega = self._omega(x, examples, positions, rank, name)
            y = product(flat, keep, drawn=thin.rows(omega))
            sums.y = y if sums.y is None else sums.y + y

    def _begin(self, name: str, sums: _Sums) -> Tensor:
        """Return the first Q, (r, d_in): of the processes' products H Omega, or a basis before."""
        if sums.y is None:
            return orthonormal(self._start[name]).T  # there would be products without one
        y = self._group.sum(sums.y)
        if self._rank > self._group.size * (self._index + 1):
            # fewer micro-batches than directions, each of at least one token
            y = y[: int(self._group.sum(sums.tokens))]
        return orthonormal(y.T).T


def _add_gram(gram: Tensor, x: Tensor, keep: Tensor | None) -> None:
    """Add X^T X of the rows that are kept, float32, in parts as `subspace.product` does."""
    width = x.shape[1]
    for start in range(0, x.shape[0], max(1, COPY // width)):
        h = x[start : start + max(1, COPY // width)].float()
        if keep is not None:
            h = h.masked_fill(~keep[start : start + h.shape[0], None], 0.0)
        gram.addmm_(h.T, h)
