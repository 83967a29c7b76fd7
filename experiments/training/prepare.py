"""Everything that can fail before the first step: method, device, data, model, lengths.

Cheap checks come first, so that a bad setting stops a run before a large model is loaded.
"""

import hashlib
import json
import sys
from dataclasses import asdict
from typing import Any

from torch import nn
from torch.optim import Optimizer

from agzo.distributed.group import ALONE, Group
from agzo.execution.stream import StreamedLayers
from agzo.optimizer import ZeroOrderOptimizer
from agzo.tuned.coordinates import coordinates
from agzo.tuned.roles import roles
from experiments.config.errors import BadInput
from experiments.config.schema import RunConfig
from experiments.config.shorten import shortened
from experiments.data import Splits, load_splits, protocol
from experiments.data.demonstrations import answered, with_demonstrations
from experiments.data.encode import Encoder
from experiments.data.shares import Shares, check_shares
from experiments.evaluation import forgetting
from experiments.evaluation.evaluate import Questions, questions
from experiments.evaluation.trial import Trial, check_runs, try_out
from experiments.methods import registry
from experiments.models import loading
from experiments.models.offload import host, offload
from experiments.models.reach import leave_out
from experiments.tasks import Example, Task, task_of
from experiments.training import compile_choice, pack_choice
from experiments.training.budget import eval_steps, steps
from experiments.training.parts import Parts, virtual_tokens

PREFIX_HINT = ", a table of embeddings; adapter.init=projected has linear layers as well"


def prepare(config: RunConfig, group: Group = ALONE) -> Parts:
    """Build the parts of a run, or raise one `ValueError` that says what is wrong."""
    shares = Shares(group, config.train.accumulation)
    values = registry.settings(config.method, config.precision.rounding)
    method = registry.method_class(config.method["name"])
    device = loading.choose_device(config.device)
    loading.check_files(config.model)
    task = task_of(config.task)
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
    trains = method.about.trains
    if trains and train.batch_size > len(splits.train):
        raise BadInput(
            f"train.batch_size={train.batch_size}: allowed are 1 to the number of training "
            f"examples, {len(splits.train)}"
        )
    if trains:
        check_shares(config.train, shares)
    tokenizer = loading.load_tokenizer(config.model)
    encoder = Encoder(tokenizer, train.max_length, chat=config.model.prompt == "chat")
    unrelated = forgetting.read(train.forgetting, tokenizer) if train.forgetting else None
    model = loading.load_model(config.model, config.precision.dtype, host(config.model, device))
    encoder.vocabulary = loading.vocabulary(model)
    about = loading.origin(config.model, model)  # before anything is added to it
    about |= {"name": config.model_label}
    if encoder.chat_sha256 is not None:  # of a tokenizer's files, and of the program that read them
        about |= {"chat_sha256": encoder.chat_sha256}
    model, adapter = _adapted(config, model)
    stream = offload(config.model, model, device)
    encoded = encoder.encode_all(splits.train)
    _check_length(config, max(len(ids) for each in encoded for ids in each.ids), _context(model))
    where = f"model={config.model.name}" + (f" ({about['path']})" if "path" in about else "")
    trial = try_out(where, model, task, encoded, encoder.pad_id)
    leave_out(model, trial.left_out)
    optimizer: Any = _build(config, model, values, stream, shares)
    _settle(config, optimizer, trial)
    asked, demonstrations = _questions(config, task, splits, encoder, optimizer, _context(model))
    own = None
    if train.objective == "metric":
        own = questions(encoder, task, splits.train, train.max_new_tokens)
    every = [*asked.values(), own] if own else list(asked.values())
    longest = max(split.longest for split in every)
    _check_length(config, longest, _context(model))
    check_runs(where, model, encoded, longest, encoder.pad_id)
    lost = own.truncated if own else sum(example.truncated for example in encoded)
    truncated = {"train": lost} | {name: split.truncated for name, split in asked.items()}
    taken = steps(train, optimizer) if trains else 0
    looks = eval_steps(train, taken)
    pad_id = encoder.pad_id
    compiling, compiled = compile_choice.choose(
        config, model, optimizer, task, encoded, pad_id, taken, trial.why.get("rows")
    )
    packing = pack_choice.choose(
        config, model, optimizer, task, encoded, pad_id, compiled is not None, trial.why.get("rows")
    )
    origin = {
        "data": raw.origin | {"sizes": splits.sizes, "examples_sha256": _fingerprint(splits)},
        "model": about,
        **adapter,
        "trial": trial.about(),
        "packing": packing.about(),
        "compile": compiling.about(),
        "device": device.type,
        "stream_version": optimizer.stream_version,  # pyright: ignore[reportAttributeAccessIssue]
    }
    if unrelated:
        origin["forgetting"] = {"sha256": unrelated.about["sha256"]}
    if group.size > 1:
        origin["processes"] = group.size
    parts = Parts(
        device, task, encoder, encoded, asked["dev"], asked["eval"], model, tokenizer, optimizer,
        taken, looks, truncated, demonstrations, origin, own, stream,
        packing.least, shares, compiled, compiling.bucket, unrelated, trial.asking,
    )  # fmt: skip
    calibrate(config, parts, optimizer)
    parts.lines = _first_lines(config, parts, trial)
    if task.any_file:
        parts.lines.insert(0, f"{task.name}: an example is {shortened(answered(splits.train[0]))}")
    return parts


def calibrate(config: RunConfig, parts: Parts, optimizer: Optimizer) -> None:
    """Show a method that asks for it the first training batches of the run, before its first step.

    On resume as well: what a method learns there is a function of model and batches. They are
    padded, never packed: a scan for outliers looks at one example after the other.
    """
    wanted: int = getattr(optimizer, "wants_batches", 0)
    if not wanted:
        return
    assert isinstance(optimizer, ZeroOrderOptimizer)
    size, seed = config.train.batch_size, config.seed
    try:
        optimizer.calibrate([parts.shown(size, seed, step) for step in range(wanted)])
    except ValueError as error:
        raise registry.refusal(config.method["name"], config.method, error) from error
    if optimizer.calibrated is not None and parts.shares.group.rank == 0:
        print(f"{config.method['name']} {optimizer.calibrated['summary']}", file=sys.stderr)


def _settle(config: RunConfig, optimizer: Any, trial: Trial) -> None:
    """Tell a method that asks for it how the model uses the tuned parameters."""
    if not hasattr(optimizer, "settle"):
        return
    try:
        optimizer.settle(trial.usage)
    except ValueError as error:
        raise registry.refusal(config.method["name"], config.method, error) from error


def _first_lines(config: RunConfig, parts: Parts, trial: Trial) -> list[str]:
    """Return what a run says first: what moves, and what is special about the model."""
    optimizer, said = parts.optimizer, trial.lines()
    if parts.compiled is not None:
        trial.usage.no_basis(parts.compiled.without_slots())
        _settle(config, optimizer, trial)
    if optimizer.about.trains:
        moves = str(coordinates(parts.model, optimizer))
        if isinstance(optimizer, ZeroOrderOptimizer):
            moves += f"; {optimizer.summary().costs}"
        rates = [f"{key} {config.method[key]:g}" for key in ("lr", "eps") if key in config.method]
        said = [f"{config.method['name']}: {', '.join(rates)}; {moves}", *said]
    return said


def _adapted(config: RunConfig, model: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
    """Put the run's adapter on the model; return the model and what a result says of it."""
    if config.adapter.name == "none":
        return model, {}
    from experiments.models import adapters  # peft takes seconds to import

    adapted = adapters.attach(config.adapter, model, config.seed, config.train.max_length)
    return adapted, {"adapter": adapters.about(config.adapter, adapted)}


def _build(
    config: RunConfig,
    model: nn.Module,
    values: dict[str, Any],
    stream: StreamedLayers | None,
    shares: Shares,
) -> Optimizer:
    """Construct the method; where the adapter leaves it nothing it can tune, say so."""
    try:
        return registry.build(
            config.method["name"], model, values, config.seed, stream,
            shares.group, shares.accumulation,
        )  # fmt: skip
    except BadInput as error:
        if config.adapter.name == "none":
            raise
        kinds = sorted({kind for p, kind in roles(model).items() if p.requires_grad})
        raise BadInput(
            f"{error} (adapter={config.adapter.name}: its parameters are of kind "
            f"{', '.join(kinds)}{PREFIX_HINT if kinds == ['embedding'] else ''})"
        ) from error


def _context(model: nn.Module) -> int | None:
    """Return the longest sequence a model says it can take, behind its prefix if it has one."""
    longest = loading.context(getattr(model, "config", None))
    return None if longest is None else longest - virtual_tokens(model)


def _questions(
    config: RunConfig,
    task: Task,
    splits: Splits,
    encoder: Encoder,
    optimizer: Optimizer,
    context: int | None,
) -> tuple[dict[str, Questions], dict[str, Any] | None]:
    """Encode dev and evaluation examples, behind demonstrations where the method shows any."""
    train = config.train
    count: int = getattr(optimizer, "demonstrations", 0)
    room = min(train.max_length, context or train.max_length)
    if task.kind == "generation":
        room -= train.max_new_tokens
    asked: dict[str, Questions] = {}
    used: dict[str, Any] = {"requested": count}
    for name, examples in (("dev", splits.dev), ("eval", splits.eval)):
        if count:
            examples, counts = with_demonstrations(
                examples, splits.train, count, encoder, room, config.seed
            )
            used[name] = {
                "min": min(counts), "mean": sum(counts) / len(counts), "max": max(counts),
            }  # fmt: skip
        asked[name] = questions(encoder, task, examples, train.max_new_tokens)
    return asked, used if count else None


def _check_length(config: RunConfig, longest: int, context: int | None) -> None:
    """Refuse sequences the model cannot take before training, not in the middle of it."""
    if context is not None and longest > context:
        raise BadInput(
            f"train.max_length={config.train.max_length}: a sequence has {longest} tokens, "
            f"{config.model_label} allows {context}; set train.max_length to {context} or less"
        )


def _fingerprint(splits: Splits) -> str:
    """Hash all sampled examples, whatever their source: a generator or a hub can change too."""
    examples = (splits.train, splits.dev, splits.eval)
    text = json.dumps([[_content(example) for example in split] for split in examples])
    return hashlib.sha256(text.encode()).hexdigest()


def _content(example: Example) -> dict[str, Any]:
    """Return what a model is shown of an example: all but where it is from."""
    return {name: value for name, value in asdict(example).items() if name != "where"}
