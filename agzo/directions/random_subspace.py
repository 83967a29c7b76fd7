"""LOZO's sampler: a matrix moves inside random directions that stay for some steps."""

from __future__ import annotations

from torch import Tensor

from agzo.directions.direction import Direction
from agzo.directions.low_rank import LowRank
from agzo.directions.sampler import Gaussian, check_rank
from agzo.rng import Noise
from agzo.tuned.coordinates import Moved
from agzo.tuned.select import Tuned


class RandomSubspace(Gaussian):
    """LOZO's sampler: U V^T with U (d_out, r) drawn each step and V (d_in, r) every nu steps.

    U and V have separate addresses, so a refresh of V leaves U as it is. V is a pure function of
    the interval's first step and needs no saving.
    """

    def __init__(self, tuned: list[Tuned], rank: int, refresh_every: int) -> None:
        matrices = {each.name: each.parameter.shape for each in tuned if each.parameter.dim() == 2}
        check_rank(rank, {name: min(shape) for name, shape in matrices.items()}, "matrix")
        self._rank = rank
        self._refresh_every = refresh_every

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
        return shape[0] * self._rank_of(tuned), shape[1] * self._rank_of(tuned)

    def moved(self, tuned: Tuned) -> Moved:
        """Say that a matrix moves in a basis, of its shorter side at most."""
        if tuned.parameter.dim() != 2:
            return super().moved(tuned)
        rank, values = self._rank_of(tuned), tuned.parameter.numel()
        return Moved(tuned.name, values, inside=True, rank=rank, asked=self._rank)

    def published_update(self, tuned: Tuned, noise: Noise) -> Direction:
        """Return what LOZO's published code applies instead of `sample` on a refresh step.

        It re-seeds and draws only U, from the place where V stood in the evaluation's stream, so
        the applied U is independent of the evaluated one.
        """
        shape = tuned.parameter.shape
        if len(shape) != 2 or noise.step % self._refresh_every:
            return self.sample(tuned, noise)
        return LowRank(self._left(tuned, noise, "left-published"), self._right(tuned, noise))

    def _rank_of(self, tuned: Tuned) -> int:
        return min(self._rank, *tuned.parameter.shape)

    def _left(self, tuned: Tuned, noise: Noise, role: str) -> Tensor:
        height = tuned.parameter.shape[0]
        return noise.columns(height, self._rank_of(tuned), tuned.device, tuned.name, role)

    def _right(self, tuned: Tuned, noise: Noise) -> Tensor:
        first_step = noise.step - noise.step % self._refresh_every
        address = Noise(noise.seed, first_step)
        width = tuned.parameter.shape[1]
        return address.columns(width, self._rank_of(tuned), tuned.device, tuned.name, "right")
