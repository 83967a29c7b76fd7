"""Checks of hyperparameters: each error names the key, the value and what is allowed."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def check_group(group: dict[str, Any]) -> None:
    """Raise ValueError for a parameter group's options that are unknown or out of range."""
    for key, value in group.items():
        if key in ("lr", "weight_decay"):
            check_number(f"params: {key}", value, minimum=0.0)
        elif key != "params":
            raise ValueError(f"params: {key}={value!r}: allowed in a group are lr, weight_decay")


def check_mask(token_mask: Tensor | None) -> None:
    """Raise ValueError unless the mask is None or boolean (batch, sequence)."""
    if token_mask is not None and (token_mask.dtype != torch.bool or token_mask.dim() != 2):
        raise ValueError(
            f"token_mask: dtype {token_mask.dtype}, shape {tuple(token_mask.shape)}; allowed is "
            "boolean (batch, sequence), True for real tokens"
        )


def check_number(
    key: str,
    value: float,
    *,
    above: float | None = None,
    minimum: float | None = None,
    below: float | None = None,
    maximum: float | None = None,
) -> None:
    """Raise ValueError unless `value` is finite and in range."""
    allowed = f"> {above}" if above is not None else f">= {minimum}"
    in_range = (above is None or value > above) and (minimum is None or value >= minimum)
    if below is not None:
        allowed, in_range = f"{allowed} and < {below}", in_range and value < below
    if maximum is not None:
        allowed, in_range = f"{allowed} and <= {maximum}", in_range and value <= maximum
    if not (math.isfinite(value) and in_range):
        raise ValueError(f"{key}={value}: allowed are finite numbers {allowed}")


def check_count(key: str, value: int | None, minimum: int = 1, none: str = "") -> None:
    """Raise ValueError unless `value` is a whole number of at least `minimum`.

    None is allowed too where `none` says what it means.
    """
    if none and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        also = f", or None ({none})" if none else ""
        raise ValueError(f"{key}={value!r}: allowed are whole numbers >= {minimum}{also}")


def check_choice(key: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{key}={value!r}: allowed are {', '.join(allowed)}")
