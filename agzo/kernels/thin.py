"""Products with factors of a few columns, where a matrix library is far from the memory's speed.

Factors are taken as rows, (r, d) contiguous. Measured on one CPU core, 1,024 tokens, width 512 to
1,536, float32, r = 2: a product with (512, r) takes 0.44 ms by columns and 0.06 by rows, adding the
product of two factors to a (1024, 1536) tensor 0.70 ms by `addmm_` and 0.17 in r passes, and r = 8
is where the passes no longer pay. The compiled `thin.cpp` takes one pass: 0.17 ms where the two
take 0.27 (on a slower day), and the same bits. It adds to a bfloat16 tensor in float32, and rounds
once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agzo.kernels import native

PASSES = native.THIN
"""The largest rank whose product is added in r passes on the CPU."""


def rows(factor: Tensor) -> Tensor:
    """Return a factor (d, r) as (r, d) contiguous: no copy where its columns are contiguous."""
    return factor.T.contiguous()


def takes_float32(y: Tensor, factor: Tensor) -> bool:
    """Tell whether float32 factors, (r, d) each, are added to this tensor as they are, in one pass.

    So it is of a contiguous bfloat16 tensor on the CPU; any other wants factors of its own dtype.
    """
    return native.usable(y, dtype=torch.bfloat16) and 1 <= factor.shape[0] <= PASSES


def add_branch(y: Tensor, x: Tensor, right: Tensor, left: Tensor, scale: float) -> None:
    """Set y to ``y + scale * (x right^T) left`` in place: a perturbation beside a linear layer.

    Args:
        y, x: (tokens, d_out) and (tokens, d_in), any float dtype, those of y contiguous.
        right, left: (r, d_in) and (r, d_out) float32, contiguous.
    """
    if 1 <= left.shape[0] <= PASSES and native.fills(y, x) and native.usable(right, left):
        compiled_branch(y, x, right, left, scale)
        return
    inner = right.to(x.dtype) @ x.T  # (r, tokens)
    exact = torch.promote_types(y.dtype, torch.float32)
    left = left.to(exact) * scale
    dtype = exact if takes_float32(y, left) else y.dtype
    add_product(y, inner.to(dtype), left.to(dtype))


def add_product(y: Tensor, left: Tensor, right: Tensor) -> None:
    """Set y to ``y + left.T @ right`` in place.

    Args:
        y: (m, n), any float dtype.
        left, right: (r, m) and (r, n) contiguous, of y's dtype, or see `takes_float32`.
    """
    if not left.shape[0]:
        return
    if takes_float32(y, left):
        native.add_thin_bfloat16(y, left, right)
        return
    if y.device.type != "cpu" or y.dtype.itemsize < 4 or left.shape[0] > PASSES:
        y.addmm_(left.T, right)
    elif native.usable(y, left, right):
        native.add_thin(y, left, right)
    else:
        for a, b in zip(left, right, strict=True):
            y.addcmul_(a[:, None], b)


def compiled_branch(y: Tensor, x: Tensor, right: Tensor, left: Tensor, scale: float) -> None:
    """Add scale * (x right^T) left to y (tokens, d_out); x (tokens, d_in) of its dtype.

    The factors are right (r, d_in) and left (r, d_out), float32, r from 1 to 4.
    """
    assert native.library is not None
    (tokens, height), (r, width), dtype = y.shape, right.shape, native.dtype_of(y)
    native.check_thin(left)
    pointers = (
        native.address("y", y, tokens * height, dtype),
        native.address("x", x, tokens * width, dtype),
        native.address("right", right, r * width),
        native.address("left", left, r * height),
    )
    low = dtype == torch.bfloat16
    add = native.library.agzo_branch_bfloat16 if low else native.library.agzo_branch
    add(*pointers, tokens, width, height, r, scale, native.threads())
