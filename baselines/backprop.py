"""First-order baselines: torch's SGD and AdamW behind the zeroth-order interface.

A step is one forward and one backward; a backward counts as two forwards. Memory: activations,
gradients, and for AdamW two moments of every tuned weight.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from agzo.check import check_number
from agzo.perturb import Closure
from agzo.progress import Progress
from agzo.select import Params, Tuned, select


class _Backprop(Progress):
    """What SGD and AdamW share: the closure interface and the counting."""

    trains: ClassVar[bool] = True
    needs_gradient: ClassVar[bool] = True
    forwards_per_step: ClassVar[int] = 3
    stream_version: ClassVar[str] = ""
    rounding: ClassVar[str] = "nearest"
    tuned: list[Tuned]
    projected_grad: Tensor | None = None

    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, closure: Closure, token_mask: Tensor | None = None
    ) -> Tensor:
        """Back-propagate the closure's loss, move, and return the loss (0-dim, detached).

        From the first loss or gradient that is not finite on, gradients count as zero; momentum
        and weight decay go on, so a caller goes back to weights saved before.
        """
        zo = self._zo
        parameters = [each.parameter for each in self.tuned]
        with torch.enable_grad():
            loss = closure()
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        used = [gradient for gradient in gradients if gradient is not None]
        zo["alive"] &= torch.isfinite(loss.detach())
        zo["alive"] &= torch.isfinite(torch.nn.utils.get_total_norm(used))
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient.masked_fill_(~zo["alive"], 0.0)
        super().step()
        self.zero_grad(set_to_none=True)
        zo["step"] += 1
        zo["forwards"] += self.forwards_per_step
        return loss.detach()

    def forwards_of_step(self, step: int) -> int:
        """Count one forward and one backward."""
        return self.forwards_per_step


class SGD(_Backprop, torch.optim.SGD):  # pyright: ignore[reportIncompatibleMethodOverride]
    """torch.optim.SGD on the gradient by backpropagation ("FO" in the AGZO paper's tables)."""

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        embeddings: str = "tuned",
        params: Params = None,
    ) -> None:
        check_number("lr", lr, minimum=0.0)
        check_number("momentum", momentum, minimum=0.0)
        check_number("weight_decay", weight_decay, minimum=0.0)
        self.tuned, groups = select(model, params, embeddings)
        self.embeddings = embeddings
        super().__init__(groups, lr=lr, momentum=momentum, weight_decay=weight_decay)
        self._begin_progress(self.tuned[0].parameter.device)


class AdamW(_Backprop, torch.optim.AdamW):  # pyright: ignore[reportIncompatibleMethodOverride]
    """torch.optim.AdamW on the gradient by backpropagation; adam_eps is torch's eps."""

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        adam_eps: float = 1e-8,
        weight_decay: float = 0.0,
        embeddings: str = "tuned",
        params: Params = None,
    ) -> None:
        check_number("lr", lr, minimum=0.0)
        for beta in betas:
            if not 0.0 <= beta < 1.0:
                raise ValueError(f"betas={betas}: allowed are two numbers >= 0 and < 1")
        check_number("adam_eps", adam_eps, above=0.0)
        check_number("weight_decay", weight_decay, minimum=0.0)
        self.tuned, groups = select(model, params, embeddings)
        self.embeddings = embeddings
        super().__init__(groups, lr=lr, betas=betas, eps=adam_eps, weight_decay=weight_decay)
        self._begin_progress(self.tuned[0].parameter.device)
