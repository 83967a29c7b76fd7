"""Zeroth-order training in Lightning's automatic optimization.

    class ZOModule(ZOModuleMixin, MyModule): ...    # its configure_optimizers returns AGZO(...)

Lightning's closure runs `training_step` and `backward`. Here `training_step`, whichever class it is
from, records no gradients, `backward` does nothing, and the method calls the closure at the weights
it perturbs. All else is Lightning's: schedulers, logs, checkpoints, resume, autocast (bf16-mixed).

Imports nothing but the library, so `pytorch_lightning` will do as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from agzo.integrations.modes import in_eval_mode
from agzo.optimizer import ZeroOrderOptimizer

NONE = object()
"""In place of a batch: none was announced."""


class ZOModuleMixin:
    """Put before a LightningModule class: its weights then move without a backward pass.

    The module is in eval mode during a step. What `training_step` logs is of the first evaluation.
    """

    trainer: Any
    training_step: Any
    _batch: Any = NONE
    _logs = True

    def token_mask(self, batch: Any) -> Tensor | None:
        """Return which tokens of a batch are real, (batch, sequence): its "attention_mask"."""
        mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
        return None if mask is None else mask.bool()

    def on_train_batch_start(self, batch: Any, *args: Any) -> Any:
        """Keep the batch for its mask."""
        self._batch = batch
        return super().on_train_batch_start(batch, *args)  # pyright: ignore

    def log(self, *args: Any, **named: Any) -> None:
        """Log as Lightning does, in the first evaluation of a step."""
        if self._logs:
            super().log(*args, **named)  # pyright: ignore

    def backward(self, *args: Any, **named: Any) -> None:
        """Do nothing: there is no gradient."""

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        """Take one zeroth-order step, with the module in eval mode.

        Raises:
            ValueError: gradient accumulation, a gradient scaler, an optimizer that waits for
                gradients, or a hook that hides the one here.
        """
        if self.trainer.precision == "16-mixed":
            raise ValueError(
                "precision='16-mixed': its gradient scaler asks for gradients; allowed are "
                "'bf16-mixed', 'bf16-true', '16-true' and '32-true'"
            )
        if (batches := self.trainer.accumulate_grad_batches) > 1:
            raise ValueError(
                f"accumulate_grad_batches={batches}: a step is measured on one batch; allowed is "
                "1, or automatic_optimization=False with micro-batches in agzo.distributed.Piece"
            )
        if not isinstance(own := optimizer.optimizer, ZeroOrderOptimizer):
            raise ValueError(
                f"configure_optimizers: it returns {type(own).__name__}, which needs gradients, "
                "and ZOModuleMixin records none; allowed is a subclass of agzo.ZeroOrderOptimizer"
            )
        if self._batch is NONE:
            raise ValueError(
                f"on_train_batch_start: that of {type(self).__name__} hides ZOModuleMixin's, which "
                "takes the batch's token mask; allowed is one that calls "
                "super().on_train_batch_start(batch, batch_idx)"
            )
        batch, self._batch = self._batch, NONE
        with in_eval_mode(cast(nn.Module, self)), self._evaluating():
            optimizer.step(closure=optimizer_closure, token_mask=self.token_mask(batch))

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Have `training_step` record no gradients, and log in its first call alone."""
        own, before = self.training_step, vars(self).get("training_step")

        @torch.no_grad()
        def evaluate(*args: Any, **named: Any) -> Any:
            try:
                return own(*args, **named)
            finally:
                self._logs = False

        self.training_step = evaluate
        try:
            yield
        finally:
            del self.training_step  # the class's is left
            if before is not None:
                self.training_step = before
            self._logs = True
