"""FZOO (arXiv 2506.09034): a batch of signs, and a step as long as the losses do not differ.

    u_i in {-1, 1}^d;  l_0 = f(W),  l_i = f(W + eps u_i),  i = 1 .. N
    g = 1 / (eps N) sum (l_i - l_0) u_i,  sigma = std of l_1 .. l_N;  W <- W - lr g / sigma

N + 1 forwards a step. Memory beside inference: one 4 MiB chunk of signs. The signs are bits of the
words that this library's noise is made of (`agzo.rng`), at addresses of their own.

`sigma` divides by N - 1 as the paper does; the published code divides by N. It also leaves out
1 / eps, so the learning rate here is that of the code times eps. Its batched forward of all N
probes is not taken over: the probes run one after another, in the memory of one.

The same step inside AGZO's subspace is ``AGZO(model, lr, eps, queries=8, update="spread")``.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from agzo.optimizer import ZeroOrderOptimizer


class FZOO(ZeroOrderOptimizer):
    """Probe with N = `queries` vectors of signs; the arguments are those of `ZeroOrderOptimizer`.

    As they are fixed here: `update` "spread" and `noise` "rademacher" are FZOO, others are for
    comparison.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        eps: float,
        queries: int = 8,
        estimator: str = "one_sided",
        update: str = "spread",
        noise: str = "rademacher",
        **shared: Any,
    ) -> None:
        own = {"queries": queries, "estimator": estimator, "update": update, "noise": noise}
        super().__init__(model, lr=lr, eps=eps, **own, **shared)
