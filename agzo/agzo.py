"""AGZO: activation-guided zeroth-order optimisation (arXiv 2601.17261, Algorithm 2).

One step, one-sided as the paper writes it:

    1. f0 = f(W); inside this forward, at each linear layer, A = SubspaceExtract(H, r, K), drop H
    2. Delta = R A^T for linear layers with R ~ N(0, 1) of shape (d_out, r), unscaled;
       Delta ~ N(0, 1) for every other parameter
    3. f+ = f(W + eps Delta);  g = (f+ - f0) / eps;  W <- W - lr g Delta

The defaults are the paper's; the other values of `basis`, `refresh_every`, `lagged`, `scale`,
`isotropic`, `include_padding` and `estimator` are variants it leaves open. Memory beside
inference: the bases, sum of d_in * r float32 over distinct layer inputs (twice that if lagged), and
the factors R of one step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from agzo.accumulated import ACCUMULATED
from agzo.check import check_choice, check_count, check_number
from agzo.optimizer import ZeroOrderOptimizer
from agzo.refresh import Refresh
from agzo.sampler import ActivationSubspace
from agzo.select import Tuned

BASES = ("power", "exact")
SCALES = ("paper", "mezo")


class AGZO(ZeroOrderOptimizer):
    """Perturb each linear layer inside the leading directions of its input.

    Args:
        model, lr, eps, shared: see `ZeroOrderOptimizer`. ``|Delta|`` is about sqrt(d_in / r)
            smaller than MeZO's, so lr and eps must be tuned apart from MeZO's.
        rank: r, directions per layer input; above a layer's width is an error.
        power_steps: K, power iterations of basis="power".
        refresh_every: steps between new bases; 1 is the paper; None keeps the first step's.
        estimator: "one_sided" (the paper; 2 forwards) or "two_sided" (the author's prototype: a
            separate capture forward and the two losses; 3 forwards, 2 if lagged).
        include_padding: take bases over padding tokens too, as the author's prototype does.
        basis: "power" (the paper's iteration) or "exact", the leading singular vectors themselves:
            slower, and it waits for the device, see `agzo.subspace.leading`.
        lagged: perturb inside bases of an earlier batch, never (but for the first) of a step's own,
            see `agzo.refresh`. Two-sided the bases for the next step are then taken at W + eps
            Delta and cost no forward.
        scale: "paper" or "mezo": R A^T times sqrt(d_in / r), which makes E|Delta|^2 that of dense
            noise. For linear layers this is lr times d_in / r and eps times its root.
        basis_tokens: take each basis from so many tokens, drawn at random; None (the paper): all.
        warm_start: begin the power iteration with the bases before instead of Omega; the first
            step's begin with Omega. With power_steps=1 two passes over an input instead of seven.
        isotropic: share of dense noise in E|Delta|^2, from 0 (the paper) to 1, which with
            scale="mezo" is MeZO; see `agzo.sampler.ActivationSubspace`.
        accumulated_basis: with accumulation > 1 the bases are of all micro-batches by "gram" (one
            pass, d_in^2 float32 an input) or "forwards" (power_steps more forwards), or of the
            "first" one alone, see `agzo.accumulated`.

    With low-rank directions and `update` other than "sgd" the moments are those of R, and each new
    basis turns them, see `agzo.moments`.
    """

    needs_data = "its directions lie in bases of each batch's activations"
    settings = (
        *ZeroOrderOptimizer.settings,
        *("rank", "power_steps", "refresh_every", "include_padding"),
        *("basis", "lagged", "scale", "isotropic", "basis_tokens", "warm_start"),
        "accumulated_basis",
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
        lagged: bool = False,
        scale: str = "paper",
        isotropic: float = 0.0,
        basis_tokens: int | None = None,
        warm_start: bool = False,
        accumulated_basis: str = "gram",
        **shared: Any,
    ) -> None:
        check_count("rank", rank)
        check_choice("basis", basis, BASES)
        check_count("power_steps", power_steps, minimum=0)
        check_count("refresh_every", refresh_every, none="one-shot")
        if lagged and refresh_every is None:
            raise ValueError(
                "lagged=True: allowed is False with one-shot bases (refresh_every=None), the first"
            )
        check_choice("scale", scale, SCALES)
        check_number("isotropic", isotropic, minimum=0.0, maximum=1.0)
        check_count("basis_tokens", basis_tokens, minimum=rank, none="all tokens")
        if warm_start and basis == "exact":
            raise ValueError("warm_start=True: allowed is False with basis='exact'")
        check_choice("accumulated_basis", accumulated_basis, ACCUMULATED)
        whole = shared.get("accumulation", 1) > 1 and accumulated_basis != "first"
        _check_shared(basis, basis_tokens, shared, accumulated_basis if whole else None)
        self.rank = rank
        self.basis = basis
        self.power_steps = power_steps
        self.refresh_every = refresh_every
        self.lagged = lagged
        self.include_padding = include_padding
        self.scale = scale
        self.isotropic = isotropic
        self.basis_tokens = basis_tokens
        self.warm_start = warm_start
        self.accumulated_basis = accumulated_basis
        self._whole = whole  # bases of several micro-batches
        self._refresh = Refresh(refresh_every, lagged)
        super().__init__(model, lr=lr, eps=eps, estimator=estimator, **shared)

    def _sampler(self) -> ActivationSubspace:
        self._subspace = ActivationSubspace(
            [each for each in self.tuned if each.role == "linear" or self._is_seen_table(each)],
            self.rank,
            self.power_steps if self.basis == "power" else None,
            self._refresh,
            self.include_padding,
            self.scale,
            self.isotropic,
            self.basis_tokens,
            self.warm_start,
            self.group,
            self.accumulated_basis if self._whole else "first",
        )
        return self._subspace

    def _is_seen_table(self, tuned: Tuned) -> bool:
        return self.embeddings == "seen" and tuned.role == "embedding"

    def _captures(self, step: int) -> bool:
        return self._refresh.own(step)

    def _refreshes(self, step: int) -> bool:
        return self._refresh.new(step)

    def forwards_of_step(self, step: int) -> int:
        """Count the forward passes of step number `step`."""
        further = self._whole and self.accumulated_basis == "forwards" and self._refresh.takes(step)
        return super().forwards_of_step(step) + (self.power_steps if further else 0)

    def state_dict(self) -> dict[str, Any]:
        """Return torch's state dict; the bases are under ``["state"]["zo"]``.

        Those in use are "bases"; those taken for a later step are "upcoming".
        """
        state = super().state_dict()
        look = self._subspace
        upcoming = None if look.upcoming is None else (look.upcoming[0], dict(look.upcoming[1]))
        bases = {"bases": dict(look.bases), "upcoming": upcoming}
        state["state"]["zo"] = {**state["state"]["zo"], **bases}
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned, the bases included."""
        super().load_state_dict(state_dict)
        devices = {each.name: each.device for each in self.tuned}
        bases, upcoming = self._zo.pop("bases"), self._zo.pop("upcoming", None)

        def here(bases: Mapping[str, Tensor]) -> dict[str, Tensor]:
            """Put bases on the device, column-major as a decomposition leaves them.

            Files keep no layout, and products round by it.
            """
            rows = {name: basis.to(devices[name]).T for name, basis in bases.items()}
            layout = torch.contiguous_format
            return {name: each.clone(memory_format=layout).T for name, each in rows.items()}

        self._subspace.bases = here(bases)
        self._subspace.upcoming = None if upcoming is None else (upcoming[0], here(upcoming[1]))


def _check_shared(
    basis: str, basis_tokens: int | None, shared: Mapping[str, Any], accumulated: str | None
) -> None:
    """Refuse what has no basis of rows that are not in one place, and say what has."""
    group = shared.get("group")
    several = None
    if group is not None and group.size > 1:
        several = f"{group.size} processes"
    elif accumulated is not None:
        several = f"accumulated_basis={accumulated!r}"
    if several is None:
        return
    alone = " (or accumulated_basis='first')" if several.startswith("acc") else ""
    if basis == "exact":
        raise ValueError(
            f"basis='exact': with {several} allowed is 'power'{alone}; rounding turns the signs of "
            "a decomposition"
        )
    if basis_tokens is not None:
        raise ValueError(f"basis_tokens={basis_tokens}: with {several} allowed is None{alone}")
    if accumulated is not None and shared.get("stream") is not None:
        raise ValueError(
            f"accumulated_basis={accumulated!r}: the evaluations of streamed layers run side by "
            "side, and bases of all micro-batches are there too late; allowed is 'first'"
        )
