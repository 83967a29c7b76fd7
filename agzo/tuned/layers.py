"""The decoder layers of a model, found by its shape, and one of them held in float32.

A decoder is a list of equal blocks that are run one after another, `model.layers` in Llama and
Qwen3, `model.decoder.layers` in OPT, `transformer.h` in GPT-2. So the layers are the members of an
`nn.ModuleList` of one type, of those that lie in no other list (experts do) the one with the most
parameters.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from agzo.torch_calls.inputs import is_low_precision
from agzo.tuned.select import check_model


def decoder_layers(model: nn.Module) -> tuple[str, list[nn.Module]]:
    """Return the name of the list that holds the decoder layers, and the layers in order."""
    check_model(model)
    lists = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    outer = {
        name: list(members)
        for name, members in lists.items()
        if not any(name.startswith(f"{other}." if other else "") for other in lists.keys() - {name})
    }
    sizes = {
        name: sum(p.numel() for member in members for p in member.parameters())
        for name, members in outer.items()
        if len({type(member) for member in members}) == 1
    }
    if not any(sizes.values()):
        raise ValueError(
            f"{type(model).__name__}: has no decoder layers; needed is an nn.ModuleList with "
            "parameters whose members are of one type"
        )
    name = max(sizes, key=lambda name: sizes[name])
    return name, outer[name]


def check_layer(layer: int, count: int) -> None:
    """Raise ValueError unless `layer` is an index of one of `count` layers."""
    if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < count:
        raise ValueError(f"layer={layer!r}: allowed are 0 to {count - 1}, the model's layers")


def own_parameters(model: nn.Module, path: str) -> set[nn.Parameter]:
    """Return the parameters of the module at `path`; one that is used elsewhere too is an error."""
    own = set(model.get_submodule(path).parameters())
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter in own and not name.startswith(f"{path}."):
            raise ValueError(
                f"{path}: shares {name} with the rest of the model, so it cannot be tuned alone; "
                "allowed is a layer with weights of its own"
            )
    return own


def hold_in_float32(layer: nn.Module) -> None:
    """Keep a float16 or bfloat16 layer in float32 from now on, whatever is around it.

    Floating-point inputs are cast to float32 on entry and outputs back to the dtype the layer had,
    in every forward: training, evaluation and generation. A layer of float32 or float64 is left as
    it is.
    """
    dtypes = {p.dtype for p in layer.parameters() if is_low_precision(p.dtype)}
    if not dtypes:
        return
    layer.to(torch.float32)
    layer.register_forward_pre_hook(_enter, with_kwargs=True)
    layer.register_forward_hook(partial(_leave, dtypes.pop()))


def _enter(_: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    return _cast(args, torch.float32), _cast(kwargs, torch.float32)


def _leave(dtype: torch.dtype, _: nn.Module, args: Any, output: Any) -> Any:
    return _cast(output, dtype)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Cast the floating-point tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if type(value) is dict:
        return {key: _cast(item, dtype) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_cast(item, dtype) for item in value)
    return value
