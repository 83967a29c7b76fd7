"""MeZO (Malladi et al. 2023, arXiv 2305.17333): one dense Gaussian direction, two evaluations.

    g = (f(W + eps Z) - f(W - eps Z)) / (2 eps);  W <- W - lr g Z,  Z ~ N(0, 1)

The AGZO paper writes MeZO one-sided (its Eq. 2): ``estimator="one_sided"``. Memory beside
inference: one 4 MiB chunk of noise.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from agzo.optimizer import ZeroOrderOptimizer


class MeZO(ZeroOrderOptimizer):
    """Perturb every coordinate; the arguments are those of `ZeroOrderOptimizer`."""

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        eps: float,
        estimator: str = "two_sided",
        **shared: Any,
    ) -> None:
        super().__init__(model, lr=lr, eps=eps, estimator=estimator, **shared)
