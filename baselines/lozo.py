"""LOZO (Chen et al. 2024, arXiv 2410.07698): low-rank directions with a lazily drawn subspace.

    Delta = U V^T for matrices (embeddings included), U (d_out, r) drawn each step,
    V (d_in, r) drawn every `refresh_every` steps (nu); dense Gaussian for vectors
    g = (f(W + eps Delta) - f(W - eps Delta)) / (2 eps);  W <- W - lr g Delta

As in the published code Delta is not divided by r: its lr is the paper's lr / r. Memory beside
inference: the factors of one step, r (d_out + d_in) float32 a matrix.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from agzo.about import About
from agzo.check import check_count
from agzo.directions.random_subspace import RandomSubspace
from agzo.execution.perturb import Directions
from agzo.optimizer import ZeroOrderOptimizer
from agzo.rng import Noise


class LOZO(ZeroOrderOptimizer):
    """Perturb each matrix inside a random low-rank subspace.

    Args:
        model, lr, eps, estimator, shared: see `ZeroOrderOptimizer`.
        rank: r; above a matrix's smaller side is an error.
        refresh_every: nu, steps between new V.
        published_refresh: reproduce the published code, which on refresh steps applies another U
            than it evaluated (those steps are random walks); for comparison only.
    """

    about = About(settings=("rank", "refresh_every", "published_refresh"))

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        eps: float,
        rank: int = 2,
        refresh_every: int = 50,
        published_refresh: bool = False,
        estimator: str = "two_sided",
        **shared: Any,
    ) -> None:
        self.rank = check_count("rank", rank)
        self.refresh_every = check_count("refresh_every", refresh_every)
        self.published_refresh = published_refresh
        super().__init__(model, lr=lr, eps=eps, estimator=estimator, **shared)

    def _make_sampler(self) -> RandomSubspace:
        self._subspace = RandomSubspace(self.tuned, self.rank, self.refresh_every)
        return self._subspace

    def _refreshes(self, step: int) -> bool:
        return step % self.refresh_every == 0

    def _applied(self, query: int, evaluated: Directions) -> Directions:
        if not self.published_refresh:
            return evaluated
        noise = Noise(self.seed, self._zo["step"], query)
        return {t.parameter: self._subspace.published_update(t, noise) for t in self._active}
