"""First-order baselines: torch's SGD and AdamW behind the zeroth-order interface.

A step is one forward and one backward; a backward counts as two forwards. Memory: activations,
gradients (twice those with micro-batches), and for AdamW two moments of every tuned weight. Of
several processes each sums its gradients with those of the others: 4 bytes a weight in float32.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from agzo.about import About
from agzo.check import check_choice, check_count, check_number, check_rates
from agzo.distributed.group import UNSAID, Group
from agzo.distributed.pieces import Batch, Joint, joint
from agzo.progress import Progress
from agzo.torch_calls.surroundings import Surroundings
from agzo.tuned.select import Params, Tuned, select

EMBEDDINGS = ("tuned", "frozen")  # a gradient has the rows seen alone in any case


class _Backprop(Progress):
    """What SGD and AdamW share: the closure interface and the counting."""

    about: ClassVar[About] = About(needs_gradient=True)
    forwards_per_step: ClassVar[int] = 3
    stream_version: ClassVar[str] = ""
    rounding: ClassVar[str] = "nearest"
    tuned: list[Tuned]
    projected_grad: Tensor | None = None
    group: Group
    accumulation: int

    def _select(
        self,
        model: nn.Module,
        params: Params,
        embeddings: str,
        group: Group | None,
        accumulation: int,
    ) -> list[dict[str, Any]]:
        """Take in what both methods are told, and return torch's parameter groups."""
        check_choice("embeddings", embeddings, EMBEDDINGS)
        self.tuned, groups = select(model, params, embeddings)
        self.embeddings = embeddings
        self.group = UNSAID if group is None else group
        self.accumulation = check_count("accumulation", accumulation)
        return groups

    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, closure: Batch | None = None, token_mask: Tensor | None = None
    ) -> Tensor:
        """Back-propagate the loss of a batch, move, and return the loss (0-dim, detached).

        From the first loss or gradient that is not finite on, gradients count as zero; momentum
        and weight decay go on, so a caller goes back to weights saved before. When a caller is told
        says `Progress.refuse_not_finite`.
        """
        self.refuse_not_finite()
        self.around = Surroundings()
        with self.around.left():
            return self._step(joint(closure, token_mask, self.accumulation, self.group))

    def _step(self, batch: Joint) -> Tensor:
        zo = self._zo
        parameters = [p for p in (each.parameter for each in self.tuned) if p.requires_grad]
        loss, gradients = self._shared(batch, *self._gradients(batch, parameters))
        used = [gradient for gradient in gradients if gradient is not None]
        zo["alive"] &= torch.isfinite(loss.detach())
        zo["alive"] &= torch.isfinite(torch.nn.utils.get_total_norm(used))
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient.masked_fill_(~zo["alive"], 0.0)
        with torch.device("cpu"):  # torch makes its counters of steps on the default device
            super().step()
        self.zero_grad(set_to_none=True)
        zo["step"] += 1
        zo["forwards"] += self.forwards_per_step
        self._look_later()
        return loss

    def _gradients(
        self, batch: Joint, parameters: list[nn.Parameter]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Return the loss of this process's pieces and its gradients, one piece after another."""
        total: Tensor | None = None
        sums: list[Tensor | None] = [None] * len(parameters)
        for index, piece in enumerate(batch.pieces):
            with torch.enable_grad(), batch.entered(index):
                with self.around.entered():
                    loss = piece.closure()
                found = torch.autograd.grad(loss, parameters, allow_unused=True)
            if len(batch.pieces) == 1:
                return loss.detach(), list(found)
            share = piece.weight / batch.weight
            loss = loss.detach() * share
            total = loss if total is None else total + loss
            for at, gradient in enumerate(found):
                if gradient is not None:
                    own, before = gradient.mul_(share), sums[at]
                    sums[at] = own if before is None else before.add_(own)
        assert total is not None
        return total, sums

    def _shared(
        self, batch: Joint, loss: Tensor, gradients: list[Tensor | None]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Return loss and gradients of all pieces; low precision is summed in float32."""
        if self.group.size == 1:
            return loss, gradients
        share = self.group.share(batch.weight)
        everyone: list[Tensor | None] = []
        for gradient in gradients:
            if gradient is None:
                everyone.append(None)
                continue
            exact = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
            everyone.append(self.group.sum(exact * share).to(gradient.dtype))
        return self.group.mean(loss.reshape(1), batch.weight)[0].to(loss.dtype), everyone

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
        group: Group | None = None,
        accumulation: int = 1,
    ) -> None:
        momentum = check_number("momentum", momentum, minimum=0.0)
        rates = check_rates(lr=lr, weight_decay=weight_decay)
        groups = self._select(model, params, embeddings, group, accumulation)
        super().__init__(groups, momentum=momentum, **rates)
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
        group: Group | None = None,
        accumulation: int = 1,
    ) -> None:
        for beta in betas:
            if not 0.0 <= beta < 1.0:
                raise ValueError(f"betas={betas}: allowed are two numbers >= 0 and < 1")
        adam_eps = check_number("adam_eps", adam_eps, above=0.0)
        rates = check_rates(lr=lr, weight_decay=weight_decay)
        groups = self._select(model, params, embeddings, group, accumulation)
        super().__init__(groups, betas=betas, eps=adam_eps, **rates)
        self._begin_progress(self.tuned[0].parameter.device)
