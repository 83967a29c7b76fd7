"""AGZO's bases of a batch that comes in micro-batches, the same as those of the whole batch.

Algorithm 1 needs Y = H Omega and then K times Y = H (H^T Q), with H over all of the batch, of which
only one micro-batch is there at a time.

| basis      | how                                               | costs                           |
|------------|---------------------------------------------------|---------------------------------|
| `gram`     | H H^T is summed up; the products follow from it   | d_in^2 float32 a distinct input |
| `forwards` | each product is summed up in a pass of its own    | K further forwards of the batch |
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

ACCUMULATED = ("gram", "forwards", "first")


@dataclass
class _Sums:
    """What is known of one distinct input so far."""

    tokens: Tensor  # 0-dim int64
    y: Tensor | None = None  # (r, d_in)
    q: Tensor | None = None  # (r, d_in) orthonormal rows, from the second pass on
    gram: Tensor | None = None  # (d_in, d_in)


class AccumulatedCapture(ActivationCapture):
    """Collects bases over all micro-batches of a forward.

    Args:
        how: "gram" or "forwards".
        others, named: as `ActivationCapture`; the iteration only, from all tokens.
    """

    def __init__(self, how: str, *others: Any, **named: Any) -> None:
        super().__init__(*others, **named)
        self._how = how
        self._sums: dict[str, _Sums] = {}
        self._leaders = Leaders()
        self._index = -1
        self._seen: set[str] = set()  # layers in this micro-batch

    def watch(self, closure: Closure) -> Tensor:
        """Return the closure's loss; run it again for each further product, if it must be."""
        assert self._power_steps is not None
        with self:
            loss = closure()
        self._turn()
        for _ in range(self._power_steps):
            if self._how == "forwards":
                self._index = -1
                with self:
                    closure()
            else:
                for each in self._sums.values():
                    assert each.q is not None
                    assert each.gram is not None
                    each.y = each.q @ each.gram
            self._turn()
        found: dict[str, Tensor] = {}
        for name, each in self._sums.items():
            assert each.q is not None
            found[name] = self._checked(each.q.T)
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
            self._sums[name] = _Sums(torch.zeros((), dtype=torch.int64, device=x.device))
        sums = self._sums[name]
        if sums.q is not None:
            y = product(flat, keep, q=sums.q)
        else:
            sums.tokens += flat.shape[0] if keep is None else torch.count_nonzero(keep)
            y = None
            if self._warm(name, self._rank) is None:
                omega = self._omega(x, examples, positions, self._rank, name)
                y = product(flat, keep, drawn=thin.rows(omega))
            if self._how == "gram":
                sums.gram = _add_gram(sums.gram, flat, keep)
        if y is not None:
            sums.y = y if sums.y is None else sums.y + y

    def _turn(self) -> None:
        """End a pass: add the processes' products up and make the next Q of them."""
        for name, each in self._sums.items():
            if each.y is None:
                start = self._warm(name, self._rank)
                assert start is not None
                each.q = orthonormal(start).T
                continue
            y = self._group.sum(each.y)
            if each.q is None and self._rank > self._group.size * (self._index + 1):
                # fewer micro-batches than directions, each of at least one token
                y = y[: min(self._rank, int(self._group.sum(each.tokens)))]
            each.q, each.y = orthonormal(y.T).T, None


def _add_gram(gram: Tensor | None, x: Tensor, keep: Tensor | None) -> Tensor:
    """Add X^T X of the rows that are kept, float32, in parts as `subspace.product` does."""
    width = x.shape[1]
    if gram is None:
        gram = torch.zeros(width, width, device=x.device)
    for start in range(0, x.shape[0], max(1, COPY // width)):
        h = x[start : start + max(1, COPY // width)].float()
        if keep is not None:
            h = h.masked_fill(~keep[start : start + h.shape[0], None], 0.0)
        gram.addmm_(h.T, h)
    return gram
