"""Zeroth-order training in Lightning's automatic optimization.

    class ZOModule(ZOModuleMixin, MyModule): ...    # its configure_optimizers returns AGZO(...)

Lightning's closure runs `training_step` and `backward`. Here `training_step` records no gradients,
`backward` does nothing, and the method calls the closure at the weights it perturbs. All else is
Lightning's: schedulers, logs, checkpoints and resume, autocast ("bf16-mixed").

Imports nothing but the library, so `pytorch_lightning` will do as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from agzo.integrations.modes import in_eval_mode
from agzo.optimizer import ZeroOrderOptimizer


class ZOModuleMixin:
    """Put before a LightningModule class: its weights then move without a backward pass.

    The module is in eval mode during a step. What `training_step` logs is of the first evaluation.
    """

    trainer: Any
    _batch: Any = None
    _logs = True

    def token_mask(self, batch: Any) -> Tensor | None:
        """Return which tokens of a batch are real, (batch, sequence): its "attention_mask"."""
        mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
        return None if mask is None else mask.bool()

    def on_train_batch_start(self, batch: Any, *args: Any) -> Any:
        """Keep the batch for its mask, and log again."""
        self._batch, self._logs = batch, True
        return super().on_train_batch_start(batch, *args)  # pyright: ignore

    def training_step(self, *args: Any, **named: Any) -> Any:
        """Evaluate the loss as the module does, without gradients."""
        with torch.no_grad():
            try:
                return super().training_step(*args, **named)  # pyright: ignore
            finally:
                self._logs = False

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
            ValueError: gradient accumulation, a gradient scaler, or an optimizer that waits for
                gradients.
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
        try:
            with in_eval_mode(cast(nn.Module, self)):
                optimizer.step(closure=optimizer_closure, token_mask=self.token_mask(self._batch))
        finally:
            self._logs = True
