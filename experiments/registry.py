"""The methods a run can name, and their keys.

A method is a `torch.optim.Optimizer` whose constructor starts with `model`. Its keys in conf/method
are the constructor's other parameters, with their annotations as types. So a new method is one
file, one line in `METHODS`, and one file in conf/method.
"""

import inspect
import math
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from torch import nn
from torch.optim import Optimizer

from agzo import AGZO
from baselines import ICL, LOZO, LOZOM, SGD, AdamW, MeZO, ZeroShot
from experiments.config import BadInput

METHODS: dict[str, type[Optimizer]] = {
    "agzo": AGZO,
    "mezo": MeZO,
    "lozo": LOZO,
    "lozo_m": LOZOM,
    "sgd": SGD,
    "adamw": AdamW,
    "zero_shot": ZeroShot,
    "icl": ICL,
}

# Constructor parameters that are not keys of the method: the run gives them.
GIVEN = ("self", "model", "params", "seed", "rounding")

WORDS = {float: "a finite number", int: "a whole number", bool: "true or false", str: "a word"}


def method_class(name: str) -> type[Optimizer]:
    """Return the class of a method."""
    if name not in METHODS:
        raise BadInput(f"method={name}: unknown; allowed are {', '.join(METHODS)}")
    return METHODS[name]


def method_keys(method: type[Optimizer]) -> dict[str, Any]:
    """Return the keys of a method and their types."""
    return {name: kind for name, kind in _parameters(method).items() if name not in GIVEN}


def _parameters(method: type[Optimizer]) -> dict[str, Any]:
    """Return the names and types of a constructor's parameters.

    One that hands `**shared` on has those of the class it inherits from as well.
    """
    found: dict[str, Any] = {}
    for base in method.__mro__:
        if "__init__" not in vars(base):
            continue
        hints = get_type_hints(base.__init__)
        signature = inspect.signature(base.__init__).parameters
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


def rehearse(name: str, values: dict[str, Any]) -> Optimizer:
    """Construct a method on a weightless layer, wide enough for any rank."""
    with torch.device("meta"):
        layer = nn.Sequential(nn.Linear(2**28, 2**28))
    return _construct(name, layer.eval(), values)


def build(name: str, model: nn.Module, values: dict[str, Any], seed: int) -> Optimizer:
    """Construct a method on the real model."""
    if "seed" in _parameters(METHODS[name]):
        values = values | {"seed": seed}
    return _construct(name, model, values)


def _construct(name: str, model: nn.Module, values: dict[str, Any]) -> Optimizer:
    try:
        return METHODS[name](model, **values)  # pyright: ignore[reportCallIssue, reportArgumentType]
    except (ValueError, TypeError) as error:
        own = str(error).partition("=")[0] in values  # "rank=0: allowed are ..."
        message = f"method.{error} (method={name})" if own else f"method={name}: {error}"
        raise BadInput(message) from error


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
