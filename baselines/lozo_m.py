"""LOZO-M (Chen et al. 2024, arXiv 2410.07698): LOZO with momentum of the left factor.

    N <- b1 N + (1 - b1) g U,  N = g U at first;  W <- W - lr N V^T
    with a new V:  N <- N V_old^T V (V^T V)^-1

The published code divides by d_in, the mean of V^T V, where this library solves with V^T V itself:
N V^T is the same on average, see `agzo.moments`. Memory beside LOZO's: N and V, r (d_out + d_in)
float32 a matrix, and for a vector momentum of its size.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from baselines.lozo import LOZO


class LOZOM(LOZO):
    """LOZO, updated with momentum; the arguments are those of `LOZO`."""

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        eps: float,
        update: str = "momentum",
        momentum: float = 0.9,
        **shared: Any,
    ) -> None:
        super().__init__(model, lr=lr, eps=eps, update=update, momentum=momentum, **shared)
