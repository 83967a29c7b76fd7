"""Orthonormal factors drawn at random, kept for some steps: a pure function of their address."""

from __future__ import annotations

import torch
from torch import Tensor

from agzo.directions.sampler import Gaussian, check_rank
from agzo.kernels.orthonormal import orthonormal
from agzo.rng import Noise
from agzo.tuned.coordinates import Moved
from agzo.tuned.select import Tuned


class OrthonormalSubspace(Gaussian):
    """Base of samplers that keep orthonormal factors of each matrix for `refresh_every` steps.

    The factors are made once in a step for all its queries, and made again in the next one: they
    need no saving.

    Args:
        tuned: the parameters; matrices among them get factors.
        rank: r; a matrix with a shorter side has that of its side.
        refresh_every: steps between new factors.
    """

    def __init__(self, tuned: list[Tuned], rank: int, refresh_every: int) -> None:
        matrices = {each.name: each.parameter.shape for each in tuned if each.parameter.dim() == 2}
        check_rank(rank, {name: min(shape) for name, shape in matrices.items()}, "matrix")
        self._rank = rank
        self._refresh_every = refresh_every
        self._made: dict[tuple[str, str], tuple[Noise, Tensor]] = {}

    def rank_of(self, tuned: Tuned) -> int:
        """Return the rank of a matrix."""
        return min(self._rank, *tuned.parameter.shape)

    def factor(self, tuned: Tuned, noise: Noise, side: int, role: str) -> Tensor:
        """Return Haar-distributed columns (shape[side], r) of the interval that `noise` is in."""
        address = Noise(noise.seed, noise.step - noise.step % self._refresh_every)
        found = self._made.get((tuned.name, role))
        if found is None or found[0] != address:
            height, device = tuned.parameter.shape[side], tuned.device
            drawn = address.columns(height, self.rank_of(tuned), device, tuned.name, role)
            found = self._made[tuned.name, role] = address, haar(drawn)
        return found[1]

    def forget(self) -> None:
        """Drop the factors of a step."""
        self._made.clear()

    def moved(self, tuned: Tuned) -> Moved:
        """Say that a matrix moves in a basis, of its shorter side at most."""
        if tuned.parameter.dim() != 2:
            return super().moved(tuned)
        rank, values = self.rank_of(tuned), tuned.parameter.numel()
        return Moved(tuned.name, values, inside=True, rank=rank, asked=self._rank)


def haar(drawn: Tensor) -> Tensor:
    """Return Q of a QR of Gaussian columns (n, r), with the signs that make R's diagonal positive.

    Without them Q depends on the signs that a routine happens to choose, and is not uniform.
    """
    q = orthonormal(drawn)
    return q * torch.where((q * drawn).sum(0) < 0, -1.0, 1.0).to(q.dtype)
