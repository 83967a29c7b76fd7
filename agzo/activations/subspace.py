"""SubspaceExtract, the core of AGZO (Algorithm 1): the leading directions of a layer's input.

A linear layer's weight gradient is ``Q^T X`` with X (tokens, d_in) its input and Q (tokens, d_out)
the upstream gradient, so its rows lie in the span of the rows of X. A few power iterations on
``X^T X``, which is never formed, find the directions that carry most of X.

In the paper's letters H = X^T (d_in, m). Memory: m x r and d_in x r in float32, and where X has
another dtype a float32 copy of at most `COPY` values of it: a larger X is read in parts.

`leading` is what the iteration approaches, by an eigenvalue decomposition: the reference, and the
method's ``basis="exact"``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from agzo.kernels import thin
from agzo.kernels.gram import gram_product, one_direction
from agzo.kernels.orthonormal import orthonormal

COPY = 1 << 23
"""Values in the largest float32 copy that is made of an input of another dtype (32 MiB)."""


def subspace_extract(
    x: Tensor,
    omega: Tensor | None,
    power_steps: int,
    keep: Tensor | None = None,
    start: Tensor | None = None,
    total: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return A (d_in, r), float32 orthonormal columns spanning about the top r directions of x.

    Args:
        x: the layer's input, (m, d_in), any float dtype.
        omega: the Gaussian test matrix Omega, (m, r) float32, with r <= min(m, d_in); None with
            `start`.
        power_steps: K of Algorithm 1.
        keep: boolean (m,), False where a token is padding and must not count; None keeps all.
        start: (d_in, r) to take instead of H Omega: a basis of like inputs saves iterations.
        total: adds a product (r, d_in) to those of other processes' rows: A is of all rows then.

    Source: AGZO (arXiv 2601.17261), Algorithm 1: Y = H Omega; K times Q = qr(Y), Y = H (H^T Q).
    """
    drawn, begun = (None if each is None else thin.rows(each) for each in (omega, start))
    if total is None:
        alone = one_direction(x, drawn if begun is None else None, begun, power_steps, keep)
        if alone is not None:
            return alone
        total = _alone
    if x.shape[0] <= _part(x):
        x = x.float()  # once, and no copy at all of a float32 x
    y = total(product(x, keep, drawn=drawn)) if begun is None else begun
    for _ in range(power_steps):
        y = total(product(x, keep, q=orthonormal(y.T).T))
    return orthonormal(y.T)


def _alone(own: Tensor) -> Tensor:
    return own


def product(
    x: Tensor, keep: Tensor | None, *, q: Tensor | None = None, drawn: Tensor | None = None
) -> Tensor:
    """Return (H (H^T Q))^T, (r, d_in) float32, of Q^T; (H Omega)^T where there is no Q yet.

    Args:
        x, keep: as in `subspace_extract`.
        q: (r, d_in) float32.
        drawn: Omega^T, (r, m) float32.
    """
    size = _part(x)

    def part(first: int) -> Tensor:
        block = slice(first, first + size)
        h = x[block].float()  # its rows are columns of the paper's H
        real = None if keep is None else keep[block]
        if q is not None:
            return gram_product(h, q, real)
        assert drawn is not None
        omega = drawn[:, block]  # (r, tokens)
        return (omega if real is None else omega.masked_fill(~real, 0.0)) @ h

    y = part(0)
    for first in range(size, x.shape[0], size):
        y += part(first)
    return y


def _part(x: Tensor) -> int:
    """Return how many tokens of an input are read at once."""
    return max(1, x.shape[0] if x.dtype == torch.float32 else COPY // x.shape[1])


def leading(x: Tensor, rank: int, keep: Tensor | None = None) -> Tensor:
    """Return A (d_in, r), float32: the top r right singular vectors of x, the first one first.

    Takes the eigenvectors of X^T X, or of X X^T where that is smaller, in float64: squaring halves
    the digits, which float32 could not spare for a direction far weaker than the first.
    Memory: n^2 float64 with n = min(m, d_in) and about three times that while it is decomposed, and
    a float64 copy of X where m < d_in, of at most `COPY` values otherwise. The decomposition waits
    for the device. Where x is not finite, neither is A.

    Args:
        x, keep: as in `subspace_extract`.
        rank: r, at most min(m, d_in).
    """
    tokens, width = x.shape
    size = tokens if tokens < width else max(1, COPY // width)

    def part(start: int) -> Tensor:
        h = x[start : start + size].double()
        return h if keep is None else h.masked_fill(~keep[start : start + size, None], 0.0)

    h = part(0)
    if tokens < width:
        gram = h @ h.T
    else:
        gram = h.T @ h
        for start in range(size, tokens, size):
            h = part(start)
            gram.addmm_(h.T, h)
    finite = torch.isfinite(gram).all()
    vectors = _top(gram, finite, rank)
    basis = orthonormal(h.T @ vectors) if tokens < width else vectors
    return torch.where(finite, basis, torch.nan).float()


def leading_of_gram(gram: Tensor, rank: int) -> Tensor:
    """Return `leading` of the X whose X^T X (d_in, d_in), float64, this is."""
    finite = torch.isfinite(gram).all()
    return torch.where(finite, _top(gram, finite, rank), torch.nan).float()


def _top(gram: Tensor, finite: Tensor, rank: int) -> Tensor:
    """Return the eigenvectors of the r largest eigenvalues, (n, r), the first one first."""
    return torch.linalg.eigh(torch.where(finite, gram, 0.0)).eigenvectors[:, -rank:].flip(1)
