"""AIM-ZO (arXiv 2609.35257): probes of rank one inside a tracked subspace of the activations.

    H (d_in, n) the input of a linear layer in the forward at W;  Q (d_in, K) kept from step to step
    Q <- qf(Q + eta_q / n H (H^T Q)),  a Gaussian Q at first
    Q_i: the first h columns of Q, and k - h of the others, drawn anew for each probe
    U_i = a_i (Q_i b_i)^T,  a_i, b_i ~ N(0, 1);  Z_i = sqrt(d_out d_in) / |U_i| U_i,  i = 1 .. N
    y_i = f(W + eps_t Z_i);  W <- W - lr / ((N - 1) eps_t) sum (y_i - mean of y) Z_i
    eps_t = eps (1 / 4 + 3 / 8 (1 + cos(pi t / T))): from eps to eps / 4 in T steps

qf is the Q of a QR, with the signs that make R's diagonal positive. The most active directions come
to stand first in Q. Z_i is as long as MeZO's direction, which is why lr is far above AGZO's. The
loss at W is no part of the step, but H is taken in its forward: N + 1 forwards a step. Parameters
that are no weight of a linear layer have Gaussian noise. Memory beside inference: Q, K d_in float32
for each distinct input of a layer, and in a step a_i and Q_i b_i.

Published code keeps a Q for each layer; here layers that are fed by one tensor (query, key, value)
share it, and draw their columns apart. A layer that no token of a step reaches has the direction
zero, and begins anew from a Gaussian Q. The paper takes new bases in every step; one of its files
of settings takes them in every tenth, which is ``refresh_every=10``.

Its step with AGZO's directions instead is ``AGZO(model, lr, eps, queries=15, update="centred")``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from agzo.activations.accumulated import AccumulatedCapture, Sums
from agzo.activations.capture import ActivationCapture
from agzo.activations.subspace import product
from agzo.agzo import AGZO
from agzo.check import check_choice, check_count, check_count_or_none, check_number
from agzo.directions.activation_subspace import ActivationSubspace
from agzo.directions.low_rank import LowRank
from agzo.directions.orthonormal import haar
from agzo.directions.sampler import input_side
from agzo.kernels import thin
from agzo.rng import Noise
from agzo.scaling import SCALINGS
from agzo.torch_calls.surroundings import exactly
from agzo.tuned.select import Tuned

TINY = 1e-12


class Tracking(ActivationCapture):
    """Moves each Q a part of the way towards the leading directions of this batch's inputs.

    Args:
        rate: eta_q.
        given, named: as `ActivationCapture`; `start` has the Q of the step before.
    """

    def __init__(self, rate: float, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._rate = rate

    def _extract(self, x: Tensor, name: str) -> Tensor:
        flat, keep, _, _ = self._rows(x, name)
        q = self._begun(name, flat.shape[1], x.device)
        tokens = keep.count_nonzero() if keep is not None else _whole(flat.shape[0])
        return self._moved(q, product(flat, keep, q=thin.rows(q)), tokens)

    def _begun(self, name: str, width: int, device: torch.device) -> Tensor:
        """Return Q as it is, of the step before, or (d_in, K) Haar-distributed columns."""
        start = self._start.get(name)
        if start is not None:
            return start
        rank = min(self._rank, width)
        return haar(self._noise.columns(width, rank, device, name, "tracked"))

    def _moved(self, q: Tensor, own: Tensor, tokens: Tensor) -> Tensor:
        """Return the next Q from this process's Q^T H H^T, (K, d_in), and number of tokens."""
        total, count = self._group.sum(own), self._group.sum(tokens)
        return haar(q + (total * self._rate / count).T)


class TrackingParts(Tracking, AccumulatedCapture):
    """The same for inputs that come in parts, by the sums of H H^T."""

    def _warm(self, name: str, rank: int) -> Tensor:
        return _whole(0)  # any: there is always a Q, so no H Omega is needed

    def _basis_of(self, name: str, sums: Sums) -> Tensor:
        q = self._begun(name, sums.gram.shape[0], sums.gram.device)
        return self._moved(q, q.T @ sums.gram, sums.tokens)


class TrackedSubspace(ActivationSubspace):
    """AIM-ZO's sampler: Z_i of a linear weight."""

    def __init__(self, method: AIMZO, *given: Any) -> None:
        super().__init__(*given)
        self._rate, self._active, self._leading = method.rate, method.active, method.leading

    def _kind(self, whole: bool, in_parts: bool) -> Callable[..., ActivationCapture]:
        if in_parts:
            return partial(TrackingParts, self._rate, whole)
        return partial(Tracking, self._rate)

    def _inside(self, tuned: Tuned, noise: Noise) -> LowRank:
        basis = self.now[tuned.name]  # Q
        device, name = basis.device, tuned.name
        active = min(self._active, basis.shape[1])
        first = min(self._leading, active)
        columns = basis[:, :first]
        if active > first:
            drawn = noise.columns(basis.shape[1] - first, 1, device, name, "tail")[:, 0]
            others = first + drawn.argsort()[: active - first]
            columns = torch.cat([columns, basis[:, others]], 1)
        d_out = tuned.parameter.shape[1 - input_side(tuned)]
        a = noise.columns(d_out, 1, device, name, "a")
        with exactly(device):
            right = columns @ noise.columns(active, 1, device, name, "b")  # Q_i b_i
        length = a.norm() * right.norm() + TINY
        return LowRank.of(a * (math.sqrt(tuned.parameter.numel()) / length), right, tuned.inputs)


class AIMZO(AGZO):
    """Probe N = `queries` times inside a subspace of each layer's input that follows the batches.

    Args:
        model, lr, eps, estimator, shared: see `ZeroOrderOptimizer`; eps is that of the first step.
        rank: K, columns of Q; a narrower layer has as many as its width.
        active: k, columns that a probe uses.
        leading: h, of them those that every probe uses: the first ones.
        rate: eta_q, > 0, how far Q moves in a step.
        refresh_every: steps between two moves of Q; None keeps that of the first step.
        eps_steps: T; later steps stay at eps / 4. None: eps stays as it is.
        queries: N, 2 or more.
        embeddings: "tuned" or "frozen".
        include_padding, accumulated_basis: see `AGZO`.
    """

    about = replace(
        AGZO.about,
        fixed=("power_steps", "basis", "warm_start"),
        settings=(*AGZO.about.settings, "active", "leading", "rate", "eps_steps"),
        updates=("sgd", *SCALINGS),  # each probe has a right factor of its own: no moments
        estimators=None,
    )

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        eps: float,
        rank: int = 128,
        active: int = 64,
        leading: int = 48,
        rate: float = 0.3,
        refresh_every: int | None = 1,
        eps_steps: int | None = 2500,
        queries: int = 15,
        estimator: str = "one_sided",
        embeddings: str = "tuned",
        update: str = "centred",
        **shared: Any,
    ) -> None:
        self.active = check_count("active", active)
        self.leading = check_count("leading", leading, minimum=0)
        for key, value, above, most in (
            ("active", active, "rank", check_count("rank", rank)),
            ("leading", leading, "active", active),
        ):
            if value > most:
                raise ValueError(f"{key}={value}: allowed are whole numbers up to {above}={most}")
        self.rate = check_number("rate", rate, above=0.0)
        self.eps_steps = check_count_or_none("eps_steps", eps_steps, "eps stays as it is")
        check_choice("embeddings", embeddings, ("tuned", "frozen"))
        own = {"queries": queries, "estimator": estimator, "embeddings": embeddings}
        own |= {"rank": rank, "refresh_every": refresh_every, "update": update}
        super().__init__(model, lr=lr, eps=eps, power_steps=1, warm_start=True, **own, **shared)

    def _new_subspace(self, *given: Any) -> TrackedSubspace:
        return TrackedSubspace(self, *given)

    def eps_at(self, step: int) -> float:
        """Return eps_t, T = `eps_steps`."""
        if self.eps_steps is None:
            return self.eps
        done = min(step / self.eps_steps, 1.0)
        return self.eps * (0.25 + 0.375 * (1.0 + math.cos(math.pi * done)))


def _whole(number: int) -> Tensor:
    return torch.tensor(number, dtype=torch.int64, device="cpu")
