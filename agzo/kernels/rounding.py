"""Stochastic rounding to float16 and bfloat16, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def round_stochastically(values: Tensor, bits: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float32 values to float16 or bfloat16, up or down at random, right on average.

    Args:
        values: float32.
        bits: int32 of the same shape, uniform in [0, 2^16).
        dtype: torch.float16 or torch.bfloat16.
    """
    if dtype == torch.bfloat16:
        dropped = 16  # bits of a float32 mantissa that the target lacks
    else:
        dropped = 13
        bits = bits >> 3
    pattern = (values.view(torch.int32) + bits) >> dropped << dropped
    rounded = torch.where(torch.isfinite(values), pattern.view(torch.float32), values)
    if dtype == torch.float16:
        # Below the smallest normal number the spacing is fixed.
        grid = torch.floor(values * 2.0**24 + bits.float() * 2.0**-13) * 2.0**-24
        rounded = torch.where(values.abs() < 2.0**-14, grid, rounded)
    return rounded.to(dtype)
