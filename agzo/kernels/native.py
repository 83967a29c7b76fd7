"""The compiled twins of `normal.py`, `thin.py` and `gram.py` for the CPU, through ctypes.

`library` is None if it is not built, or of other sources.

It runs in torch's OpenMP threads, as many as ``torch.get_num_threads()``: with a pool of its own
the two would fight for the cores.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_int64, c_uint32, c_uint64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

THIN = 4  # the largest rank that `add_thin` has code for
KEY = (c_uint32, c_uint32)
ARGUMENTS = {
    "agzo_fill": (c_void_p, c_void_p, c_int64, c_uint64, *KEY, c_float, c_float, c_int, c_int),
    "agzo_fill_bfloat16": (
        *(c_void_p, c_void_p, c_int64, c_uint64, *KEY, c_float, c_float),
        *(c_int, *KEY, c_int, c_int),
    ),
    "agzo_fill_rows": (
        *(c_void_p, c_void_p, c_void_p, c_int64, c_int64, *KEY, c_float),
        *(c_int, c_int),
    ),
    "agzo_fill_rows_bfloat16": (
        *(c_void_p, c_void_p, c_void_p, c_int64, c_int64, *KEY, c_float),
        *(c_int, c_int),
    ),
    "agzo_normal_table": (c_void_p, c_int64, c_int64, c_int64, *KEY, c_int),
    "agzo_bits": (c_void_p, c_int64, c_uint64, *KEY, c_int),
    "agzo_add_thin": (c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int, c_int),
    "agzo_add_thin_bfloat16": (
        *(c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int),
        *(c_float, c_float, c_int),
    ),
    "agzo_branch": (*[c_void_p] * 4, *[c_int64] * 3, c_int, c_float, c_int),
    "agzo_branch_bfloat16": (*[c_void_p] * 4, *[c_int64] * 3, c_int, c_float, c_int),
    "agzo_power": (*[c_void_p] * 4, c_int64, c_int64, c_int, c_int),
    "agzo_power_bfloat16": (*[c_void_p] * 4, c_int64, c_int64, c_int, c_int),
    "agzo_gram": (c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int, c_int),
}


def load(path: Path) -> ctypes.CDLL | None:
    """Return a compiled library; None for one of another platform, or of older sources."""
    try:
        library = ctypes.CDLL(str(path))
        functions = [getattr(library, name) for name in ARGUMENTS]
    except (OSError, AttributeError):
        return None
    for function, arguments in zip(functions, ARGUMENTS.values(), strict=True):
        function.argtypes, function.restype = arguments, None
    return library


_built = sorted(Path(__file__).parent.glob("native_normal*.so"))  # a home directory may be shared
library = next(filter(None, map(load, _built)), None)


def usable(*tensors: Tensor | None, dtype: torch.dtype = torch.float32) -> bool:
    """Tell whether the compiled functions can work on these: contiguous, of a dtype, on the CPU."""
    if library is None:
        return False
    for t in tensors:
        if t is not None and not (
            t.dtype == dtype and t.is_cpu and t.is_contiguous() and not t.is_neg()
        ):
            return False
    return True


def fills(*tensors: Tensor | None) -> bool:
    """Tell whether `normal` and `normal_rows` can work on these: all float32, or all bfloat16."""
    return usable(*tensors) or usable(*tensors, dtype=torch.bfloat16)


def normal(
    out: Tensor,
    key: tuple[int, int],
    start: int,
    base: Tensor | None,
    keep: float,
    scale: float,
    stochastic: tuple[int, int] | None = None,
    signs: bool = False,
) -> None:
    """Set out to ``keep * base + scale * z`` of the elements from `start` on; base may be out.

    Both float32, or both bfloat16 and rounded once; `stochastic` is the key of its rounding. z is
    normal, or -1 and 1.
    """
    assert library is not None
    n, dtype = out.numel(), dtype_of(out)
    pointers = (
        address("out", out, n, dtype),
        None if base is None else address("base", base, n, dtype),
    )
    if dtype == torch.bfloat16:
        rounding = (stochastic is not None, *(stochastic or (0, 0)))
        library.agzo_fill_bfloat16(
            *pointers, n, start, *key, keep, scale, *rounding, signs, threads()
        )
    else:
        library.agzo_fill(*pointers, n, start, *key, keep, scale, signs, threads())


def normal_rows(
    out: Tensor,
    key: tuple[int, int],
    rows: Tensor,
    base: Tensor | None,
    scale: float,
    signs: bool = False,
) -> None:
    """Set out (n, width) to the rows `rows` (n,) int64 of ``base + scale * z``, as `normal`."""
    assert library is not None
    (n, width), dtype = out.shape, dtype_of(out)
    _check_rows(rows, None if base is None else base.numel() // max(1, width))
    pointers = (
        address("out", out, n * width, dtype),
        None if base is None else address("base", base, base.shape[0] * width, dtype),
        address("rows", rows, n, torch.int64),
    )
    low = dtype == torch.bfloat16
    fill = library.agzo_fill_rows_bfloat16 if low else library.agzo_fill_rows
    fill(*pointers, n, width, *key, scale, signs, threads())


def normal_table(out: Tensor, key: tuple[int, int]) -> None:
    """Set out (examples, columns, positions) to the elements `positions` of their streams."""
    assert library is not None
    examples, columns, positions = out.shape
    pointer = address("out", out, out.numel())
    library.agzo_normal_table(pointer, examples, columns, positions, *key, threads())


def sixteen_bits(out: Tensor, key: tuple[int, int], start: int) -> None:
    """Set out, contiguous int32 on the CPU, to uniform numbers in [0, 2^16)."""
    assert library is not None
    n = out.numel()
    library.agzo_bits(address("out", out, n, torch.int32), n, start, *key, threads())


def add_thin(y: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left.T @ right to y (m, n), in place; left (r, m), right (r, n), r from 1 to 4."""
    assert library is not None
    (m, n), r = y.shape, left.shape[0]
    check_thin(left)
    pointers = (
        address("y", y, m * n), address("left", left, r * m), address("right", right, r * n)
    )  # fmt: skip
    library.agzo_add_thin(*pointers, m, n, r, threads())


def add_thin_bfloat16(
    y: Tensor, left: Tensor, right: Tensor, keep: float = 1.0, scale: float = 1.0
) -> None:
    """Set y (m, n) bfloat16 to ``keep * y + scale * left.T @ right``, rounded once.

    The factors are left (r, m) and right (r, n), float32, r from 1 to 4.
    """
    assert library is not None
    (m, n), r = y.shape, left.shape[0]
    check_thin(left)
    pointers = (
        address("y", y, m * n, torch.bfloat16),
        address("left", left, r * m),
        address("right", right, r * n),
    )
    library.agzo_add_thin_bfloat16(*pointers, m, n, r, keep, scale, threads())


def address(name: str, tensor: Tensor, count: int, dtype: torch.dtype = torch.float32) -> int:
    """Return where the values of a tensor are; raise ValueError unless they lie as is said."""
    if (
        tensor.dtype == dtype
        and tensor.numel() == count
        and tensor.is_cpu
        and tensor.is_contiguous()
    ):
        return tensor.data_ptr()
    found = f"{tensor.dtype}, {tuple(tensor.shape)}, strides {tensor.stride()}, {tensor.device}"
    raise ValueError(f"{name}: {found}; allowed are {count} contiguous values, {dtype}, on the CPU")


def dtype_of(out: Tensor) -> torch.dtype:
    """Return bfloat16 of such a tensor; float32 of any other, which `address` then judges."""
    return torch.bfloat16 if out.dtype == torch.bfloat16 else torch.float32


def check_thin(left: Tensor) -> None:
    """Raise ValueError for more rows than the compiled products have code for."""
    if not 1 <= left.shape[0] <= THIN:
        raise ValueError(f"left: {tuple(left.shape)}; allowed are 1 to {THIN} rows")


def _check_rows(rows: Tensor, count: int | None) -> None:
    """Raise IndexError for rows that a table does not have; None: of any length."""
    if rows.numel() and (rows.min() < 0 or (count is not None and rows.max() >= count)):
        last = "any number" if count is None else count - 1
        raise IndexError(f"rows {rows.min()} to {rows.max()}: allowed are 0 to {last}")


def threads() -> int:
    """Return how many threads torch uses."""
    return torch.get_num_threads()
