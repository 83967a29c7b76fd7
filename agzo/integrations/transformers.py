"""Zeroth-order training inside transformers' Trainer, and in trainers made from it (TRL's SFT).

    trainer = ZOTrainer(model, args, train_dataset=..., method="agzo", method_args={"eps": 1e-3})
    trainer.train()

    class ZOSFTTrainer(ZOTrainerMixin, SFTTrainer): ...

Of Trainer's loop one method is another: `training_step` measures the step by forwards alone and
stages it, and the `optimizer.step()` that Trainer calls behind it moves the weights, with the lr
that the schedule has set. All else is Trainer's: schedule, callbacks, evaluation, checkpoints.

    gradient_accumulation_steps   one direction, measured on all micro-batches
    several processes             one direction, each process on its share (`agzo.distributed`)
    calibration                   on the first training batches, whose order stays as it is
    dropout                       off in the step, whose modules are in eval mode meanwhile
    mixed precision               autocast is as ever; there is no gradient to scale
    logs                          beside the loss: projected_grad of the last step, its root mean
                                  square since the line before, forwards so far
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, set_seed

from agzo.distributed.group import Group
from agzo.distributed.pieces import Joint, Piece
from agzo.distributed.processes import Processes
from agzo.integrations.first_batches import first_batches
from agzo.integrations.limits import (
    check_arguments,
    check_last_step,
    check_method_args,
    check_trainer,
    class_of,
)
from agzo.integrations.modes import in_eval_mode
from agzo.observed import Measured
from agzo.optimizer import ZeroOrderOptimizer
from agzo.tuned.scope import Scope
from agzo.tuned.select import Params, parameter_groups

COUNTED = ("_metrics", "_total_train_tokens")
"""What TRL's `compute_loss` counts on the trainer: of each micro-batch one evaluation counts."""

log = logging.getLogger(__name__)


class ZOTrainerMixin:
    """Put before a Trainer class: its weights then move without a backward pass.

    Args:
        method: "agzo", or a subclass of `agzo.ZeroOrderOptimizer` (`baselines.MeZO`).
        method_args: its arguments beside those of Trainer; `eps` must be among them.
        args, named: those of the Trainer class.

    Raises:
        ValueError: what a step without gradients cannot do; one line names it.
    """

    args: Any
    model: Any
    optimizer: Any
    accelerator: Any
    state: Any
    current_gradient_accumulation_steps: int

    def __init__(
        self,
        *args: Any,
        method: str | type[ZeroOrderOptimizer] = "agzo",
        method_args: Mapping[str, Any] | None = None,
        **named: Any,
    ) -> None:
        self._method = class_of(method)
        self._method_args = dict(method_args or {})
        check_method_args(self._method_args)
        self._begin()
        check_arguments(named.get("args", args[1] if len(args) > 1 else None))
        super().__init__(*args, **named)
        check_trainer(self)
        if self.args.max_grad_norm:
            log.warning("max_grad_norm=%g is set to 0: no gradient", self.args.max_grad_norm)
            self.args.max_grad_norm = 0.0

    def _begin(self) -> None:
        """Forget what a training that has ended left in mid-step or unlogged."""
        self._pieces: list[Piece] = []
        self._rows = 0
        self._squares: Tensor | None = None  # sum over the steps since the last line of the log
        self._summed = 0

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        """Return the method's optimizer, made where there is none yet."""
        self._begin()
        if self.accelerator.scaler is not None:  # of fp16; it would wait for gradients
            self.accelerator.scaler = torch.amp.GradScaler(enabled=False)
        if self.optimizer is None:
            self.optimizer = self._made()
            check_last_step(self, self.optimizer)
            if self.optimizer.must_calibrate:
                self._calibrate(self.optimizer)
            self.optimizer.register_measure_hook(self._measured)
            log.info("%s", self.optimizer.summary())
            if self._has_two_stacks:
                log.warning("an encoder and a decoder: bases are of all tokens, padding among them")
        return self.optimizer

    def _load_from_checkpoint(self, *args: Any, **named: Any) -> None:
        """Load weights as Trainer does, with the optimizer made before.

        A method may add parameters to a model or hold some in float32, so that the file fits; and
        what it learns from batches it learns of the weights that the run began with.
        """
        self.create_optimizer()
        super()._load_from_checkpoint(*args, **named)  # pyright: ignore

    def _made(self) -> ZeroOrderOptimizer:
        given: dict[str, Any] = dict(self._method_args)
        own = self._method.about.adds  # no bias and no norm is among those
        params = given.get("params")
        if self.args.weight_decay and not own:
            if isinstance(params, Scope):
                given["params"] = copy.copy(params)
                given["params"].params = self._decayed(params.params)
            else:
                given["params"] = self._decayed(params)
        group: Group | None = Processes() if self.args.world_size > 1 else None
        return self._method(
            self.model,
            lr=self.args.learning_rate,
            weight_decay=self.args.weight_decay,
            seed=self.args.seed,
            accumulation=self.args.gradient_accumulation_steps,
            group=group,
            **given,
        )

    def _calibrate(self, made: ZeroOrderOptimizer) -> None:
        """Show the method the first batches of the run, each process all of them."""
        shown = []
        for step in first_batches(self, made.wants_batches, set_seed):
            batch = [self._prepare_inputs(each) for each in step]  # pyright: ignore
            pieces = [
                Piece(lambda own=own: self._loss(own, None), self._mask(own)) for own in batch
            ]
            whole = Joint(pieces)
            shown.append((whole, whole.token_mask))
        with self._still(), self._uncounted():
            made.calibrate(shown)
        if made.calibrated is not None:
            log.info("%s", made.calibrated["summary"])

    def _decayed(self, params: Params) -> list[dict[str, Any]]:
        """Return groups in which, as Trainer has it, biases and norms do not decay.

        A group of the caller's that has a weight decay of its own stays as it is.
        """
        decays = set(self.get_decay_parameter_names(self.model))  # pyright: ignore
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        found = []
        for group in parameter_groups(self.model, params):
            if "weight_decay" in group:
                found.append(group)
                continue
            inside = [p for p in group["params"] if names.get(p) in decays]
            outside = [p for p in group["params"] if names.get(p) not in decays]
            found.append({**group, "params": inside})
            found.append({**group, "params": outside, "weight_decay": 0.0})
        return found

    @property
    def method(self) -> ZeroOrderOptimizer:
        """The optimizer itself, without what Accelerate has put around it."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None
    ) -> Tensor:
        """Take a micro-batch in; with the last of a step measure and stage it.

        Returns the loss of the whole step with the last micro-batch, and 0 before, since Trainer
        adds them up.
        """
        self.model.train()  # as Trainer leaves it; what wraps the model is of no use here
        inputs = self._prepare_inputs(inputs)  # pyright: ignore[reportAttributeAccessIssue]
        tensors = (each for each in inputs.values() if isinstance(each, Tensor) and each.dim())
        rows = next(each.shape[0] for each in tensors)
        first = self._rows * self.args.world_size + rows * self.args.process_index
        closure = self._closure(inputs, num_items_in_batch)
        self._pieces.append(Piece(closure, self._mask(inputs), rows=first))
        self._rows += rows
        if not self.accelerator.sync_gradients:
            return torch.zeros((), dtype=torch.float32, device=self.args.device)
        pieces, self._pieces, self._rows = self._pieces, [], 0
        with self._still():
            return self.method.stage(pieces).to(self.args.device)

    def _closure(self, inputs: Mapping[str, Any], items: Any) -> Any:
        """Return the loss of a micro-batch, such that the mean over a step's is the step's."""
        scaled = getattr(self, "loss_is_scaled_for_ga", None)
        if scaled is None:  # by Trainer's own rule
            by_items = self.model_accepts_loss_kwargs and items is not None  # pyright: ignore
            scaled = by_items or self.compute_loss_func is not None  # pyright: ignore
        pieces = self.current_gradient_accumulation_steps if scaled else 1
        counted = False

        def closure() -> Tensor:
            nonlocal counted
            with self._uncounted() if counted else nullcontext():
                loss = self._loss(inputs, items)
            counted = True
            return loss * pieces if pieces > 1 else loss

        return closure

    def _loss(self, inputs: Mapping[str, Any], items: Any) -> Tensor:
        """Return the loss of a micro-batch as the trainer has it."""
        with self.compute_loss_context_manager():  # pyright: ignore[reportAttributeAccessIssue]
            return self.compute_loss(  # pyright: ignore[reportAttributeAccessIssue]
                self.model, dict(inputs), num_items_in_batch=items
            )

    @contextmanager
    def _uncounted(self) -> Iterator[None]:
        """Leave what the trainer counts in `compute_loss` as it is."""
        held = {key: copy.deepcopy(vars(self)[key]) for key in COUNTED if key in vars(self)}
        yield
        vars(self).update(held)

    @contextmanager
    def _still(self) -> Iterator[None]:
        """Put every module in eval mode, and back.

        The outermost one stays where the trainer counts: TRL's tells training batches by it.
        """
        with in_eval_mode(self.model):
            self.model.training = any(name in vars(self) for name in COUNTED)
            yield

    @property
    def _has_two_stacks(self) -> bool:
        return bool(getattr(getattr(self.model, "config", None), "is_encoder_decoder", False))

    def _mask(self, inputs: Mapping[str, Any]) -> Tensor | None:
        """Return which tokens of a micro-batch are real, None where it does not say.

        Of two stacks "attention_mask" is the encoder's; by its shape alone it could be either's.
        """
        mask = None if self._has_two_stacks else inputs.get("attention_mask")
        return mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> None:
        """Have no norm of gradients for the log."""

    def _measured(self, measured: Measured) -> None:
        square = measured.projected_grad.double().square().mean()
        self._squares = square if self._squares is None else self._squares + square
        self._summed += 1

    def log(self, logs: dict[str, Any], *args: Any, **named: Any) -> None:
        """Log as Trainer does, and in a line of training what the steps measured."""
        if "loss" in logs and self._squares is not None:
            logs["projected_grad"] = self.method.projected_grad.mean().item()  # pyright: ignore
            logs["projected_grad_rms"] = (self._squares / self._summed).sqrt().item()
            logs["forwards"] = self.method.forwards
            self._squares, self._summed = None, 0
        super().log(logs, *args, **named)  # pyright: ignore[reportAttributeAccessIssue]


class ZOTrainer(ZOTrainerMixin, Trainer):
    """transformers' Trainer by a zeroth-order method; see `ZOTrainerMixin`."""
