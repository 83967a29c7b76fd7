"""Orthonormal columns without waiting for the device.

LAPACK's QR is the reference and what the CPU uses. On a GPU a QR of a thin matrix is a chain of
small kernels with the host in between. Cholesky-QR is two products and a triangular solve:

    G = Y^T Y + s I = L L^T,   Q = Y L^-T

Squaring Y halves the digits, so it is done in float64, with a shift s as large as G's rounding,
which keeps it positive definite whatever Y is (Fukaya et al. 2020), and three times: the first
pass brings a condition number of up to 1e8 (all that float32 columns can tell apart) below 1e5, the
others finish. Columns that depend on the others become small instead of orthonormal; none is ever
not finite unless Y is. Memory: two float64 copies of Y.
"""

from __future__ import annotations

import torch
from torch import Tensor

PASSES = 3


def orthonormal(y: Tensor) -> Tensor:
    """Return (d, r) float32 columns, orthonormal, with the span of y (d, r), r <= d."""
    return torch.linalg.qr(y).Q if y.device.type == "cpu" else cholesky_qr(y)


def cholesky_qr(y: Tensor) -> Tensor:
    """Return the same span as `torch.linalg.qr`, by shifted Cholesky-QR; no host synchronisation.

    Args:
        y: (d, r) float32; its columns may be of any length.
    """
    rows = y.T.double()  # (r, d)
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    rows = rows / torch.where(length > 0, length, 1.0)
    r, d = rows.shape
    eye = torch.eye(r, dtype=rows.dtype, device=rows.device)
    shift = 11 * (d * r + r * (r + 1)) * torch.finfo(rows.dtype).eps
    for _ in range(PASSES):
        gram = rows @ rows.T
        factor, _ = torch.linalg.cholesky_ex(gram + eye * (shift * gram.diagonal().sum()))
        rows = torch.linalg.solve_triangular(factor, rows, upper=False)
    return rows.float().T
