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


def body_linears(model: nn.Module) -> dict[str, nn.Module]:
    """Name the linear layers of a model, its head left out, in the order of `named_modules`.

    Linear is an `nn.Linear`, plain or quantised, or a module without children that has
    `in_features` and `out_features`. The head is what `get_output_embeddings()` returns, a layer
    that shares its weight with an `nn.Embedding`, or one of a name in `HEADS`.
    """
    told = getattr(model, "get_output_embeddings", lambda: None)()
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    return {
        plain_name(name): module
        for name, module in model.named_modules()
        if _is_linear(module)
        and module is not told
        and id(getattr(module, "weight", None)) not in tables
        and name.rpartition(".")[2] not in HEADS
    }


def plain_name(name: str) -> str:
    """Return the name of a module or parameter without what torch.compile puts in it.

    Noise is addressed by names, and a compiled model's is that of the model.
    """
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _is_linear(module: nn.Module) -> bool:
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return False  # nn.MultiheadAttention reads its weight and never calls it
    if isinstance(module, nn.Linear):
        return True
    sizes = (getattr(module, "in_features", None), getattr(module, "out_features", None))
    return all(isinstance(size, int) for size in sizes) and not any(module.children())


def sizes(layer: nn.Module) -> tuple[int, int]:
    """Return (d_in, d_out) of a linear layer."""
    found: Any = layer
    return found.in_features, found.out_features


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
