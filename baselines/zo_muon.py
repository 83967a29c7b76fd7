"""ZO-Muon (arXiv 2602.17155): a subspace's gradient estimate, made orthogonal before the step.

    P (d_out, r) orthonormal, drawn every `refresh_every` steps;  Psi_i (r, d_in) ~ N(0, 1)
    g_i = (f(W + eps P Psi_i) - f(W)) / eps, i = 1 .. N;  G = 1 / N sum g_i Psi_i
    W <- W - lr P msign(G),  msign(G) = (G G^T)^(-1/2) G, by five Newton-Schulz iterations

The iterations are Muon's, whose coefficients bring each singular value near 1 (between .7 and 1.2)
and not to it. A step has the same length whatever the slopes are, about lr sqrt(r) for each matrix.
Parameters that are no matrices have Gaussian noise and a plain step of ``lr * vector_rate``; the
published script has 1e-7 there, against lr 1e-2. N + 1 forwards a step. Memory beside inference: in
a step P, r d_out float32 a matrix, and Psi_i of each probe, r d_in.

On the steps where P is drawn, published code evaluates each probe with a P of its own and applies
all of them with the last; here one P is evaluated and applied. As there, embeddings count as
matrices.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agzo.about import About
from agzo.check import check_choice, check_count, check_number
from agzo.directions.direction import Direction, Sum
from agzo.directions.low_rank import LowRank
from agzo.directions.orthonormal import OrthonormalSubspace
from agzo.moments import Combination, Estimates
from agzo.optimizer import ZeroOrderOptimizer
from agzo.rng import Noise
from agzo.tuned.select import Tuned

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Muon
ITERATIONS = 5
TINY = 1e-7


def newton_schulz(G: Tensor) -> Tensor:
    """Return msign(G), about; G (r, n) with r <= n costs least."""
    a, b, c = COEFFICIENTS
    X = G / (G.norm() + TINY)
    for _ in range(ITERATIONS):
        A = X @ X.T
        X = a * X + (b * A + c * A @ A) @ X
    return X


class OutputSide(OrthonormalSubspace):
    """ZO-Muon's sampler: P Psi of a matrix, Psi of its own for each query."""

    def sample(self, tuned: Tuned, noise: Noise) -> Direction:
        """Return P Psi for a matrix, dense noise for any other parameter."""
        if tuned.parameter.dim() != 2:
            return super().sample(tuned, noise)
        width = tuned.parameter.shape[1]
        psi = noise.columns(width, self.rank_of(tuned), tuned.device, tuned.name, "psi")
        return LowRank.of(psi, self.factor(tuned, noise, 0, "orthonormal-left"), 0)


@dataclass(frozen=True)
class Orthogonal(Combination):
    """Makes the mean estimate of a matrix orthogonal; holds nothing between steps."""

    vector_rate: float

    def direction(
        self,
        queries: Estimates,
        state: MutableMapping[str, Any],
        step: int,
        refreshed: bool,
        alive: Tensor,
    ) -> Direction:
        """Return P msign(G) of a matrix, and the estimate times `vector_rate` of the rest."""
        inside = [(d, g) for d, g in queries if isinstance(d, LowRank)]
        if not inside:
            rate = self.vector_rate / len(queries)
            return Sum([(d, torch.where(alive, g * rate, 0.0)) for d, g in queries])
        G = torch.stack([d.drawn.T.to(g.dtype) * g for d, g in inside]).mean(0)
        moved = torch.where(alive, newton_schulz(G), 0.0).float()
        return LowRank.of(moved.T, inside[0][0].known, 0)


class ZOMuon(ZeroOrderOptimizer):
    """Probe N = `queries` times inside a random subspace, and step along an orthogonal matrix.

    Args:
        model, lr, eps, estimator, shared: see `ZeroOrderOptimizer`.
        rank: r; above a matrix's smaller side is an error.
        refresh_every: steps between new P.
        queries: N.
        vector_rate: learning rate of parameters that are no matrices, as a part of lr, >= 0.
        embeddings: "tuned" or "frozen".
        update: "orthogonal".
    """

    about = About(settings=("rank", "refresh_every", "vector_rate"), updates=("orthogonal",))

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        eps: float,
        rank: int = 64,
        refresh_every: int = 100,
        queries: int = 4,
        vector_rate: float = 1e-5,
        estimator: str = "one_sided",
        embeddings: str = "tuned",
        update: str = "orthogonal",
        **shared: Any,
    ) -> None:
        self.rank = check_count("rank", rank)
        self.refresh_every = check_count("refresh_every", refresh_every)
        self.vector_rate = check_number("vector_rate", vector_rate, minimum=0.0)
        check_choice("embeddings", embeddings, ("tuned", "frozen"))
        own = {"queries": queries, "estimator": estimator}
        own |= {"embeddings": embeddings, "update": update}
        super().__init__(model, lr=lr, eps=eps, **own, **shared)

    @property
    def _moments(self) -> Orthogonal:
        return Orthogonal(self.vector_rate)

    def _make_sampler(self) -> OutputSide:
        return OutputSide(self.tuned, self.rank, self.refresh_every)
