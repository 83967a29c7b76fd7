"""AGZO: activation-guided zeroth-order optimisation (arXiv 2601.17261, Algorithm 2).

One step, one-sided as the paper writes it:

    1. f0 = f(W); inside this forward, at each linear layer, A = SubspaceExtract(H, r, K), drop H
    2. Delta = R A^T for linear layers with R ~ N(0, 1) of shape (d_out, r), unscaled;
       Delta ~ N(0, 1) for every other parameter
    3. f+ = f(W + eps Delta);  g = (f+ - f0) / eps;  W <- W - lr g Delta

The defaults are the paper's; the other values of `basis`, `refresh_every`, `include_padding` and
`estimator` are variants it leaves open. Memory beside inference: the bases of a step and of the one
before, sum of d_in * r float32 over distinct layer inputs each, and the factors R of one step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple
from typing import Any

import torch
from torch import Tensor, nn

from agzo.about import About
from agzo.activations.accumulated import ACCUMULATED, check_parts
from agzo.activations.calls import Calls
from agzo.check import check_choice, check_count, check_count_or_none
from agzo.directions.activation_subspace import ActivationSubspace, takes_bases
from agzo.distributed.pieces import Joint
from agzo.execution.weights import Resident
from agzo.per_piece import WITH_PIECES
from agzo.progress import ENTRY
from agzo.settling import Settling
from agzo.tuned.select import Tuned

BASES = ("power", "exact")


class AGZO(Settling):
    """Perturb each linear layer inside the leading directions of its input.

    A linear layer's weight is one that the model multiplies with an input, x W^T or x W; the first
    step sees which are (`agzo.tuned.roles`).

    Args:
        model, lr, eps, shared: see `ZeroOrderOptimizer`. Tune lr from MeZO's on: ``|Delta|`` is
            about sqrt(d_in / r) smaller, but slope and curvature along it are about MeZO's, since
            both lie in the span of a layer's inputs (`agzo.curvature` measures them).
        rank: r, directions per layer input; a narrower layer has as many as its width.
        power_steps: K, power iterations of basis="power".
        refresh_every: steps between new bases; 1 is the paper; None keeps the first step's.
        estimator: "one_sided" (the paper; 2 forwards) or "two_sided" (the author's prototype: a
            separate capture forward and the two losses; 3 forwards), or "per_piece": each
            micro-batch has an R of its own; with update="spread" it is GRZO in these subspaces.
        include_padding: take bases over padding tokens too, as the author's prototype does.
        basis: "power" (the paper's iteration) or "exact", the leading singular vectors themselves:
            slower, and it waits for the device, see `agzo.activations.subspace.leading`.
        warm_start: begin the power iteration with the bases before instead of Omega; the first
            step's begin with Omega. With power_steps=1 two passes over an input instead of seven.
        accumulated_basis: with accumulation > 1 the bases are of all micro-batches by "gram"
            (d_in^2 float32 an input), or of the "first" one alone, `agzo.activations.accumulated`.

    With low-rank directions and `update` other than "sgd" the moments are those of R, and each new
    basis turns them, see `agzo.moments`.
    """

    about = About(
        needs_data="its directions lie in bases of each batch's activations",
        estimators=WITH_PIECES,
        settings=(
            *("rank", "power_steps", "refresh_every", "include_padding"),
            *("basis", "warm_start", "accumulated_basis"),
        ),
    )

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        eps: float,
        rank: int = 1,
        power_steps: int = 3,
        refresh_every: int | None = 1,
        estimator: str = "one_sided",
        include_padding: bool = False,
        basis: str = "power",
        warm_start: bool = False,
        accumulated_basis: str = "gram",
        **shared: Any,
    ) -> None:
        check_choice("basis", basis, BASES)
        if warm_start and basis == "exact":
            raise ValueError("warm_start=True: allowed is False with basis='exact'")
        check_choice("accumulated_basis", accumulated_basis, ACCUMULATED)
        whole = shared.get("accumulation", 1) > 1 and accumulated_basis != "first"
        check_parts(basis, shared, accumulated_basis if whole else None)
        self.rank = check_count("rank", rank)
        self.basis = basis
        self.power_steps = check_count("power_steps", power_steps, minimum=0)
        self.refresh_every = check_count_or_none("refresh_every", refresh_every, "one-shot")
        self.include_padding = include_padding
        self.warm_start = warm_start
        self.accumulated_basis = accumulated_basis
        self._whole = whole  # bases of several micro-batches
        super().__init__(model, lr=lr, eps=eps, estimator=estimator, **shared)

    def _make_sampler(self) -> ActivationSubspace:
        linear = [e for e in self.tuned if e.inputs is not None or self._is_seen_table(e)]
        unknown = [e for e in self.tuned if e.role == "other" and e.parameter.dim() == 2]
        if not linear and not unknown and not self._settled:
            raise ValueError(
                "no weight of an nn.Linear is tuned, nor another matrix that could be one of a "
                "linear layer's, which alone have a basis; needed is at least one"
            )
        self._subspace = self._new_subspace(
            linear,
            self.rank,
            self.power_steps if self.basis == "power" else None,
            self.refresh_every,
            self.include_padding,
            self.warm_start,
            self.group,
            self.accumulated_basis if self._whole else "first",
            self.model,
        )
        return self._subspace

    def _new_subspace(self, *given: Any) -> ActivationSubspace:
        """Return the sampler; what it is given is `ActivationSubspace`'s."""
        return ActivationSubspace(*given)

    def _is_seen_table(self, tuned: Tuned) -> bool:
        return self.embeddings == "seen" and tuned.role == "embedding"

    def _check(self, closure: Joint) -> None:
        super()._check(closure)
        several = [name for name, each in self._subspace.calls.items() if each.several]
        if several and not isinstance(self._weights, Resident):
            raise ValueError(
                f"{several[0]}: a forward calls it several times, and the evaluations of streamed "
                "layers run side by side, so that its basis is there too late; allowed are "
                "resident weights, or params= without it"
            )

    def _captures(self, step: int) -> bool:
        return takes_bases(step, self.refresh_every)

    def live_state(self) -> dict[str, Any]:
        """Return torch's state dict, to write at once; the bases are in its entry "zo"."""
        state = super().live_state()
        entry = {**state["state"][ENTRY], "bases": dict(self._subspace.bases)}
        calls = {name: astuple(each) for name, each in self._subspace.calls.items()}
        state["state"][ENTRY] = {**entry, "calls": calls} if calls else entry
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned, the bases included."""
        super().load_state_dict(state_dict)
        devices = {each.name: each.device for each in self.tuned}
        # Column-major, as a decomposition leaves them: files keep no layout, and products round by
        # it.
        bases: dict[str, Tensor] = self._zo.pop("bases")
        calls = self._zo.pop("calls", {})
        self._subspace.learnt = {name: Calls(*each) for name, each in calls.items()}
        rows = {name: basis.to(devices[name]).T for name, basis in bases.items()}
        layout = torch.contiguous_format
        self._subspace.bases = {n: each.clone(memory_format=layout).T for n, each in rows.items()}
