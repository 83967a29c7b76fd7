"""GRZO (arXiv 2606.02857): every example has a perturbation of its own, by sign flips of one.

    U ~ N(0, 1) of each matrix, one for the step
    r_i in {-1, 1}^d_out, s_i in {-1, 1}^d_in of example i = 1 .. B
    Delta_i = U o (r_i s_i^T),  l_i the loss of example i alone,  sigma the size `eps`
    delta_i = (l_i(W + sigma Delta_i) - l_i(W - sigma Delta_i)) / 2,  a_i = delta_i / std(delta)
    W <- W - lr / (sigma B) U o (R^T diag(a) S) = W - lr / (sigma B) sum a_i Delta_i

2 forwards a step. Memory beside inference: one 4 MiB chunk of noise, and the signs of one matrix.
An example is a micro-batch here (`agzo.per_piece`): give ``accumulation`` the batch size, and
pieces of one example each. Larger micro-batches share their flips. A single piece is refused.

Published code evaluates all examples in one pass, and flips the signs of each example's rows around
the product with U; here the examples run apart, so the numbers are the same and the time is that of
B small forwards. It divides by 2 sigma, so ``lr`` here is half of its. It flips the signs of norms
and embeddings by the parity of an index, a checkerboard; here each parameter's are drawn. It adds a
small number to the standard deviation; here a step whose delta_i are all equal does not move.

The same with R_i A^T, R_i of each example, in place of the flips (the activation-guided sibling):
``AGZO(model, lr, eps, estimator="per_piece", update="spread", accumulation=B)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agzo.about import About
from agzo.directions.direction import ByRows, Dense, Direction, Signs
from agzo.directions.sampler import Gaussian
from agzo.optimizer import ZeroOrderOptimizer
from agzo.per_piece import WITH_PIECES
from agzo.rng import Noise
from agzo.tuned.select import Tuned


@dataclass(frozen=True)
class Flipped(ByRows):
    """U o (r s^T); of a tensor with other dimensions than two s has all but the first."""

    u: Dense
    r: Signs
    s: Signs

    @property
    def shape(self) -> torch.Size:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Shape of the parameter."""
        return self.u.shape

    def rows(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yield the direction in blocks of rows, float32, free to be overwritten."""
        r, s = self.r.dense(), self.s.dense()
        for start, stop, values in self.u.rows():
            own = r[start:stop].view(-1, *[1] * s.dim()) if self.shape else r
            yield start, stop, values.mul_(own).mul_(s)

    def take(self, ids: Tensor) -> Tensor:
        """Return some rows of the direction; see `Direction.take`."""
        return self.u.take(ids).mul_(self.r.dense()[ids, None]).mul_(self.s.dense())


class Flips(Gaussian):
    """GRZO's sampler: the number of a query is that of its example."""

    def sample(self, tuned: Tuned, noise: Noise) -> Direction:
        """Return the step's U with this example's flips."""
        name, shape, device = tuned.name, tuned.parameter.shape, tuned.device
        r = Signs(noise, f"{name}, r", shape[:1], device)
        s = Signs(noise, f"{name}, s", shape[1:], device)
        return Flipped(self.dense(Noise(noise.seed, noise.step), name, shape, device), r, s)


class GRZO(ZeroOrderOptimizer):
    """Measure each example along its own flips of one direction; see `ZeroOrderOptimizer`.

    As they are fixed here: `update` "spread" is GRZO, any other one is for comparison. So are the
    other estimators: with them all examples share the flips of a query.
    """

    about = About(estimators=WITH_PIECES)

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        eps: float,
        estimator: str = "per_piece",
        update: str = "spread",
        **shared: Any,
    ) -> None:
        super().__init__(model, lr=lr, eps=eps, estimator=estimator, update=update, **shared)

    def _make_sampler(self) -> Flips:
        return Flips()
