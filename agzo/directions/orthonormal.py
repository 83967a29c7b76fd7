"""Orthonormal factors drawn at random, kept for some steps: a pure function of their address."""

from __future__ import annotations

import torch
from torch import Tensor

from agzo.directions.random_subspace import KeptSubspace
from agzo.kernels.orthonormal import orthonormal
from agzo.rng import Noise
from agzo.tuned.select import Tuned


class OrthonormalSubspace(KeptSubspace):
    """Base of samplers whose kept factors are orthonormal.

    They are made once in a step for all its queries, and made again in the next one.
    """

    def __init__(self, tuned: list[Tuned], rank: int, refresh_every: int) -> None:
        super().__init__(tuned, rank, refresh_every)
        self._made: dict[tuple[str, str], tuple[Noise, Tensor]] = {}

    def factor(self, tuned: Tuned, noise: Noise, side: int, role: str) -> Tensor:
        """Return Haar-distributed columns (shape[side], r) of the interval that `noise` is in."""
        address = self.interval(noise)
        found = self._made.get((tuned.name, role))
        if found is None or found[0] != address:
            height, device = tuned.parameter.shape[side], tuned.device
            drawn = address.columns(height, self.rank_of(tuned), device, tuned.name, role)
            found = self._made[tuned.name, role] = address, haar(drawn)
        return found[1]

    def stepped(self) -> None:
        """Drop the factors of the step."""
        self._made.clear()


def haar(drawn: Tensor) -> Tensor:
    """Return Q of a QR of Gaussian columns (n, r), with the signs that make R's diagonal positive.

    Without them Q depends on the signs that a routine happens to choose, and is not uniform.
    """
    q = orthonormal(drawn)
    return q * torch.where((q * drawn).sum(0) < 0, -1.0, 1.0).to(q.dtype)
