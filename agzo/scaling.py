"""How far to move: one factor for all slopes of a step, made from the slopes alone.

    spread   c_i = g_i / sigma,  sigma = eps std(g_1 .. g_q)
    scalar   v <- b2 v + (1 - b2) (mean of g_i)^2, v = 0 at first;
             c_i = g_i / (sqrt(v / (1 - b2^t)) + 1e-8)
    centred  c_i = q / (q - 1) (g_i - mean of g)

and W <- W - lr * mean of c_i Delta_i. `std` divides by q - 1. All are for every method: each
direction is measured and applied as it is, and nothing is held for a weight.

spread (FZOO, arXiv 2506.09034). A one-sided slope is g_i = (l_i - l_0) / eps, so sigma is the
standard deviation of the losses l_i. With q directions of covariance I it is about eps |grad f|: a
step has a length of its own, lr / eps, wherever the gradient is steep or flat, and halving eps
doubles it. (Two-sided slopes have the same spread to first order.) A step whose slopes are all
equal says nothing, and does not move.

scalar (MEAZO, arXiv 2605.03869). Squares of a zeroth-order estimate's coordinates are nearly one
number (`agzo.moments` has it), so Adam's second moment may be one number for the whole model. The
published bias correction is given by third parties as 1 - b2^(t - 1); here it is Adam's own.

centred (AIM-ZO, arXiv 2609.35257; 1 / (q - 1) makes up for the mean's own part in each slope, so
that the expected step is that of sgd). What all slopes of a step have in common tells directions
apart no better than a constant: of one-sided slopes it is mostly eps / 2 times the trace of the
Hessian, and the error of f(W), which all of them share.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SCALINGS = ("scalar", "spread", "centred")
TINY = 1e-8


@dataclass(frozen=True)
class Scaling:
    """How slopes are scaled: `update` is one of `SCALINGS`, b2 the decay rate of v."""

    update: str
    eps: float
    b2: float

    def factors(self, slopes: Tensor, state: MutableMapping[str, Any], step: int) -> Tensor:
        """Return c, (queries,), of the slopes g, (queries,), in their dtype.

        Args:
            slopes: those of this step.
            state: the method's own; "v" is there from the first step of "scalar" on, 0-dim float64.
            step: number of the step, from 0.
        """
        g = slopes.double()
        if self.update == "spread":
            sigma = self.eps * g.std()
            return torch.where(sigma == 0, 0.0, g / sigma).to(slopes.dtype)
        if self.update == "centred":
            return ((g - g.mean()) * (len(g) / (len(g) - 1))).to(slopes.dtype)
        before = state["v"].to(g.device) if "v" in state else torch.zeros_like(g[0])
        state["v"] = self.b2 * before + (1.0 - self.b2) * g.mean().square()
        deviation = (state["v"] / (1.0 - self.b2 ** (step + 1))).sqrt()
        return (g / (deviation + TINY)).to(slopes.dtype)


def check_scaling(update: str, queries: int) -> None:
    """Raise ValueError for what a single slope does not have: a spread, a place beside a mean."""
    if update in ("spread", "centred") and queries < 2:
        raise ValueError(
            f"queries={queries}: with update={update!r} allowed are 2 or more, whose losses differ"
        )
