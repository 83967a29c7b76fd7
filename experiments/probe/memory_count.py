"""Count the bytes of live tensors while code runs, on any device, the `meta` device included.

Tensors on `meta` have sizes and no values, so the real code runs at a model's true shape in
seconds, on a machine that could never hold it. What is counted is what torch's allocator would hand
out on CUDA for the same calls: every storage that an operator returns, from then until nothing
refers to it, rounded up to 512 bytes. Views and writes in place add nothing. Not counted: the
workspaces of kernels, the allocator's fragmentation, and the CUDA context.

Two things need an answer that a tensor without values cannot give:

* A value read back to the host (`LiveBytes`): a truth value is true and a number 1.0. What asks
  here are "are the two losses of one batch equal", "is every position a real token" and the
  textbook steps' projected gradient; a whole number, which could be a size, is an error.
* Attention (`fused_attention`): torch's choice on `meta` is the kernel that writes out the (heads,
  T, T) scores. `fused_attention` allocates what a fused kernel does instead.
"""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

BLOCK = 512  # bytes: the allocator of CUDA rounds each request up to a multiple


class Held(NamedTuple):
    """A storage: its rounded size, and the operator and shape that made it."""

    size: int
    made_by: str
    shape: tuple[int, ...]
    dtype: torch.dtype


class LiveBytes(TorchDispatchMode):
    """Keeps `now` and `peak`, in bytes, of the storages on one type of device.

    Args:
        device_type: "meta", "cpu", ...
        held: tensors that exist already: weights, buffers, input.
        keep_largest: keep the storages alive at the peak, for `largest` (slower).
    """

    def __init__(
        self, device_type: str, held: Iterable[Tensor] = (), keep_largest: bool = False
    ) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._device_type = device_type
        self._keep_largest = keep_largest
        self._live: dict[int, tuple[weakref.ref[Any], Held]] = {}
        self._at_peak: list[Held] = []
        for tensor in held:
            self._see(tensor, "held before")
        self._note()

    def largest(self, n: int) -> list[Held]:
        """Return the n largest storages alive at the peak."""
        return sorted(self._at_peak, key=lambda one: -one.size)[:n]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], Tensor) and args[0].is_meta:
            if func is torch.ops.aten.equal.default:
                return True
            if func is torch.ops.aten._local_scalar_dense.default:
                return _scalar(args[0])
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self._see(result, str(func))
        elif isinstance(result, (tuple, list)):
            for one in result:
                if isinstance(one, Tensor):
                    self._see(one, str(func))
        self._note()
        return result

    def _see(self, tensor: Tensor, made_by: str) -> None:
        if tensor.device.type != self._device_type:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        known = self._live.get(key)
        if known is not None:
            if known[1].size == size:
                return
            self._forget(key)  # resized
        held = Held(size, made_by, tuple(tensor.shape), tensor.dtype)
        # A storage's Python object lives as long as the storage itself.
        self._live[key] = (weakref.ref(storage, lambda _: self._forget(key)), held)
        self.now += size

    def _forget(self, key: int) -> None:
        self.now -= self._live.pop(key)[1].size

    def _note(self) -> None:
        if self.now > self.peak:
            self.peak = self.now
            if self._keep_largest:
                self._at_peak = [held for _, held in self._live.values()]


def _scalar(tensor: Tensor) -> bool | float:
    if tensor.dtype == torch.bool:
        return True
    if tensor.is_floating_point():
        return 1.0
    raise RuntimeError(
        f"a {tensor.dtype} was read from a meta tensor: its value could decide a size, so a "
        "count would be a guess"
    )


@contextmanager
def fused_attention() -> Iterator[None]:
    """Give scaled_dot_product_attention the allocations of CUDA's fused kernels meanwhile.

    The flash kernel (half precision) reads fewer key/value heads than query heads as they are; the
    memory-efficient one (float32) needs them repeated. Both return the output, laid out (batch, T,
    heads, width), and a log-sum-exp per query, which are kept with q, k and v for the backward. The
    values are zeros.
    """
    # Not a TorchFunctionMode: those are off inside torch.autograd.grad, where a checkpointed layer
    # runs again.
    before = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = _attend
    try:
        yield
    finally:
        F.scaled_dot_product_attention = before


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if attn_mask is not None or dropout_p:
        raise ValueError("attention with a mask or dropout: allowed is causal attention alone")
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and query.dtype == torch.float32:
        key, value = (one.repeat_interleave(groups, dim=1) for one in (key, value))
    return _Fused.apply(query, key, value)  # pyright: ignore[reportReturnType]


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, heads, tokens, _ = query.shape
        out = query.new_zeros(batch, tokens, heads, value.shape[-1]).transpose(1, 2)
        log_sum_exp = query.new_zeros(batch, heads, tokens, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, log_sum_exp)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.zeros_like(one) for one in ctx.saved_tensors[:3])
