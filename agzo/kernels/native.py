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

KEY = (c_uint32, c_uint32)
ARGUMENTS = {
    "agzo_normal": (c_void_p, c_void_p, c_int64, c_uint64, *KEY, c_float, c_float, c_int),
    "agzo_normal_rows": (c_void_p, c_void_p, c_void_p, c_int64, c_int64, *KEY, c_float, c_int),
    "agzo_normal_table": (c_void_p, c_int64, c_int64, c_int64, *KEY, c_int),
    "agzo_bits": (c_void_p, c_int64, c_uint64, *KEY, c_int),
    "agzo_add_thin": (c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int, c_int),
    "agzo_gram": (c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int, c_int),
}


def _load() -> ctypes.CDLL | None:
    for path in sorted(Path(__file__).parent.glob("native_normal*.so")):
        try:
            library = ctypes.CDLL(str(path))
            functions = [getattr(library, name) for name in ARGUMENTS]
        except (OSError, AttributeError):
            continue  # of another platform (a shared home directory, say), or of older sources
        for function, arguments in zip(functions, ARGUMENTS.values(), strict=True):
            function.argtypes, function.restype = arguments, None
        return library
    return None


library = _load()


def usable(*tensors: Tensor | None) -> bool:
    """Tell whether the compiled functions can work on these: contiguous float32 on the CPU."""
    return library is not None and all(
        t is None or (t.device.type == "cpu" and t.dtype == torch.float32 and t.is_contiguous())
        for t in tensors
    )


def normal(
    out: Tensor, key: tuple[int, int], start: int, base: Tensor | None, keep: float, scale: float
) -> None:
    """Set out to ``keep * base + scale * z`` of the elements from `start` on; base may be out."""
    assert library is not None
    library.agzo_normal(
        out.data_ptr(), _pointer(base), out.numel(), start, *key, keep, scale, _threads()
    )


def normal_rows(
    out: Tensor, key: tuple[int, int], rows: Tensor, base: Tensor | None, scale: float
) -> None:
    """Set out (n, width) to the rows `rows` (n,) int64 of ``base + scale * z``."""
    assert library is not None
    library.agzo_normal_rows(
        out.data_ptr(), _pointer(base), rows.data_ptr(), *out.shape, *key, scale, _threads()
    )


def normal_table(out: Tensor, key: tuple[int, int]) -> None:
    """Set out (examples, columns, positions) to the elements `positions` of their streams."""
    assert library is not None
    library.agzo_normal_table(out.data_ptr(), *out.shape, *key, _threads())


def sixteen_bits(out: Tensor, key: tuple[int, int], start: int) -> None:
    """Set out, contiguous int32 on the CPU, to uniform numbers in [0, 2^16)."""
    assert library is not None
    library.agzo_bits(out.data_ptr(), out.numel(), start, *key, _threads())


def add_thin(y: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left.T @ right to y (m, n), in place; left (r, m), right (r, n), r at most 4."""
    assert library is not None
    pointers = (y.data_ptr(), left.data_ptr(), right.data_ptr())
    library.agzo_add_thin(*pointers, *y.shape, left.shape[0], _threads())


def gram(y: Tensor, x: Tensor, q: Tensor, keep: Tensor | None) -> None:
    """Set y (r, d) to q x^T x of the tokens that keep (tokens,) has; x (tokens, d), q (r, d)."""
    assert library is not None
    pointers = (y.data_ptr(), x.data_ptr(), q.data_ptr(), _pointer(keep))
    library.agzo_gram(*pointers, *x.shape, q.shape[0], _threads())


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _threads() -> int:
    return torch.get_num_threads()
