"""Checks of hyperparameters: each error names the key, the value and what is allowed."""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor


def check_group(group: dict[str, Any]) -> dict[str, Any]:
    """Return a parameter group with its options as Python numbers.

    Raises:
        ValueError: an option that is unknown or out of range.
    """
    checked: dict[str, Any] = {}
    for key, value in group.items():
        if key in ("lr", "weight_decay"):
            checked |= check_rates(**{key: value}, where="params: ")
        elif key == "params":
            checked[key] = value
        else:
            raise ValueError(f"params: {key}={value!r}: allowed in a group are lr, weight_decay")
    return checked


def check_number(
    key: str,
    value: Any,
    *,
    above: float | None = None,
    minimum: float | None = None,
    below: float | None = None,
    maximum: float | None = None,
) -> float:
    """Return a number of Python, NumPy or torch (0-dim) as a float.

    Raises:
        ValueError: it is none, not finite, or out of range.
    """
    allowed = f"> {above}" if above is not None else f">= {minimum}"
    if below is not None:
        allowed = f"{allowed} and < {below}"
    if maximum is not None:
        allowed = f"{allowed} and <= {maximum}"
    single = isinstance(value, Tensor) and value.dim() == 0 and value.dtype != torch.bool
    if isinstance(value, bool) or not (single or isinstance(value, numbers.Real)):
        raise ValueError(
            f"{key}={value!r}: it is a {type(value).__name__}; allowed are finite numbers {allowed}"
        )
    number = float(value)
    in_range = (above is None or number > above) and (minimum is None or number >= minimum)
    in_range = in_range and (below is None or number < below)
    in_range = in_range and (maximum is None or number <= maximum)
    if not (math.isfinite(number) and in_range):
        raise ValueError(f"{key}={value}: allowed are finite numbers {allowed}")
    return number


def check_rates(where: str = "", **rates: Any) -> dict[str, Any]:
    """Return rates, each >= 0, as `check_number` does; in a tensor it stays, for who changes it."""
    checked = {key: check_number(where + key, v, minimum=0.0) for key, v in rates.items()}
    return {key: v if isinstance(v, Tensor) else checked[key] for key, v in rates.items()}


def check_count(key: str, value: Any, minimum: int = 1) -> int:
    """Return a whole number of Python or NumPy as an int.

    Raises:
        ValueError: it is none, or less than `minimum`.
    """
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or value < minimum:
        raise ValueError(f"{key}={value!r}: allowed are whole numbers >= {minimum}")
    return int(value)


def check_count_or_none(key: str, value: Any, none: str) -> int | None:
    """Return a whole number >= 1 as an int, or None, which means what `none` says."""
    if value is None:
        return None
    try:
        return check_count(key, value)
    except ValueError as error:
        raise ValueError(f"{error}, or None ({none})") from None


def check_seed(key: str, value: Any) -> int:
    """Return a whole number as an int: each is the seed of a noise of its own."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise ValueError(f"{key}={value!r}: allowed are whole numbers")
    return int(value)


def check_choice(key: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{key}={value!r}: allowed are {', '.join(allowed)}")
