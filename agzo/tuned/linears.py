"""The linear layers inside a model, its head apart, and which of its weights are quantised.

A quantised weight is a number format that can be multiplied with and not be added to: integers, or
a tensor subclass that shows a float dtype and holds packed codes and scales (torchao).
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

HEADS = ("lm_head", "embed_out", "output_projection")  # names, where the model does not tell

# What modules call their sizes, d_in and d_out, by the dimension that the input comes in by.
_SIZES = {1: ("in_features", "out_features"), 0: ("nx", "nf")}


def body_linears(model: nn.Module) -> dict[str, nn.Module]:
    """Name the linear layers of a model, its head left out, in the order of `named_modules`.

    Linear is an `nn.Linear`, plain or quantised, or a module that has `in_features` and
    `out_features`, or `nx` and `nf` as transformers' Conv1D has, and wraps no other. The head is
    what `get_output_embeddings()` returns, a layer that shares its weight with an `nn.Embedding`,
    or one of a name in `HEADS`.
    """
    told = getattr(model, "get_output_embeddings", lambda: None)()
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    return {
        plain_name(name): module
        for name, module in model.named_modules()
        if weight_inputs(module) is not None
        and module is not told
        and id(getattr(module, "weight", None)) not in tables
        and name.rpartition(".")[2] not in HEADS
    }


def plain_name(name: str) -> str:
    """Return the name of a module or parameter without what torch.compile puts in it.

    Noise is addressed by names, and a compiled model's is that of the model.
    """
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def weight_inputs(module: nn.Module) -> int | None:
    """Return the dimension of a linear layer's weight that its input comes in by.

    1 for x W^T, 0 for x W; None where the module is no linear layer.
    """
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return None  # nn.MultiheadAttention reads its weight and never calls it
    if isinstance(module, nn.Linear):
        return 1
    if any(module.children()) and "weight" not in module._parameters:
        return None  # a wrapper of one, such as an adapter's
    for dimension, names in _SIZES.items():
        if all(isinstance(getattr(module, name, None), int) for name in names):
            return dimension
    return None


def sizes(layer: nn.Module) -> tuple[int, int]:
    """Return (d_in, d_out) of a linear layer."""
    dimension = weight_inputs(layer)
    assert dimension is not None
    d_in, d_out = (getattr(layer, name) for name in _SIZES[dimension])
    return d_in, d_out


def held(layer: nn.Module) -> Tensor:
    """Return a tensor that the layer holds: its weight, or where its codes are under other names.

    It tells the device; its dtype is that of the layer's output only where it is a float dtype.
    """
    weight = getattr(layer, "weight", None)
    if isinstance(weight, Tensor):
        return weight
    return next(itertools.chain(layer.parameters(), layer.buffers()))


def is_quantised(tensor: Tensor) -> bool:
    """Tell whether a weight is held in a form that no update can be added to."""
    return not tensor.is_floating_point() or hasattr(type(tensor), "__tensor_flatten__")


def stored_bytes(model: nn.Module) -> int:
    """Count the bytes of parameters and buffers: each storage once, packed weights as packed."""
    found: dict[int, int] = {}
    tensors = [*model.parameters(), *model.buffers()]
    while tensors:
        tensor: Any = tensors.pop()
        if hasattr(type(tensor), "__tensor_flatten__"):
            names, _ = tensor.__tensor_flatten__()
            tensors += [getattr(tensor, name) for name in names]
        elif tensor.device.type != "meta":
            storage: torch.UntypedStorage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())
