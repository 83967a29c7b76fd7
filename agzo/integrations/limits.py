"""What a Trainer may be told where its weights move without gradients; everything else is refused.

Imports nothing but the library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from agzo.agzo import AGZO
from agzo.optimizer import ZeroOrderOptimizer
from agzo.per_piece import PER_PIECE

METHODS: dict[str, type[ZeroOrderOptimizer]] = {"agzo": AGZO}
"""The methods that have a name here: the library's own. Any other one is given as its class."""

TRAINERS = {
    "lr": "learning_rate",
    "weight_decay": "weight_decay",
    "seed": "seed",
    "accumulation": "gradient_accumulation_steps",
    "group": "processes (torchrun)",
    "stream": "device, on which it puts the model",
}
"""Arguments of a method that are Trainer's to say."""

REFUSED = {
    "deepspeed": "DeepSpeed splits the weights and the optimizer's state over processes",
    "fsdp": "FSDP splits the weights over processes",
    "parallelism_config": "a model in parts is not whole in any process",
    "neftune_noise_alpha": "noise in the loss drowns a finite difference",
    "torch_empty_cache_steps": "there is no backward pass to empty a cache before",
}
"""Arguments of Trainer that cannot be followed, and why."""


def class_of(method: str | type[ZeroOrderOptimizer]) -> type[ZeroOrderOptimizer]:
    """Return the class that a name or a class stands for."""
    if isinstance(method, str) and method in METHODS:
        return METHODS[method]
    if isinstance(method, type) and issubclass(method, ZeroOrderOptimizer):
        return method
    raise ValueError(
        f"method={method!r}: allowed are {', '.join(map(repr, METHODS))}, or a class: a subclass "
        "of agzo.ZeroOrderOptimizer"
    )


def check_method_args(given: Mapping[str, Any]) -> None:
    """Raise ValueError for what Trainer says itself, and where eps is missing."""
    for key in TRAINERS.keys() & given.keys():
        raise ValueError(
            f"method_args: {key}={given[key]!r} is Trainer's {TRAINERS[key]}; allowed are the "
            "method's other arguments"
        )
    if "eps" not in given:
        raise ValueError(
            "method_args: eps is missing; allowed is a number > 0 (`agzo.find_eps` measures it)"
        )


def check_arguments(args: Any) -> None:
    """Raise ValueError for arguments of Trainer that cannot be followed."""
    for key, why in REFUSED.items():
        value = getattr(args, key, None)
        if value not in (None, False, "", [], {}):
            raise ValueError(f"{key}={value!r}: {why}; allowed is to leave it out")


def check_trainer(trainer: Any) -> None:
    """Raise ValueError for what a Trainer has become that cannot be: called once it is made."""
    args = trainer.args
    for key in ("deepspeed", "fsdp"):  # as `accelerate launch` sets them
        if getattr(trainer, f"is_{key}_enabled", False):
            raise ValueError(f"{key}: {REFUSED[key]}; allowed is to launch without it")
    default = next(each.default for each in fields(args) if each.name == "optim")
    if args.optim != default:
        raise ValueError(
            f"optim={str(args.optim)!r}: the optimizer is the method's; allowed is to leave optim "
            "out, and method= and method_args="
        )
    if trainer.optimizer is not None or getattr(trainer, "optimizer_cls_and_kwargs", None):
        raise ValueError(
            "optimizers: the optimizer is made of method= and method_args=; allowed is "
            "optimizers=(None, scheduler)"
        )
    if args.n_gpu > 1:
        raise ValueError(
            f"n_gpu={args.n_gpu}: DataParallel copies the weights for each evaluation; allowed is "
            "one process for each device (torchrun), or CUDA_VISIBLE_DEVICES of one"
        )


def check_last_step(trainer: Any, method: ZeroOrderOptimizer) -> None:
    """Raise ValueError where a step has one micro-batch and the method needs more of them.

    The last step of an epoch has what is left of its batches.
    """
    if method.estimator != PER_PIECE:
        return
    each, most = trainer.args.gradient_accumulation_steps, trainer.args.max_steps
    try:
        batches = len(trainer.get_train_dataloader())
    except TypeError:  # of a stream: nobody knows yet
        return
    never = each > 1 and 0 < most <= batches // each
    if (each == 1 or batches % each == 1) and not never:
        raise ValueError(
            f"gradient_accumulation_steps={each}: an epoch has {batches} micro-batches, so its "
            "last step has one, and estimator='per_piece' needs two or more; allowed is another "
            "number of steps, batch size or size of the data set"
        )
