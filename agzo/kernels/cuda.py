"""The Triton twins of `normal.py` for CUDA, and the update with its rounding in one pass.

Each kernel writes its result once and makes no tensor beside it. Fused multiply-adds are off, so
the numbers are those of the reference, bit for bit. In the kernels a program has `LANES` lanes,
each one counter of Philox and four elements, 16 apart, as `normal.py` lays them out.

TRITON_INTERPRET=1, set before the import, runs the same code on the CPU: slow, for tests.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

LANES = 256
TILE = (32, 128)  # rows and columns of a program of the low-rank update
EXACT = {"enable_fp_fusion": False}
WORDS = ["k0", "k1", "r0", "r1", "start"]  # Triton would make a constant of one that is 1


@triton.jit
def _philox(counter, row, column, k0, k1):
    c0 = (counter & 0xFFFFFFFF).to(tl.uint32)
    c1 = (counter >> 32).to(tl.uint32)
    c2 = tl.zeros_like(c0) + row.to(tl.uint32)
    c3 = tl.zeros_like(c0) + column.to(tl.uint32)
    k0 = k0.to(tl.uint32)
    k1 = k1.to(tl.uint32)
    m0 = tl.full((), 0xD2511F53, tl.uint32)
    m1 = tl.full((), 0xCD9E8D57, tl.uint32)
    w0 = tl.full((), 0x9E3779B9, tl.uint32)
    w1 = tl.full((), 0xBB67AE85, tl.uint32)
    for _ in tl.static_range(7):
        h0, l0 = tl.umulhi(c0, m0), c0 * m0
        h1, l1 = tl.umulhi(c2, m1), c2 * m1
        c0, c1, c2, c3 = h1 ^ c1 ^ k0, l1, h0 ^ c3 ^ k1, l0
        k0, k1 = k0 + w0, k1 + w1
    return c0, c1, c2, c3


@triton.jit
def _pair(a, b):
    u = (a.to(tl.float32) + 0.5) * 2.3283064365386963e-10  # 2^-32
    i = u.to(tl.int32, bitcast=True) - 0x3F3504F3
    e = (i >> 23).to(tl.float32)
    x = ((i & 0x7FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
    xx = x * x
    y = x * 7.0376836292e-2 + -1.1514610310e-1
    y = y * x + 1.1676998740e-1
    y = y * x + -1.2420140846e-1
    y = y * x + 1.4249322787e-1
    y = y * x + -1.6668057665e-1
    y = y * x + 2.0000714765e-1
    y = y * x + -2.4999993993e-1
    y = y * x + 3.3333331174e-1
    y = y * x * xx - xx * 0.5
    radius = tl.sqrt_rn(((x + y) + e * 0.6931471805599453) * -2.0)
    quarter = (b + 0x20000000) >> 30
    t = (b - (quarter << 30)).to(tl.int32, bitcast=True).to(tl.float32) * 1.4629180792671596e-9
    tt = t * t
    s = ((tt * -1.9515295891e-4 + 8.3321608736e-3) * tt + -1.6666654611e-1) * tt * t + t
    c = (tt * 2.443315711809948e-5 + -1.388731625493765e-3) * tt + 4.166664568298827e-2
    c = c * tt * tt - tt * 0.5 + 1.0
    odd = (quarter & 1) != 0
    cos = tl.where(odd, s, c)
    sin = tl.where(odd, c, s)
    cos = tl.where(((quarter + 1) & 2) != 0, -cos, cos)
    sin = tl.where((quarter & 2) != 0, -sin, sin)
    return radius * cos, radius * sin


@triton.jit
def _number(value, POINTER: tl.constexpr):
    if POINTER:
        value = tl.load(value).to(tl.float32)
    return value


@triton.jit
def _rounded(value, word, dtype: tl.constexpr, MODE: tl.constexpr):
    """Round float32 to `dtype`, to nearest or up or down by the word's upper half."""
    if MODE == 1:
        noise = (word >> 16).to(tl.int32)
        pattern = value.to(tl.int32, bitcast=True)
        if dtype == tl.bfloat16:
            up = ((pattern + noise) >> 16 << 16).to(tl.float32, bitcast=True)
        else:
            up = ((pattern + (noise >> 3)) >> 13 << 13).to(tl.float32, bitcast=True)
            # Below the smallest normal number of float16 the spacing is fixed.
            grid = tl.floor(value * 16777216.0 + (noise >> 3).to(tl.float32) * 1.220703125e-4)
            up = tl.where(tl.abs(value) < 6.103515625e-05, grid * 5.9604644775390625e-08, up)
        finite = tl.abs(value) < float("inf")
        value = tl.where(finite, up, value)
    return value.to(dtype)


@triton.jit
def _store(out, base, offset, n, z, word, keep, scale, BASE: tl.constexpr, MODE: tl.constexpr):
    inside = (offset >= 0) & (offset < n)
    value = z * scale
    if BASE:
        value = tl.load(base + offset, mask=inside, other=0.0).to(tl.float32) * keep + value
    tl.store(out + offset, _rounded(value, word, out.dtype.element_ty, MODE), mask=inside)


@triton.jit
def _store_normals(
    out, base, counter, start, n, row, column, k0, k1, r0, r1, keep, scale,
    BASE: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Store ``keep * base + scale * z`` for those of a counter's four elements that are wanted."""
    offset = counter // 16 * 64 + counter % 16 - start
    x0, x1, x2, x3 = _philox(counter, row, column, k0, k1)
    z0, z1 = _pair(x0, x1)
    z2, z3 = _pair(x2, x3)
    if MODE == 1:
        x0, x1, x2, x3 = _philox(counter, row, column, r0, r1)
    _store(out, base, offset, n, z0, x0, keep, scale, BASE, MODE)
    _store(out, base, offset + 16, n, z1, x1, keep, scale, BASE, MODE)
    _store(out, base, offset + 32, n, z2, x2, keep, scale, BASE, MODE)
    _store(out, base, offset + 48, n, z3, x3, keep, scale, BASE, MODE)


@triton.jit
def _counter(start, program, LANES: tl.constexpr):
    """Return this program's counters, the first program's from the block of `start` on."""
    return start // 64 * 16 + program.to(tl.int64) * LANES + tl.arange(0, LANES)


@triton.jit(do_not_specialize=WORDS)
def _normal_kernel(
    out, base, n, start, k0, k1, r0, r1, keep, scale,
    KEEP: tl.constexpr, SCALE: tl.constexpr, BASE: tl.constexpr, MODE: tl.constexpr,
    LANES: tl.constexpr,
):  # fmt: skip
    zero = tl.zeros((), tl.int32)
    _store_normals(
        out, base, _counter(start, tl.program_id(0), LANES), start, n, zero, zero, k0, k1, r0, r1,
        _number(keep, KEEP), _number(scale, SCALE), BASE, MODE,
    )  # fmt: skip


@triton.jit(do_not_specialize=WORDS)
def _rows_kernel(
    out, base, rows, width, k0, k1, scale, BASE: tl.constexpr, LANES: tl.constexpr
):  # fmt: skip
    start = tl.load(rows + tl.program_id(0)).to(tl.int64) * width
    to = out + tl.program_id(0).to(tl.int64) * width
    zero = tl.zeros((), tl.int32)
    _store_normals(
        to, base + start, _counter(start, tl.program_id(1), LANES), start, width, zero, zero,
        k0, k1, k0, k1, 1.0, _number(scale, False), BASE, 0,
    )  # fmt: skip


@triton.jit(do_not_specialize=WORDS)
def _table_kernel(out, columns, positions, k0, k1, LANES: tl.constexpr):
    stream = tl.program_id(0)
    to = out + stream.to(tl.int64) * positions
    _store_normals(
        to, out, _counter(0, tl.program_id(1), LANES), 0, positions,
        stream // columns, stream % columns, k0, k1, k0, k1, 1.0, 1.0, False, 0,
    )  # fmt: skip


@triton.jit
def _store_half(out, offset, n, word):
    tl.store(out + offset, (word >> 16).to(tl.int32), mask=(offset >= 0) & (offset < n))


@triton.jit(do_not_specialize=WORDS)
def _bits_kernel(out, n, start, k0, k1, LANES: tl.constexpr):
    counter = _counter(start, tl.program_id(0), LANES)
    offset = counter // 16 * 64 + counter % 16 - start
    zero = tl.zeros((), tl.int32)
    x0, x1, x2, x3 = _philox(counter, zero, zero, k0, k1)
    _store_half(out, offset, n, x0)
    _store_half(out, offset + 16, n, x1)
    _store_half(out, offset + 32, n, x2)
    _store_half(out, offset + 48, n, x3)


@triton.jit(do_not_specialize=WORDS)
def _low_rank_kernel(
    weight, left, right, keep, scale, d_out, d_in, rank, r0, r1,
    left_row, left_column, right_row, right_column,
    KEEP: tl.constexpr, MODE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    j = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    scale = _number(scale, True)
    change = tl.zeros((ROWS, COLUMNS), tl.float32)
    for k in range(rank):
        a = tl.load(left + i * left_row + k * left_column, mask=i < d_out, other=0.0) * scale
        b = tl.load(right + j * right_row + k * right_column, mask=j < d_in, other=0.0)
        change += a[:, None] * b[None, :]
    inside = (i < d_out)[:, None] & (j < d_in)[None, :]
    at = i.to(tl.int64)[:, None] * d_in + j[None, :]
    value = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    value = value * _number(keep, KEEP) + change
    word = tl.zeros((ROWS, COLUMNS), tl.uint32)
    if MODE == 1:  # each lane makes the four words of its counter and takes its element's
        zero = tl.zeros((), tl.int32)
        x0, x1, x2, x3 = _philox(at // 64 * 16 + at % 16, zero, zero, r0, r1)
        which = at % 64 // 16
        word = tl.where(which == 0, x0, tl.where(which == 1, x1, tl.where(which == 2, x2, x3)))
    tl.store(weight + at, _rounded(value, word, weight.dtype.element_ty, MODE), mask=inside)


def _on_its_device(launch: Callable[..., None]) -> Callable[..., None]:
    """Launch on the device of the first argument: Triton takes the current one otherwise."""

    @functools.wraps(launch)
    def launched(out: Tensor, *others: Any, **named: Any) -> None:
        with torch.cuda.device(out.device) if out.is_cuda else nullcontext():
            launch(out, *others, **named)

    return launched


def _signed(key: tuple[int, int]) -> tuple[int, ...]:
    """Return the words as signed numbers of the same bits: one Triton type, so one compilation."""
    return tuple(word - (word >> 31 << 32) for word in key)


def _check(name: str, tensor: Tensor, device: torch.device, count: int) -> None:
    """Raise ValueError unless a tensor holds `count` contiguous values on a device."""
    if tensor.device != device or tensor.numel() != count or not tensor.is_contiguous():
        found = f"{tuple(tensor.shape)}, strides {tensor.stride()}, {tensor.device}"
        raise ValueError(f"{name}: {found}; allowed are {count} contiguous values on {device}")


@_on_its_device
def normal(
    out: Tensor,
    key: tuple[int, int],
    start: int,
    base: Tensor | None,
    keep: float | Tensor,
    scale: float | Tensor,
    stochastic: tuple[int, int] | None = None,
) -> None:
    """Set out to ``keep * base + scale * z`` of the elements from `start` on; base may be out.

    Both may have any float dtype; the sum is float32, rounded once: to nearest, or stochastically
    with the key `stochastic`.
    """
    if not out.numel():
        return
    _check("out", out, out.device, out.numel())
    for name, given, count in (("base", base, out.numel()), ("keep", keep, 1), ("scale", scale, 1)):
        if isinstance(given, Tensor):
            _check(name, given, out.device, count)
    blocks = (start + out.numel() - 1) // 64 - start // 64 + 1
    _normal_kernel[(triton.cdiv(blocks * 16, LANES),)](
        out, out if base is None else base, out.numel(), start,
        *_signed(key), *_signed(stochastic or key),
        keep, scale, isinstance(keep, Tensor), isinstance(scale, Tensor), base is not None,
        int(stochastic is not None), LANES, **EXACT,
    )  # fmt: skip


@_on_its_device
def normal_rows(
    out: Tensor, key: tuple[int, int], rows: Tensor, base: Tensor | None, scale: float
) -> None:
    """Set out (n, width) to the rows `rows` (n,) int64 of ``base + scale * z``, any float dtype."""
    if not out.numel():
        return
    count, width = out.shape
    _check("out", out, out.device, out.numel())
    _check("rows", rows, out.device, count)
    if base is not None:
        _check("base", base, out.device, base.shape[0] * width)
    programs = triton.cdiv((width // 64 + 2) * 16, LANES)
    _rows_kernel[(count, programs)](
        out,
        out if base is None else base,
        rows,
        width,
        *_signed(key),
        scale,
        base is not None,
        LANES,
        **EXACT,
    )


@_on_its_device
def normal_table(out: Tensor, key: tuple[int, int]) -> None:
    """Set out (examples, columns, positions) to the elements `positions` of their streams."""
    examples, columns, positions = out.shape
    _check("out", out, out.device, out.numel())
    programs = triton.cdiv(triton.cdiv(positions, 64) * 16, LANES)
    _table_kernel[(examples * columns, programs)](
        out, columns, positions, *_signed(key), LANES, **EXACT
    )


@_on_its_device
def sixteen_bits(out: Tensor, key: tuple[int, int], start: int) -> None:
    """Set out, int32, to uniform numbers in [0, 2^16)."""
    _check("out", out, out.device, out.numel())
    blocks = (start + out.numel() - 1) // 64 - start // 64 + 1
    _bits_kernel[(triton.cdiv(blocks * 16, LANES),)](out, out.numel(), start, *_signed(key), LANES)


@_on_its_device
def add_low_rank(
    weight: Tensor,
    left: Tensor,
    right: Tensor,
    keep: float | Tensor,
    scale: Tensor,
    stochastic: tuple[int, int] | None = None,
) -> None:
    """Set weight to ``keep * weight + (scale * left) @ right.T``, rounded once, in one pass.

    Args:
        weight: contiguous (d_out, d_in), any float dtype.
        left, right: (d_out, r) and (d_in, r) float32, any strides.
        keep: a number, or 0-dim on the device.
        scale: 0-dim float32 on the device.
        stochastic: key of the stochastic rounding; None rounds to nearest.
    """
    d_out, d_in = weight.shape
    _check("weight", weight, weight.device, d_out * d_in)
    for name, factor, height in (("left", left, d_out), ("right", right, d_in)):
        if factor.dtype != torch.float32 or factor.shape != (height, left.shape[1]):
            found = f"{factor.dtype}, {tuple(factor.shape)}"
            raise ValueError(f"{name}: {found}; allowed is float32 {(height, left.shape[1])}")
        if factor.device != weight.device:
            raise ValueError(f"{name}: on {factor.device}; allowed is {weight.device}")
    grid = (triton.cdiv(d_out, TILE[0]), triton.cdiv(d_in, TILE[1]))
    _low_rank_kernel[grid](
        weight, left, right, keep, scale, d_out, d_in, left.shape[1],
        *_signed(stochastic or (0, 0)), *left.stride(), *right.stride(),
        isinstance(keep, Tensor), int(stochastic is not None), *TILE, **EXACT,
    )  # fmt: skip
