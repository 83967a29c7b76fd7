"""What a torch call does with a tensor: use its values, take its address, or read neither.

A parameter must be perturbed wherever its values are used, and must not move where they are used
nowhere. Everything here that watches torch's calls asks this module which is the case:

    used(func, args, kwargs)    the arguments whose values the call uses
    ADDRESSES                     calls that hand out where the values lie; whether anybody reads
                                  them there cannot be seen, so the address must be of the right
                                  values, and is no sign that they are used

What is not listed counts as a use: perturbed once too often costs a copy, once too seldom a wrong
number.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Set
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch.overrides import TorchFunctionMode


def _getters(names: str) -> list[Any]:
    return [getattr(Tensor, name).__get__ for name in names.split() if hasattr(Tensor, name)]


def _named(where: Any, names: str) -> list[Any]:
    return [getattr(where, name) for name in names.split() if hasattr(where, name)]


_ATTRIBUTES = """
    _backward_hooks _base _grad _grad_fn _has_symbolic_sizes_strides _post_accumulate_grad_hooks
    _python_dispatch _version device dtype grad grad_dtype grad_fn is_cpu is_cuda is_ipu is_leaf
    is_maia is_meta is_mkldnn is_mps is_mtia is_nested is_quantized is_sparse is_sparse_csr
    is_vulkan is_xla is_xpu itemsize layout name names nbytes ndim output_nr requires_grad
    retains_grad shape volatile
"""
_METHODS = """
    __dir__ __dlpack_device__ __format__ __len__ __repr__ _is_view dense_dim dim dim_order
    element_size get_device has_names is_coalesced is_complex is_conj is_contiguous is_distributed
    is_floating_point is_inference is_neg is_pinned is_same_size is_set_to is_shared is_signed
    ndimension nelement numel record_stream register_hook register_post_accumulate_grad_hook
    requires_grad_ retain_grad size sparse_dim storage_offset storage_type stride
"""
_FUNCTIONS = """
    get_device is_complex is_conj is_distributed is_floating_point is_inference is_neg is_same_size
    is_signed numel result_type
"""

_READS = frozenset(
    [
        *_getters(_ATTRIBUTES),
        *(getattr(Tensor, name).__set__ for name in ("requires_grad", "grad", "_grad")),
        *(getattr(Tensor, name).__delete__ for name in ("grad", "_grad")),
        *_named(Tensor, _METHODS),
        *_named(torch, _FUNCTIONS),
    ]
)
"""Calls that use no values. Printing is one: no loss is computed from what is printed."""

_LIKE = frozenset(
    [
        *_named(Tensor, "new new_empty new_empty_strided new_full new_ones new_tensor new_zeros"),
        *_named(torch, "empty_like full_like ones_like zeros_like"),
        *_named(torch, "rand_like randint_like randn_like"),
    ]
)
"""Calls that make a tensor of the first argument's dtype, device or shape."""

_AS = frozenset(_named(Tensor, "expand_as reshape_as resize_as_ to type_as view_as"))
"""Calls that use the first argument's values, and of another one its dtype, device or shape."""

ADDRESSES = frozenset(
    [
        *_getters("__cuda_array_interface__ _cdata"),
        *_named(
            Tensor,
            "_typed_storage const_data_ptr data_ptr mutable_data_ptr storage untyped_storage",
        ),
    ]
)

_CALLS_BACK = frozenset([F.triplet_margin_with_distance_loss, *_named(Tensor, "apply_ map_ map2_")])
"""Calls of torch that run a function of the caller's, beside those of higher order."""


_NESTED = (list, tuple, dict)


def used(func: Any, args: Any, kwargs: Any) -> tuple[Any, ...]:
    """Return the arguments of a torch call whose values it uses; an address leads to them."""
    if func in _READS or (func is Tensor.type and len(args) == 1 and not kwargs):
        return ()
    if func in _AS:
        return args[:1]
    if func in _LIKE:
        first = () if args else ("self", "input")
        return (*args[1:], {key: value for key, value in kwargs.items() if key not in first})
    return (args, kwargs)


def among(wanted: Mapping[int, Any] | Set[int], arguments: Iterable[Any]) -> Iterator[int]:
    """Yield the ids in `wanted` of what call arguments hold (lists, tuples and dicts included)."""
    for value in arguments:
        if id(value) in wanted:
            yield id(value)
        elif isinstance(value, _NESTED):
            yield from among(wanted, value.values() if isinstance(value, dict) else value)


def holds(wanted: Mapping[int, Any] | Set[int], arguments: Iterable[Any]) -> bool:
    """Tell whether call arguments hold one whose id is in `wanted`, as `among` finds them."""
    for value in arguments:
        if id(value) in wanted:
            return True
        if isinstance(value, _NESTED):
            inside = value.values() if isinstance(value, dict) else value
            if inside and holds(wanted, inside):
                return True
    return False


@functools.cache
def _is_of_higher_order(kind: type) -> bool:
    return issubclass(kind, HigherOrderOperator)


class TorchCalls(TorchFunctionMode):
    """Sees torch's calls: `call` answers each, here as if nobody watched.

    Torch takes a mode off while the mode answers. A function that torch is given to run, such as a
    branch of `torch.cond`, is run under the mode again.

    Torch itself chooses by whether any mode is active (the fused layers of `nn.TransformerEncoder`
    run only where none is), so this one, too, is active in evaluations that nothing else watches.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _CALLS_BACK or _is_of_higher_order(type(func)):
            args, kwargs = self._run_under(args), self._run_under(kwargs)
        return self.call(func, args, kwargs or {})

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Answer a call."""
        return func(*args, **kwargs)

    def _run_under(self, value: Any) -> Any:
        """Have the functions among a call's arguments run under this mode."""
        if isinstance(value, dict):
            return {key: self._run_under(item) for key, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self._run_under(item) for item in value)
        return partial(self._again, value) if callable(value) else value

    def _again(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        with self:
            return function(*args, **kwargs)
