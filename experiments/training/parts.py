"""The parts of a run that are ready for its first step."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from agzo.distributed.pieces import Joint, Piece
from agzo.distributed.processes import checksum
from agzo.execution.compiled import CompiledLayers
from agzo.execution.stream import StreamedLayers
from experiments.data.batches import Batch, collate, packs, sample_batch
from experiments.data.encode import Encoded, Encoder
from experiments.data.shares import Shares, pieces
from experiments.evaluation import forgetting
from experiments.evaluation.asking import USUAL, Asking
from experiments.evaluation.evaluate import Questions
from experiments.models.loss import loss
from experiments.tasks import Task
from experiments.training.objective import Objective, metric_objective


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
        """Return the task's loss on the whole batch of a step, padded: what `calibrate` is shown.

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

    def check_replicas(self, at: int) -> None:
        """Raise `Drifted` where processes that took the same steps hold other weights."""
        if self.shares.group.size == 1:
            return
        if self.stream is not None:
            self.stream.flush()
        weights = checksum(each.parameter for each in self.optimizer.tuned)
        gradient = self.optimizer.projected_grad
        read = weights if gradient is None else torch.cat([weights, gradient.double().cpu()])
        what = f"the sum of all weights, or projected_grad, at step {at}"
        self.shares.group.check_same(read, what)


def virtual_tokens(model: nn.Module) -> int:
    """Return how many tokens a prefix puts in front of every sequence, 0 without one."""
    return getattr(getattr(model, "active_peft_config", None), "num_virtual_tokens", 0)
