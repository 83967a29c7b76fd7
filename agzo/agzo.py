"""AGZO: activation-guided zeroth-order optimisation (arXiv 2601.17261, Algorithm 2).

One step, one-sided as the paper writes it:

    1. f0 = f(W); inside this forward, at each linear layer, A = SubspaceExtract(H, r, K), drop H
    2. Delta = R A^T for linear layers with R ~ N(0, 1) of shape (d_out, r), unscaled;
       Delta ~ N(0, 1) for every other parameter
    3. f+ = f(W + eps Delta);  g = (f+ - f0) / eps;  W <- W - lr g Delta

Memory beside inference: the bases, sum of d_in * r float32 over distinct layer inputs, and the
factors R of one step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from agzo.check import check_count
from agzo.optimizer import ZeroOrderOptimizer
from agzo.sampler import ActivationSubspace


class AGZO(ZeroOrderOptimizer):
    """Perturb each linear layer inside the leading directions of its input.

    Args:
        model, lr, eps, shared: see `ZeroOrderOptimizer`. ``|Delta|`` is about sqrt(d_in / r)
            smaller than MeZO's, so lr and eps must be tuned apart from MeZO's.
        rank: r, directions per layer input; above a layer's width is an error.
        power_steps: K, power iterations.
        refresh_every: steps between new bases; 1 is the paper.
        estimator: "one_sided" (the paper; 2 forwards) or "two_sided" (the author's prototype: a
            separate capture forward and the two losses; 3 forwards).
        include_padding: take bases over padding tokens too, as the author's prototype does.
    """

    settings = (
        *ZeroOrderOptimizer.settings,
        "rank",
        "power_steps",
        "refresh_every",
        "include_padding",
    )

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        eps: float,
        rank: int = 1,
        power_steps: int = 3,
        refresh_every: int = 1,
        estimator: str = "one_sided",
        include_padding: bool = False,
        **shared: Any,
    ) -> None:
        check_count("rank", rank)
        check_count("power_steps", power_steps, minimum=0)
        check_count("refresh_every", refresh_every)
        self.rank = rank
        self.power_steps = power_steps
        self.refresh_every = refresh_every
        self.include_padding = include_padding
        super().__init__(model, lr=lr, eps=eps, estimator=estimator, **shared)

    def _sampler(self) -> ActivationSubspace:
        linear = [each for each in self.tuned if each.role == "linear"]
        self._subspace = ActivationSubspace(
            linear, self.rank, self.power_steps, self.refresh_every, self.include_padding
        )
        return self._subspace

    def _captures(self, step: int) -> bool:
        return step % self.refresh_every == 0

    def state_dict(self) -> dict[str, Any]:
        """Return torch's state dict with the current bases under ``["state"]["zo"]["bases"]``."""
        state = super().state_dict()
        state["state"]["zo"] = {**state["state"]["zo"], "bases": dict(self._subspace.bases)}
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned, the bases of a lagged refresh included."""
        super().load_state_dict(state_dict)
        device = self.tuned[0].parameter.device
        bases = self._zo.pop("bases")
        self._subspace.bases = {name: basis.to(device) for name, basis in bases.items()}
