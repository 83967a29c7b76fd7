"""SubspaceExtract, the core of AGZO (Algorithm 1): the leading directions of a layer's input.

A linear layer's weight gradient is ``Q^T X`` with X (tokens, d_in) its input and Q (tokens, d_out)
the upstream gradient, so its rows lie in the span of the rows of X. A few power iterations on
``X^T X``, which is never formed, find the directions that carry most of X.

In the paper's letters H = X^T (d_in, m). Memory: m x r and d_in x r in float32, and a float32 copy
of X where X has another dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor


def subspace_extract(
    x: Tensor, omega: Tensor, power_steps: int, keep: Tensor | None = None
) -> Tensor:
    """Return A (d_in, r), float32 orthonormal columns spanning about the top r directions of x.

    Args:
        x: the layer's input, (m, d_in), any float dtype.
        omega: the Gaussian test matrix Omega, (m, r) float32, with r <= min(m, d_in).
        power_steps: K of Algorithm 1.
        keep: boolean (m,), False where a token is padding and must not count; None keeps all.

    Source: AGZO (arXiv 2601.17261), Algorithm 1: Y = H Omega; K times Q = qr(Y), Y = H (H^T Q).
    """
    h = x.float()  # the rows of x are the columns of the paper's H

    def mask(coefficients: Tensor) -> Tensor:
        # Zeroing a token's coefficients takes it out of every product without a copy of x.
        return coefficients if keep is None else coefficients.masked_fill(~keep[:, None], 0.0)

    y = h.T @ mask(omega)  # (d_in, r)
    for _ in range(power_steps):
        y = h.T @ mask(h @ orthonormal(y))
    return orthonormal(y)


def orthonormal(y: Tensor) -> Tensor:
    """Return orthonormal columns with the span of y (d, r), by QR."""
    return torch.linalg.qr(y).Q
