"""First-order baselines: torch's SGD and AdamW behind the zeroth-order interface.

A step is one forward and one backward; a backward counts as two forwards. Memory: activations,
gradients, and for AdamW two moments of every tuned weight.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from agzo.optimizer import check_number
from agzo.perturb import Closure
from agzo.progress import Progress
from agzo.select import Params, Tuned, select


class _Backprop(Progress):
    """What SGD and AdamW share: the closure interface and the counting."""

    trains: ClassVar[bool] = True
    forwards_per_step: ClassVar[int] = 3
    stream_version: ClassVar[str] = ""
    rounding: ClassVar[str] = "nearest"
    tuned: list[Tuned]
    projected_grad: Tensor | None = None

    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, closure: Closure, token_mask: Tensor | None = None
    ) -> Tensor:
        """Back-propagate the closure's loss, move, and return the loss (0-dim, detached).

        From the first loss that is not finite on, gradients count as zero.
        """
        zo = self._zo
        self.zero_grad(set_to_none=True)
        with torch.enable_grad():
            loss = closure()
            loss.backward()
        zo["alive"] &= torch.isfinite(loss.detach())
        for each in self.tuned:
            gradient = each.parameter.grad
            if gradient is not None:
                gradient.copy_(torch.where(zo["alive"], gradient, 0.0))
        super().step()
        self.zero_grad(set_to_none=True)
        zo["step"] += 1
        zo["forwards"] += self.forwards_per_step
        return loss.detach()


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
        check_number("adam_eps", adam_eps, above=0.0)
        check_number("weight_decay", weight_decay, minimum=0.0)
        self.tuned, groups = select(model, params, embeddings)
        self.embeddings = embeddings
        super().__init__(groups, lr=lr, betas=betas, eps=adam_eps, weight_decay=weight_decay)
        self._begin_progress(self.tuned[0].parameter.device)
