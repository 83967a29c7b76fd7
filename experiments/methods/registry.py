"""The methods a run can name, and their keys.

A method is a `torch.optim.Optimizer` whose constructor starts with `model`, or a function that
returns one, with an `About` as `about`. Its keys in conf/method are the other parameters, with
their annotations as types. So a new method is one file, one line in `METHODS`, and one file in
conf/method.
"""

import inspect
import math
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from torch import nn
from torch.optim import Optimizer

from agzo import AGZO, ZeroOrderOptimizer
from agzo.distributed.group import ALONE, Group
from agzo.execution.stream import StreamedLayers
from agzo.per_piece import PER_PIECE
from baselines import (
    AIMZO,
    FZOO,
    GRZO,
    ICL,
    LOZO,
    LOZOM,
    SGD,
    AdamW,
    ConMeZO,
    DeepZero,
    HiZOO,
    MeZO,
    SubZero,
    ZeroShot,
    ZOAct,
    ZOMuon,
    on_dominant_layer,
)
from experiments.config.composed import refuse_beyond_int64
from experiments.config.errors import BadInput
from experiments.config.schema import RunConfig
from experiments.tasks import task_of

METHODS: dict[str, Any] = {
    "agzo": AGZO,
    "mezo": MeZO,
    "lozo": LOZO,
    "lozo_m": LOZOM,
    "fzoo": FZOO,
    "hizoo": HiZOO,
    "conmezo": ConMeZO,
    "subzero": SubZero,
    "zo_muon": ZOMuon,
    "aim_zo": AIMZO,
    "grzo": GRZO,
    "deepzero": DeepZero,
    "zo_act": ZOAct,
    "dominant_layer": on_dominant_layer,
    "sgd": SGD,
    "adamw": AdamW,
    "zero_shot": ZeroShot,
    "icl": ICL,
}

# Constructor parameters that are not keys of the method: the run gives them.
GIVEN = ("self", "model", "params", "seed", "rounding", "stream", "group", "accumulation")

# Adapters that a method cannot tune, and why.
NO_ADAPTER: dict[str, dict[str, str]] = {
    "zo_act": dict.fromkeys(
        ("lora", "prefix"),
        "it attaches one of its own beside frozen weights; allowed is adapter=none",
    ),
    "dominant_layer": {
        "prefix": "a prefix lies in no decoder layer; allowed are adapter=none and adapter=lora"
    },
}

WORDS = {float: "a finite number", int: "a whole number", bool: "true or false", str: "a word"}


def method_class(name: str) -> Any:
    """Return the class of a method, or the function that makes one."""
    if name not in METHODS:
        raise BadInput(f"method={name}: unknown; allowed are {', '.join(METHODS)}")
    return METHODS[name]


def method_keys(method: Any) -> dict[str, Any]:
    """Return the keys of a method and their types."""
    given = (*GIVEN, *method.about.fixed)
    return {name: kind for name, kind in _parameters(method).items() if name not in given}


def takes(name: str, argument: str) -> bool:
    """Tell whether a method's constructor takes an argument of this name."""
    return argument in _parameters(method_class(name))


def _parameters(method: Any) -> dict[str, Any]:
    """Return the names and types of a constructor's parameters.

    One that hands `**shared` on has those of the class it inherits from as well; a function those
    of every zeroth-order method.
    """
    found: dict[str, Any] = {}
    classes = method.__mro__ if isinstance(method, type) else ZeroOrderOptimizer.__mro__
    constructors = [vars(each)["__init__"] for each in classes if "__init__" in vars(each)]
    for made in constructors if isinstance(method, type) else [method, *constructors]:
        hints = get_type_hints(made)
        signature = inspect.signature(made).parameters
        own = [name for name, p in signature.items() if p.kind is not p.VAR_KEYWORD]
        found |= {name: hints.get(name, Any) for name in own if name not in found}
        if len(own) == len(signature):
            break
    return found


def settings(config: dict[str, Any], rounding: str) -> dict[str, Any]:
    """Check a method's keys, types and values before a model is loaded; return its arguments.

    The values are judged by the constructor itself.
    """
    name = config["name"]
    method = method_class(name)
    types = method_keys(method)
    given = {key: value for key, value in config.items() if key != "name"}
    for key in given:
        if key not in types:
            allowed = ", ".join(types) or "none"
            raise BadInput(f"method.{key}={given[key]}: {name} has no such key; allowed: {allowed}")
    values = {key: cast(f"method.{key}", given[key], types[key]) for key in given}
    if values.get("lr", 1.0) <= 0:
        raise BadInput(f"method.lr={values['lr']}: allowed is a number above 0")
    if "rounding" in _parameters(method):
        values["rounding"] = rounding
    elif rounding != "nearest":
        raise BadInput(f"precision.rounding={rounding}: {name} allows nearest only")
    rehearse(name, values)
    return values


def check_fit(config: RunConfig) -> None:
    """Refuse a method that cannot tune the run's adapter or cannot follow its objective."""
    name, adapter = config.method["name"], config.adapter.name
    method = method_class(name)
    if adapter != "none" and not method.about.trains:
        raise BadInput(
            f"adapter.name={adapter}: method={name} trains nothing, so it would report an adapter "
            "at its start; allowed is adapter=none"
        )
    if adapter in NO_ADAPTER.get(name, {}):
        raise BadInput(
            f"adapter.name={adapter}: method={name} cannot tune it, because "
            f"{NO_ADAPTER[name][adapter]}"
        )
    if config.method.get("estimator") == PER_PIECE and config.train.accumulation < 2:
        raise BadInput(
            f"train.accumulation={config.train.accumulation}: with method.estimator={PER_PIECE} "
            "each micro-batch has a direction of its own; allowed are 2 up to train.batch_size="
            f"{config.train.batch_size}, which gives every example one"
        )
    if config.train.objective == "metric" and method.about.needs_gradient:
        raise BadInput(
            f"train.objective=metric: the metric has steps and no derivative, which method={name} "
            "follows; allowed are zeroth-order methods, or train.objective=loss"
        )
    generates = config.train.objective == "metric" and task_of(config.task).kind
    if generates == "generation" and config.method.get("reuse_prefix"):
        raise BadInput(
            f"method.reuse_prefix=true: with train.objective=metric {config.task.name} generates, "
            "so later tokens depend on the tuned layer and layers before it cannot be reused; "
            "allowed is method.reuse_prefix=false"
        )


def rehearse(name: str, values: dict[str, Any]) -> Any:
    """Construct a method on a weightless layer, wide enough for any rank.

    The index of a layer is judged on the model itself.
    """
    if values.get("layer") is not None:
        values = values | {"layer": 0}
    with torch.device("meta"):
        layers = nn.ModuleList([nn.Linear(2**28, 2**28)])
    return _construct(name, nn.Sequential(layers).eval(), values)


def build(
    name: str,
    model: nn.Module,
    values: dict[str, Any],
    seed: int,
    stream: StreamedLayers | None = None,
    group: Group | None = None,
    accumulation: int = 1,
) -> Any:
    """Construct a method on the real model, whose layers may be streamed.

    The processes of `group` and `accumulation` micro-batches in each may share a batch.
    """
    group = group or ALONE
    divisible = takes(name, "group") and takes(name, "accumulation")
    if group.size * accumulation > 1 and method_class(name).about.trains and not divisible:
        raise BadInput(
            f"method={name}: its constructor takes no group and accumulation, so a batch cannot be "
            f"divided ({group.size} process(es), train.accumulation={accumulation}); "
            "allowed is one process, train.accumulation=1"
        )
    own = {"seed": seed, "stream": stream, "group": group, "accumulation": accumulation}
    values = values | {key: value for key, value in own.items() if takes(name, key)}
    return _construct(name, model, values)


def _construct(name: str, model: nn.Module, values: dict[str, Any]) -> Optimizer:
    try:
        return METHODS[name](model, **values)  # pyright: ignore[reportCallIssue, reportArgumentType]
    except (ValueError, TypeError) as error:
        raise refusal(name, values, error) from error


def refusal(name: str, values: dict[str, Any], error: Exception) -> BadInput:
    """Return the error of a method as one about its keys ("rank=0: allowed are ...") or itself."""
    own = str(error).partition("=")[0] in values
    return BadInput(f"method.{error} (method={name})" if own else f"method={name}: {error}")


def cast(key: str, value: Any, kind: Any) -> Any:
    """Return `value` as the annotated type `kind`, or say what is allowed."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        if value is None and NoneType in args:
            return None
        kinds = [arg for arg in args if arg is not NoneType]
        return cast(key, value, kinds[0]) if len(kinds) == 1 else value
    if origin is Literal:
        if value not in args:
            raise BadInput(f"{key}={value}: allowed are {', '.join(map(str, args))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple) or len(value) != len(args):
            raise BadInput(f"{key}={value}: allowed is a list of {len(args)} numbers")
        return tuple(cast(key, item, arg) for item, arg in zip(value, args, strict=True))
    refuse_beyond_int64(key, value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and number:
        if not math.isfinite(value):
            raise BadInput(f"{key}={value}: allowed is a finite number")
        return float(value)
    if kind is int and number and isinstance(value, int):
        return value
    if kind in (bool, str) and isinstance(value, kind):
        return value
    raise BadInput(f"{key}={value}: allowed is {WORDS.get(kind, kind)}")
