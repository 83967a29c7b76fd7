"""SubZero+ (arXiv 2608.15665) in its SGD form: K probes inside one orthonormal subspace.

    U (d_out, r) and V (d_in, r) Haar-distributed, drawn every `refresh_every` steps (F)
    Z_k (r, r) ~ N(0, 1);  l_k = f(W + eps U Z_k V^T),  k = 1 .. K
    Zbar = 1 / K sum ((l_k - l_0) / eps) Z_k;  W <- W - lr U Zbar V^T

K + 1 forwards a step. Memory beside inference: in a step the factors, r (d_out + d_in) float32 a
matrix, and for each probe U Z_k, r d_out. Parameters that are no matrices get Gaussian noise, as in
SubZero (2410.08989); what SubZero+ does with them is not known. No code was published.

It is a control for AGZO: a subspace of the same kind that knows nothing of the activations. The
paper's other form, Adam on the r x r coefficients, is not here; its own ablation puts SGD above it.
SubZero scales U Z V^T to the length of MeZO's direction, SubZero+ does not: |U Z V^T| is about r.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from agzo.about import About
from agzo.check import check_count
from agzo.directions.direction import Direction
from agzo.directions.low_rank import LowRank
from agzo.directions.orthonormal import OrthonormalSubspace
from agzo.optimizer import ZeroOrderOptimizer
from agzo.rng import Noise
from agzo.scaling import SCALINGS
from agzo.tuned.select import Tuned


class BothSides(OrthonormalSubspace):
    """SubZero's sampler: U Z V^T of a matrix, Z of its own for each query."""

    def sample(self, tuned: Tuned, noise: Noise) -> Direction:
        """Return U Z V^T for a matrix, dense noise for any other parameter."""
        if tuned.parameter.dim() != 2:
            return super().sample(tuned, noise)
        rank = self.rank_of(tuned)
        core = noise.columns(rank, rank, tuned.device, tuned.name, "core")
        left = self.factor(tuned, noise, 0, "orthonormal-left") @ core
        return LowRank(left, self.factor(tuned, noise, 1, "orthonormal-right"))


class SubZero(ZeroOrderOptimizer):
    """Probe K = `queries` times inside a random subspace of both sides of each matrix.

    Args:
        model, lr, eps, estimator, shared: see `ZeroOrderOptimizer`.
        rank: r; above a matrix's smaller side is an error.
        refresh_every: F, steps between new U and V.
        queries: K; with few of them the paper's results are far worse (its ablation of K).
    """

    about = About(
        settings=("rank", "refresh_every"),
        updates=("sgd", *SCALINGS),  # moments would be of U Z, which is not the paper's r x r
    )

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        eps: float,
        rank: int = 16,
        refresh_every: int = 50,
        queries: int = 99,
        estimator: str = "one_sided",
        **shared: Any,
    ) -> None:
        self.rank = check_count("rank", rank)
        self.refresh_every = check_count("refresh_every", refresh_every)
        own = {"queries": queries, "estimator": estimator}
        super().__init__(model, lr=lr, eps=eps, **own, **shared)

    def _make_sampler(self) -> BothSides:
        return BothSides(self.tuned, self.rank, self.refresh_every)

    def _refreshes(self, step: int) -> bool:
        return step % self.refresh_every == 0
