"""Which parameters take part, each once, under the name that keys its noise.

`torch.nn.Module.named_parameters` gives a tied parameter once, under its first name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agzo.torch_calls.products import INPUTS, Role
from agzo.tuned.linears import is_quantised, plain_name
from agzo.tuned.roles import roles

ParameterFilter = Callable[[str, nn.Parameter], bool]
Params = None | ParameterFilter | Iterable[nn.Parameter] | Iterable[dict[str, Any]]

EMBEDDINGS = (
    "tuned",
    "seen",
    "frozen",
)  # "seen": the rows of a batch's tokens, `directions.seen`


@dataclass(frozen=True)
class Tuned:
    """A tuned parameter and what it is to the model, see `agzo.tuned.roles`.

    `used_on` is the device that uses it, where that is not the one it lies on.
    """

    name: str
    parameter: nn.Parameter
    role: Role
    used_on: torch.device | None = None

    @property
    def inputs(self) -> int | None:
        """The dimension that a linear layer's input comes in by; None of any other parameter."""
        return INPUTS.get(self.role)

    @property
    def device(self) -> torch.device:
        """The device on which it is used, perturbed and updated."""
        return self.used_on or self.parameter.device


def select(
    model: nn.Module, params: Params, embeddings: str, used_on: torch.device | None = None
) -> tuple[list[Tuned], list[dict[str, Any]]]:
    """Return the tuned parameters and torch-style parameter groups.

    Args:
        model: the module to tune; only parameters with requires_grad take part.
        params: None (all), a filter ``(name, parameter) -> bool``, a parameter, an iterable of
            parameters or of (name, parameter) as `named_parameters` gives them, or parameter groups
            as in torch.optim (dicts with "params" and options such as "lr").
        embeddings: one of `EMBEDDINGS`; frozen leaves out every parameter an `nn.Embedding` holds,
            a head tied to it included.
        used_on: see `Tuned`.

    Quantised weights cannot be tuned. One that does not require grad is left out as any other, but
    only where plain parameters are frozen too: a quantiser freezes what it quantises, which is no
    choice of the caller's.

    Raises:
        ValueError: a parameter outside the model, quantised or empty, or nothing left to tune.
    """
    if embeddings not in EMBEDDINGS:
        raise ValueError(f"embeddings={embeddings!r}: allowed are {', '.join(EMBEDDINGS)}")
    check_model(model)
    names = {parameter: plain_name(name) for name, parameter in model.named_parameters()}
    role = roles(model)
    plain = [p for p in names if not is_quantised(p)]
    chosen = params is None and not all(p.requires_grad for p in plain)  # what is frozen, is so
    groups: list[dict[str, Any]] = []
    for group in parameter_groups(model, params):
        kept = []
        for parameter in group["params"]:
            if not isinstance(parameter, nn.Parameter):
                raise ValueError(
                    f"params: {parameter!r:.80} is a {type(parameter).__name__}; allowed are "
                    "parameters, parameter groups, or a filter (name, parameter) -> bool"
                )
            if parameter not in names:
                raise ValueError("params: a parameter does not belong to the model")
            if is_quantised(parameter) and (parameter.requires_grad or not chosen):
                raise ValueError(_explain_quantised(names[parameter], parameter))
            if not parameter.requires_grad:
                continue
            if embeddings == "frozen" and role[parameter] == "embedding":
                continue
            if not parameter.numel():
                raise ValueError(
                    f"parameter {names[parameter]}: its shape {tuple(parameter.shape)} has no "
                    "values; allowed are parameters with some: leave it out with params= or "
                    "requires_grad=False"
                )
            kept.append(parameter)
        if kept:
            groups.append({**group, "params": kept})
    if not groups:
        raise ValueError(
            f"embeddings={embeddings!r}: this and params leave no parameter to tune; needed is at "
            "least one with requires_grad=True"
        )
    tuned = [Tuned(names[p], p, role[p], used_on) for group in groups for p in group["params"]]
    twice = {each.name for each in tuned if tuned.count(each) > 1}
    if twice:
        raise ValueError(f"params: {', '.join(sorted(twice))} given twice; allowed is once")
    return tuned, groups


def check_model(model: Any) -> None:
    """Raise ValueError unless this is a module."""
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model: a {type(model).__name__}; allowed is the torch.nn.Module whose loss is "
            "measured, since noise goes by its parameters' names (what of it is tuned says params=)"
        )


def _explain_quantised(name: str, parameter: nn.Parameter) -> str:
    kind = f"{type(parameter).__name__}, {parameter.dtype}"
    if type(parameter).__name__ == "DTensor":
        return (
            f"parameter {name}: spread over processes ({kind}); allowed are whole weights on each "
            "process, which share a batch with group=agzo.distributed.Processes()"
        )
    return (
        f"parameter {name}: its layer is quantised ({kind}), and no update can be added to such a "
        "weight; allowed are plain floats: leave it out with params=, tune beside it with zo_act "
        "or an adapter, or load the model with model.quantize=none"
    )


def parameter_groups(model: nn.Module, params: Params) -> list[dict[str, Any]]:
    """Return torch-style groups of what `params` says, see `select`; nothing is checked yet."""
    if params is None:
        return [{"params": list(model.parameters())}]
    if isinstance(params, type):
        raise ValueError(
            f"params: the class {params.__name__}; allowed is what is made of it, "
            f"{params.__name__}(...), or a filter (name, parameter) -> bool"
        )
    if callable(params):
        named = model.named_parameters()
        return [{"params": [p for name, p in named if params(plain_name(name), p)]}]
    if isinstance(params, Tensor | str):
        return [{"params": [params]}]
    items: list[Any] = list(params)
    if items and isinstance(items[0], dict):
        return [{**group, "params": _as_list(group["params"])} for group in items]
    return [{"params": _as_list(items)}]


def _as_list(params: Any) -> list[Any]:
    """Return the parameters of a group, without the names that they may come with."""
    if isinstance(params, Tensor | str):
        return [params]
    return [each[1] if isinstance(each, tuple) and len(each) == 2 else each for each in params]
