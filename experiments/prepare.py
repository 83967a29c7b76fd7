"""Everything that can fail before the first step: method, device, data, model, lengths.

Cheap checks come first, so that a bad setting stops a run before a large model is loaded.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from agzo.progress import Progress
from experiments import models, registry
from experiments.config import BadInput, RunConfig
from experiments.data import Splits, load_splits, protocol
from experiments.encode import Encoded, Encoder
from experiments.tasks import Task, get_task


@dataclass
class Parts:
    """What a run is made of, checked and ready."""

    device: torch.device
    task: Task
    splits: Splits
    encoder: Encoder
    train: list[Encoded]
    model: nn.Module
    tokenizer: Any
    optimizer: Any  # one of registry.METHODS
    steps: int
    eval_steps: set[int]
    truncated: dict[str, int]
    origin: dict[str, Any]  # of data and model, and the device: must be the same on resume


def prepare(config: RunConfig) -> Parts:
    """Build the parts of a run, or raise one `ValueError` that says what is wrong."""
    values = registry.settings(config.method, config.precision.rounding)
    method = registry.method_class(config.method["name"])
    device = models.choose_device(config.device)
    if config.model.source != "hub":
        models.locate(config.model)
    task = get_task(config.task.name)
    if config.task.revision is not None:
        task = replace(task, hub=replace(task.hub, revision=config.task.revision))
    train = config.train
    raw = load_splits(
        task,
        config.data.source,
        root=config.data.root,
        seed=train.train_seed,
        pocket_rows=(config.data.pocket_train, config.data.pocket_validation),
    )
    splits = protocol(
        task, raw, train.num_train, train.num_dev, train.num_eval, seed=train.train_seed
    )
    trains = bool(getattr(method, "trains", True))
    if trains and train.batch_size > len(splits.train):
        raise BadInput(
            f"train.batch_size={train.batch_size}: allowed are 1 to the number of training "
            f"examples, {len(splits.train)}"
        )
    model, tokenizer = models.load(config.model, config.precision.dtype, device)
    encoder = Encoder(tokenizer, train.max_length)
    encoded, truncated = _encode(config, task, splits, encoder, model)
    optimizer = registry.build(config.method["name"], model, values, config.seed)
    steps = _steps(config, optimizer) if trains else 0
    origin = {
        "data": raw.origin | {"sizes": splits.sizes, "examples_sha256": _fingerprint(splits)},
        "model": models.origin(config.model, model),
        "device": device.type,
        "stream_version": optimizer.stream_version,  # pyright: ignore[reportAttributeAccessIssue]
    }
    eval_steps = _eval_steps(config, steps)
    return Parts(
        device, task, splits, encoder, encoded, model, tokenizer, optimizer, steps, eval_steps,
        truncated, origin,
    )  # fmt: skip


def _encode(
    config: RunConfig, task: Task, splits: Splits, encoder: Encoder, model: nn.Module
) -> tuple[list[Encoded], dict[str, int]]:
    """Encode all splits now, so that an example that does not fit is found before training."""
    train = encoder.encode_all(splits.train)
    truncated = {"train": sum(example.truncated for example in train)}
    longest = max(len(ids) for example in train for ids in example.ids)
    for name, examples in (("dev", splits.dev), ("eval", splits.eval)):
        encoded = encoder.encode_all(examples)
        longest = max(longest, *(len(ids) for example in encoded for ids in example.ids))
        truncated[name] = sum(example.truncated for example in encoded)
        if task.kind == "generation":
            room = config.train.max_new_tokens
            prompts = encoder.encode_prompts(examples, room)
            longest = max(longest, *(len(prompt.ids) + room for prompt in prompts))
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise BadInput(
            f"train.max_length={config.train.max_length}: a sequence has {longest} tokens, "
            f"{config.model.name} allows {limit}; set train.max_length to {limit} or less"
        )
    return train, truncated


def _fingerprint(splits: Splits) -> str:
    """Hash all sampled examples, whatever their source: a generator or a hub can change too."""
    examples = (splits.train, splits.dev, splits.eval)
    text = json.dumps([[asdict(example) for example in split] for split in examples])
    return hashlib.sha256(text.encode()).hexdigest()


def _steps(config: RunConfig, optimizer: Optimizer) -> int:
    train = config.train
    if train.steps is not None:
        return train.steps
    assert train.forwards is not None
    assert isinstance(optimizer, Progress)
    steps = optimizer.steps_within(train.forwards)
    if steps == 0:
        least = optimizer.forwards_once + optimizer.forwards_of_step(0)
        raise BadInput(
            f"train.forwards={train.forwards}: allowed are {least} or more, what one step of "
            f"{config.method['name']} takes"
        )
    return steps


def _eval_steps(config: RunConfig, steps: int) -> set[int]:
    """Return the steps after which dev is evaluated; the last one always is."""
    train = config.train
    start = {0} if train.eval_at_start or steps == 0 else set()
    if train.evals is not None:
        return start | {-(-steps * i // train.evals) for i in range(1, train.evals + 1)}
    assert train.eval_every is not None
    return start | {steps} | set(range(train.eval_every, steps, train.eval_every))
