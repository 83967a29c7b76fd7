"""Everything that can fail before the first step: method, device, data, model, lengths.

Cheap checks come first, so that a bad setting stops a run before a large model is loaded.
"""

import hashlib
import json
import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from agzo.distributed.group import ALONE, Group
from agzo.distributed.pieces import Joint, Piece
from agzo.execution.compiled import CompiledLayers
from agzo.execution.stream import StreamedLayers
from agzo.optimizer import ZeroOrderOptimizer
from agzo.progress import Progress
from agzo.tuned.coordinates import coordinates
from agzo.tuned.roles import roles
from experiments.config.schema import BadInput, RunConfig
from experiments.data import Splits, load_splits, protocol
from experiments.data.batches import Batch, collate, packs, sample_batch
from experiments.data.demonstrations import with_demonstrations
from experiments.data.encode import Encoded, Encoder
from experiments.data.shares import Shares, check_shares, pieces
from experiments.evaluation import forgetting
from experiments.evaluation.asking import USUAL, Asking
from experiments.evaluation.evaluate import Questions, questions
from experiments.evaluation.trial import Trial, check_runs, try_out
from experiments.methods import registry
from experiments.models import loading
from experiments.models.loss import loss
from experiments.models.offload import host, offload
from experiments.models.reach import leave_out
from experiments.tasks import Example, Task, get_task
from experiments.training import compile_choice, pack_choice
from experiments.training.objective import Objective, metric_objective

PREFIX_HINT = ", a table of embeddings; adapter.init=projected has linear layers as well"


@dataclass
class Parts:
    """What a run is made of, checked and ready."""

    device: torch.device
    task: Task
    encoder: Encoder
    train: list[Encoded]
    dev: Questions
    eval: Questions
    model: nn.Module
    tokenizer: Any
    optimizer: Any  # one of registry.METHODS
    steps: int
    eval_steps: set[int]
    truncated: dict[str, int]
    demonstrations: dict[str, Any] | None  # of in-context learning: how many were used
    origin: dict[str, Any]  # of data and model, and the device: must be the same on resume
    questions: Questions | None = None  # the training examples, where the metric is the objective
    stream: StreamedLayers | None = None  # of a model whose layers stay on the host
    pack_from: float | None = None  # the share of padding from which on a batch is packed
    shares: Shares = field(default_factory=Shares)  # how a batch is divided
    compiled: CompiledLayers | None = None  # the model's layers, if steps run them compiled
    bucket: int = 1  # the number whose multiples a batch's width is padded to
    unrelated: forgetting.Unrelated | None = None  # text to see what the run does to the rest
    asking: Asking = USUAL  # how rows are put to the model
    lines: list[str] = field(default_factory=list)  # what the run says first

    def batch(self, size: int, seed: int, step: int, pack: bool = True) -> Batch:
        """Return the training batch of a step of the run with this seed; pack=False pads it."""
        chosen = [self.train[i] for i in sample_batch(len(self.train), size, seed, step)]
        least = self.pack_from if pack else None
        return collate(
            chosen, self.task, self.encoder.pad_id, self.device,
            pack_from=least, multiple=self.bucket, one_length=not self.asking.padded,
        )  # fmt: skip

    def objective(self, size: int, seed: int, step: int) -> Objective:
        """Return what a step of the run with this seed minimises."""
        if self.questions is None:
            return self.task_loss(size, seed, step)
        chosen = sample_batch(len(self.train), size, seed, step)
        closure, mask = metric_objective(
            self.model, self.encoder, self.task, self.questions, chosen, self.device,
            self.pack_from, self.bucket, self.asking,
        )  # fmt: skip
        return Objective(closure, self._seen(mask))

    def task_loss(self, size: int, seed: int, step: int, pack: bool = True) -> Objective:
        """Return the task's loss on the batch of a step, whatever the objective: one forward."""
        batch = self.batch(size, seed, step, pack)
        return Objective(lambda: loss(self.model, batch), self._seen(batch.token_mask))

    def take(self, optimizer: Any, size: int, seed: int, step: int) -> Tensor:
        """Let a method take a step of the run with this seed; return its loss."""
        with self.compiled or nullcontext():
            if self.shares.count == 1:
                closure, mask = self.objective(size, seed, step)
                return optimizer.step(closure, token_mask=mask)
            return optimizer.step(self._cut(size, seed, step, self.shares.mine(size), pack=True))

    def shown(self, size: int, seed: int, step: int) -> Objective:
        """Return the task's loss on the whole batch of a step, padded: what `study` is shown.

        Each process looks at all of it, piece after piece, so that all find the same.
        """
        if self.shares.count == 1:
            return self.task_loss(size, seed, step, pack=False)
        whole = self._cut(size, seed, step, self.shares.ranges(size), pack=False)
        return Objective(Joint(whole), whole[0].token_mask)

    def _cut(self, size: int, seed: int, step: int, ranges: list[range], pack: bool) -> list[Piece]:
        chosen = [self.train[i] for i in sample_batch(len(self.train), size, seed, step)]
        batch = collate(
            chosen, self.task, self.encoder.pad_id,
            multiple=self.bucket, one_length=not self.asking.padded,
        )  # fmt: skip
        pack = pack and packs(batch, self.pack_from)
        return pieces(partial(loss, self.model), batch, ranges, pack, self.device, self._seen)

    def _seen(self, mask: Tensor | None) -> Tensor | None:
        """Return the mask of real tokens, None where tuned layers see no padding.

        They see virtual tokens alone, or each length of row by itself.
        """
        return mask if self.asking.padded and not virtual_tokens(self.model) else None


def prepare(config: RunConfig, group: Group = ALONE) -> Parts:
    """Build the parts of a run, or raise one `ValueError` that says what is wrong."""
    shares = Shares(group, config.train.accumulation)
    values = registry.settings(config.method, config.precision.rounding)
    method = registry.method_class(config.method["name"])
    device = loading.choose_device(config.device)
    loading.check_files(config.model)
    task = get_task(config.task.name)
    if task.hub is not None and config.task.revision is not None:
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
    if trains:
        check_shares(config, shares)
    tokenizer = loading.load_tokenizer(config.model)
    encoder = Encoder(tokenizer, train.max_length, chat=config.model.prompt == "chat")
    unrelated = forgetting.read(train.forgetting, tokenizer) if train.forgetting else None
    model = loading.load_model(config.model, config.precision.dtype, host(config, device))
    encoder.vocabulary = loading.vocabulary(model)
    about = loading.origin(config.model, model)  # before anything is added to it
    about |= {"name": config.model_label}
    if encoder.chat_sha256 is not None:  # of a tokenizer's files, and of the program that read them
        about |= {"chat_sha256": encoder.chat_sha256}
    model, adapter = _adapted(config, model)
    stream = offload(config, model, device)
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
    taken = steps(config, optimizer) if trains else 0
    looks = eval_steps(config, taken)
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
    if group.size > 1:
        origin["processes"] = group.size
    parts = Parts(
        device, task, encoder, encoded, asked["dev"], asked["eval"], model, tokenizer, optimizer,
        taken, looks, truncated, demonstrations, origin, own, stream,
        packing.least, shares, compiled, compiling.bucket, unrelated, trial.asking,
    )  # fmt: skip
    study(config, parts, optimizer)
    parts.lines = _first_lines(config, parts, trial)
    return parts


def study(config: RunConfig, parts: Parts, optimizer: Optimizer) -> None:
    """Show a method that asks for it the first training batches of the run, before its first step.

    On resume as well: what a method learns there is a function of model and batches. They are
    padded, never packed: a scan for outliers looks at one example after the other.
    """
    wanted: int = getattr(optimizer, "studies", 0)
    if not wanted:
        return
    assert isinstance(optimizer, ZeroOrderOptimizer)
    size, seed = config.train.batch_size, config.seed
    try:
        optimizer.study([parts.shown(size, seed, step) for step in range(wanted)])
    except ValueError as error:
        raise registry.refusal(config.method["name"], config.method, error) from error
    if optimizer.studied is not None and parts.shares.group.rank == 0:
        print(f"{config.method['name']} {optimizer.studied['summary']}", file=sys.stderr)


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
    if getattr(optimizer, "trains", True):
        said = [f"{config.method['name']}: {coordinates(parts.model, optimizer)}", *said]
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
        return registry.build(config.method["name"], model, values, config.seed, stream, shares)
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


def virtual_tokens(model: nn.Module) -> int:
    """Return how many tokens a prefix puts in front of every sequence, 0 without one."""
    return getattr(getattr(model, "active_peft_config", None), "num_virtual_tokens", 0)


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


def steps(config: RunConfig, optimizer: Optimizer) -> int:
    """Return the steps of a run: those asked for, or what its forward passes pay for."""
    train = config.train
    if train.steps is not None:
        return train.steps
    assert train.forwards is not None
    assert isinstance(optimizer, Progress)
    affordable = optimizer.steps_within(train.forwards)
    if affordable == 0:
        least = optimizer.forwards_once + optimizer.forwards_of_step(0)
        raise BadInput(
            f"train.forwards={train.forwards}: allowed are {least} or more, what one step of "
            f"{config.method['name']} takes"
        )
    return affordable


def forwards(optimizer: Optimizer, steps: int) -> int:
    """Return the forward passes that so many steps take."""
    assert isinstance(optimizer, Progress)
    return optimizer.forwards_once + sum(map(optimizer.forwards_of_step, range(steps)))


def eval_steps(config: RunConfig, steps: int) -> set[int]:
    """Return the steps after which dev is evaluated; the last one always is."""
    train = config.train
    start = {0} if train.eval_at_start or steps == 0 else set()
    if train.evals is not None:
        return start | {-(-steps * i // train.evals) for i in range(1, train.evals + 1)}
    assert train.eval_every is not None
    return start | {steps} | set(range(train.eval_every, steps, train.eval_every))
