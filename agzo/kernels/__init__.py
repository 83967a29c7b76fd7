"""Fast ways to make noise and to add it, each behind one function and equal to its reference.

| where         | how                                | needs                             |
|---------------|------------------------------------|-----------------------------------|
| CPU           | `native`, compiled at install      | a C++ compiler at install         |
| CUDA          | `cuda`, Triton                     | triton (torch for CUDA brings it) |
| anything else | `normal`, plain torch              | nothing                           |

All give the same bits (`normal.py` defines them), so which one ran is no part of a result. On
the CPU float16 and float64 are made of native float32 noise in torch. Products with a few columns
are in `thin` (of float32 the same bits as well) and `gram` (equal to rounding).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from agzo.kernels import native
from agzo.kernels import normal as reference
from agzo.kernels.rounding import round_stochastically as round_stochastically

Key = tuple[int, int]  # two 32-bit words
Number = float | Tensor  # a 0-dim tensor on the device stays there

PART = 1 << 18
"""Elements that the reference makes at a time; it needs about a hundred bytes for each."""


def kind(device: torch.device) -> str:
    """Name what makes noise on a device: "native", "triton" or "torch"."""
    if device.type == "cpu" and native.library is not None:
        return "native"
    if device.type == "cuda" and _cuda() is not None:
        return "triton"
    return "torch"


def normal_(
    out: Tensor,
    key: Key,
    start: int = 0,
    base: Tensor | None = None,
    keep: Number = 1.0,
    scale: Number = 1.0,
    stochastic: Key | None = None,
    signs: bool = False,
) -> Tensor:
    """Set out to ``keep * base + scale * z`` (``scale * z`` without a base) and return it.

    z is standard normal, or with `signs` -1 and 1 with equal chance, one bit of a word each.
    Computed in float32 (float64 for a float64 `out`) and rounded once, to nearest or
    stochastically. On the meta device nothing happens.

    Args:
        out: contiguous, any float dtype.
        key, start: z are the elements start .. start + n - 1 of the key's stream.
        base: of out's shape and dtype; it may be `out`.
        keep, scale: numbers, or 0-dim tensors on the device.
        stochastic: key of the stochastic rounding of a float16 or bfloat16 `out`.
    """
    if out.device.type == "meta":
        return out
    if native.fills(out, base):
        native.normal(out, key, start, base, float(keep), float(scale), stochastic, signs)
    elif kind(out.device) == "triton" and out.dtype != torch.float64 and not signs:
        base = None if base is None else base.contiguous()
        _cuda().normal(out, key, start, base, keep, scale, stochastic)
    else:
        flat, source = out.view(-1), None if base is None else base.reshape(-1)
        for first in range(0, flat.numel(), PART):
            part = flat[first : first + PART]
            sum_ = _numbers(key, start + first, part, signs).mul_(scale)
            if source is not None:
                sum_ = source[first : first + PART].to(sum_.dtype) * keep + sum_
            if stochastic is not None:
                bits = sixteen_bits(stochastic, start + first, part.shape, out.device)
                sum_ = round_stochastically(sum_, bits, out.dtype)
            part.copy_(sum_)
    return out


def _numbers(key: Key, start: int, like: Tensor, signs: bool) -> Tensor:
    """Return as many elements as `like` has, float32 or its float64."""
    if signs:
        first, last = start // 16, -(-(start + like.numel()) // 16)
        sixteen = sixteen_bits(key, first, torch.Size([last - first]), like.device)
        z = reference.signs(sixteen, start % 16, like.numel()).view(like.shape)
    elif kind(like.device) == "native":
        z = torch.empty(like.shape, dtype=torch.float32, device=like.device)
        native.normal(z, key, start, None, 1.0, 1.0)
    else:
        z = reference.normal(key, start, like.numel(), like.device)
    return z.double() if like.dtype == torch.float64 else z


def normal_rows(
    key: Key,
    rows: Tensor,
    width: int,
    base: Tensor | None = None,
    scale: float = 1.0,
    signs: bool = False,
) -> Tensor:
    """Return the rows `rows` of ``base + scale * z``, z of base's shape: a tensor (n, width).

    Computed and rounded as by `normal_`.

    Args:
        key, scale, signs: as of `normal_`.
        rows: (n,) int64.
        width: values in a row.
        base: contiguous (any number of rows, width), any float dtype; None for float32 noise alone.
    """
    dtype = torch.float32 if base is None else base.dtype
    out = torch.empty(rows.numel(), width, dtype=dtype, device=rows.device)
    if out.device.type == "meta":
        return out
    if native.fills(out, base):
        native.normal_rows(out, key, rows.contiguous(), base, scale, signs)
    elif kind(out.device) == "triton" and dtype != torch.float64 and not signs:
        _cuda().normal_rows(out, key, rows.contiguous(), base, scale)
    elif signs:
        step = max(1, PART // max(1, width))
        for first in range(0, rows.numel(), step):
            own = rows[first : first + step]
            z = reference.sign_rows(key, own, width).to(torch.promote_types(dtype, torch.float32))
            z.mul_(scale)
            out[first : first + step] = z if base is None else base[own].to(z.dtype) + z
    else:
        for index, row in enumerate(rows.tolist()):
            own = None if base is None else base[row]
            normal_(out[index], key, row * width, own, scale=scale)
    return out


def normal_table(
    key: Key, examples: int, positions: int, columns: int, device: torch.device
) -> Tensor:
    """Return (examples, positions, columns) float32: element p of the stream (example, column)."""
    shape = (examples, columns, positions)
    out = torch.empty(shape, dtype=torch.float32, device=device)
    if device.type == "meta":
        pass
    elif native.usable(out):
        native.normal_table(out, key)
    elif kind(device) == "triton":
        _cuda().normal_table(out, key)
    else:
        for example in range(examples):
            for column in range(columns):
                z = reference.normal(key, 0, positions, device, example, column)
                out[example, column] = z
    return out.transpose(1, 2)


def sixteen_bits(key: Key, start: int, shape: torch.Size, device: torch.device) -> Tensor:
    """Return int32 of `shape`, uniform in [0, 2^16): the words of elements from `start` on."""
    out = torch.empty(shape, dtype=torch.int32, device=device)
    if device.type == "meta":
        pass
    elif kind(device) == "native":
        native.sixteen_bits(out, key, start)
    elif kind(device) == "triton":
        _cuda().sixteen_bits(out, key, start)
    else:
        out.view(-1).copy_(reference.sixteen_bits(key, start, out.numel(), device))
    return out


def adds_low_rank(weight: Tensor) -> bool:
    """Tell whether `add_low_rank` can take this weight."""
    return (
        kind(weight.device) == "triton" and weight.is_contiguous() and weight.dtype != torch.float64
    )


def add_low_rank(
    weight: Tensor,
    left: Tensor,
    right: Tensor,
    keep: Tensor | None,
    scale: Tensor,
    stochastic: Key | None = None,
) -> None:
    """Set weight to ``keep * weight + scale * left @ right.T``, float32 rounded once, in one pass.

    Args:
        weight: one that `adds_low_rank` allows, (d_out, d_in).
        left, right: (d_out, r) and (d_in, r) float32.
        keep, scale: 0-dim tensors on the device; None keeps all.
        stochastic: key of the stochastic rounding; None rounds to nearest.
    """
    _cuda().add_low_rank(weight, left, right, 1.0 if keep is None else keep, scale, stochastic)


@functools.cache
def _cuda() -> Any:
    """Return the Triton kernels, or None without Triton."""
    try:
        from agzo.kernels import cuda
    except ImportError:
        return None
    return cuda
