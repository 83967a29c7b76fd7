"""Samplers whose matrices move inside random directions that stay for some steps; LOZO's is one."""

from __future__ import annotations

from torch import Tensor

from agzo.directions.direction import Direction
from agzo.directions.low_rank import LowRank
from agzo.directions.sampler import Gaussian, check_rank
from agzo.rng import Noise
from agzo.tuned.coordinates import Moved
from agzo.tuned.select import Tuned


class KeptSubspace(Gaussian):
    """Base of samplers that draw a factor of each matrix once for `refresh_every` steps.

    Such a factor is a pure function of the interval's first step and needs no saving.

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

    def rank_of(self, tuned: Tuned) -> int:
        """Return the rank of a matrix."""
        return min(self._rank, *tuned.parameter.shape)

    def interval(self, noise: Noise) -> Noise:
        """Return the address of the kept factors of the interval that a step is in."""
        return Noise(noise.seed, noise.step - noise.step % self._refresh_every)

    def moved(self, tuned: Tuned) -> Moved:
        """Say that a matrix moves in a basis, of its shorter side at most."""
        if tuned.parameter.dim() != 2:
            return super().moved(tuned)
        rank, values = self.rank_of(tuned), tuned.parameter.numel()
        return Moved(tuned.name, values, inside=True, rank=rank, asked=self._rank)


class RandomSubspace(KeptSubspace):
    """LOZO's sampler: U V^T with U (d_out, r) drawn each step and V (d_in, r) every nu steps.

    U and V have separate addresses, so a refresh of V leaves U as it is.
    """

    def sample(self, tuned: Tuned, noise: Noise) -> Direction:
        """Return U V^T for a matrix, dense noise for any other parameter."""
        shape = tuned.parameter.shape
        if len(shape) != 2:
            return super().sample(tuned, noise)
        return LowRank(self._left(tuned, noise, "left"), self._right(tuned, noise))

    def sizes(self, tuned: Tuned) -> tuple[int, int]:
        """Count the values of U, (d_out, r), and V, (d_in, r), or of dense noise."""
        shape = tuned.parameter.shape
        if len(shape) != 2:
            return super().sizes(tuned)
        return shape[0] * self.rank_of(tuned), shape[1] * self.rank_of(tuned)

    def published_update(self, tuned: Tuned, noise: Noise) -> Direction:
        """Return what LOZO's published code applies instead of `sample` on a refresh step.

        It re-seeds and draws only U, from the place where V stood in the evaluation's stream, so
        the applied U is independent of the evaluated one.
        """
        shape = tuned.parameter.shape
        if len(shape) != 2 or noise.step % self._refresh_every:
            return self.sample(tuned, noise)
        return LowRank(self._left(tuned, noise, "left-published"), self._right(tuned, noise))

    def _left(self, tuned: Tuned, noise: Noise, role: str) -> Tensor:
        height = tuned.parameter.shape[0]
        return noise.columns(height, self.rank_of(tuned), tuned.device, tuned.name, role)

    def _right(self, tuned: Tuned, noise: Noise) -> Tensor:
        width, address = tuned.parameter.shape[1], self.interval(noise)
        return address.columns(width, self.rank_of(tuned), tuned.device, tuned.name, "right")
