"""The product of a power iteration, (X^T X) q, in one pass over X where there is a kernel for it.

Two products by a matrix library read X twice. The compiled `gram.cpp` reads it once and takes 0.45
to 0.65 of the time with up to four directions, 0.7 to 0.9 with eight (one CPU core, 64 to 4,096
tokens of width 512 to 4,096, float32). It agrees with the products to rounding, not to the bit, as
those of two matrix libraries do. Memory: at most 64 r d values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agzo.kernels import native

DIRECTIONS = 8
"""The largest number of directions for which one pass is faster."""


def gram_product(x: Tensor, q: Tensor, keep: Tensor | None = None) -> Tensor:
    """Return ``q X^T X``, (r, d) float32.

    Args:
        x: (tokens, d) float32.
        q: (r, d) float32.
        keep: boolean (tokens,), False for a token that does not count; None counts all.
    """
    q = q.contiguous()
    if q.shape[0] <= DIRECTIONS and native.usable(x, q):
        y = torch.empty_like(q)
        compiled_gram(y, x, q, None if keep is None else keep.contiguous())
        return y
    coefficients = q @ x.T  # (r, tokens)
    if keep is not None:
        # Zeroing a token's coefficients takes it out of the product without a copy of x.
        coefficients = coefficients.masked_fill(~keep, 0.0)
    return coefficients @ x


def one_direction(
    x: Tensor, drawn: Tensor | None, start: Tensor | None, steps: int, keep: Tensor | None
) -> Tensor | None:
    """Return A (d, 1) of a whole power iteration in one call, or None where no kernel makes it.

    As `agzo.activations.subspace.subspace_extract` with r = 1, whose arguments these are: drawn is
    Omega^T, (1, tokens), start (1, d). The signs are those of LAPACK's QR.
    """
    given = start if drawn is None else drawn
    if given is None or given.shape[0] != 1 or not native.fills(x) or not native.usable(given):
        return None
    y = x.new_empty(x.shape[1], dtype=torch.float32) if start is None else start[0].clone()
    compiled_power(y, x, drawn, None if keep is None else keep.contiguous(), steps)
    return y[:, None]


def compiled_gram(y: Tensor, x: Tensor, q: Tensor, keep: Tensor | None) -> None:
    """Set y (r, d) to q x^T x of the tokens that keep (tokens,) has; x (tokens, d), q (r, d)."""
    assert native.library is not None
    (tokens, d), r = x.shape, q.shape[0]
    pointers = (
        native.address("y", y, r * d),
        native.address("x", x, tokens * d),
        native.address("q", q, r * d),
        None if keep is None else native.address("keep", keep, tokens, torch.bool),
    )
    native.library.agzo_gram(*pointers, tokens, d, r, native.threads())


def compiled_power(
    y: Tensor, x: Tensor, drawn: Tensor | None, keep: Tensor | None, steps: int
) -> None:
    """Set y (d,) to what power iterations on x^T x make of x^T drawn, or of y without drawn.

    x is (tokens, d), float32 or bfloat16, drawn (tokens,) float32, keep (tokens,) boolean.
    """
    assert native.library is not None
    (tokens, d), dtype = x.shape, native.dtype_of(x)
    pointers = (
        native.address("y", y, d),
        native.address("x", x, tokens * d, dtype),
        None if drawn is None else native.address("drawn", drawn, tokens),
        None if keep is None else native.address("keep", keep, tokens, torch.bool),
    )
    low = dtype == torch.bfloat16
    iterate = native.library.agzo_power_bfloat16 if low else native.library.agzo_power
    iterate(*pointers, tokens, d, steps, native.threads())
