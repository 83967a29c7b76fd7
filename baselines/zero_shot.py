"""The model as it is: a strategy that takes no step, so that the runner needs no special case."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from agzo.about import About
from agzo.torch_calls.surroundings import Closure
from agzo.tuned.select import Tuned


class ZeroShot(torch.optim.Optimizer):
    """Evaluates only; `step` is an error."""

    about: ClassVar[About] = About(trains=False)
    forwards: ClassVar[int] = 0
    forwards_per_step: ClassVar[int] = 0
    stream_version: ClassVar[str] = ""
    rounding: ClassVar[str] = "nearest"
    embeddings: ClassVar[str] = "frozen"
    projected_grad: Tensor | None = None

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), {"lr": 0.0})
        self.tuned: list[Tuned] = []

    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, closure: Closure, token_mask: Tensor | None = None
    ) -> Tensor:
        """Raise: nothing is trained."""
        raise RuntimeError("method=zero_shot takes no training step")
