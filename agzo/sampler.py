"""Where to look: a sampler turns a parameter and an address into a search direction.

| sampler              | linear weights                               | the rest                   |
|----------------------|----------------------------------------------|----------------------------|
| `Gaussian`           | Z ~ N(0, 1)                                  | Z                          |
| `ActivationSubspace` | R A^T, A the basis of the layer's input      | Z                          |
| `RandomSubspace`     | U V^T, V redrawn every `refresh_every` steps | U V^T if a matrix, else Z  |
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from agzo.activations import ActivationCapture
from agzo.direction import Dense, Direction, LowRank
from agzo.rng import Noise
from agzo.select import Tuned


class DirectionSampler(Protocol):
    """The first of a method's three choices."""

    def capture(self, noise: Noise, token_mask: Tensor | None) -> ActivationCapture | None:
        """Return what must watch a forward of this step before sampling, or None."""
        ...

    def sample(self, tuned: Tuned, noise: Noise) -> Direction:
        """Return the direction of one parameter for the (seed, step, query) of `noise`."""
        ...

    def drawn(self, tuned: Tuned) -> int:
        """Count the numbers drawn for one parameter's direction: the size of its moments."""
        ...


class Gaussian:
    """MeZO's sampler: independent standard normal numbers for every coordinate."""

    def capture(self, noise: Noise, token_mask: Tensor | None) -> ActivationCapture | None:
        """Need nothing from a forward."""

    def sample(self, tuned: Tuned, noise: Noise) -> Direction:
        """Return dense Gaussian noise."""
        return Dense(noise, tuned.name, tuned.parameter.shape, tuned.parameter.device)

    def drawn(self, tuned: Tuned) -> int:
        """Count the parameter's values."""
        return tuned.parameter.numel()


class ActivationSubspace(Gaussian):
    """AGZO's sampler: Delta = R A^T (Eq. 10), R ~ N(0, 1) of shape (d_out, r), unscaled.

    Args:
        linear: the linear weights that get a basis.
        rank, power_steps: r and K of Algorithm 1.
        refresh_every: steps between new bases; 1 is the paper.
        include_padding: count padding tokens too, as the author's prototype does.
    """

    def __init__(
        self,
        linear: list[Tuned],
        rank: int,
        power_steps: int,
        refresh_every: int,
        include_padding: bool,
    ) -> None:
        if not linear:
            raise ValueError(
                "params: no weight of an nn.Linear is tuned; allowed are choices with one"
            )
        for tuned in linear:
            width = tuned.parameter.shape[1]
            if rank > width:
                raise ValueError(
                    f"rank={rank}: layer {tuned.name} has an input width of {width}; "
                    f"allowed are ranks from 1 to {width}"
                )
        self._linear = linear
        self._rank = rank
        self._power_steps = power_steps
        self._refresh_every = refresh_every
        self._include_padding = include_padding
        self.bases: dict[str, Tensor] = {}

    def capture(self, noise: Noise, token_mask: Tensor | None) -> ActivationCapture | None:
        """Return a capture that fills `bases` on refresh steps, None on the others."""
        if noise.step % self._refresh_every:
            return None
        mask = None if self._include_padding else token_mask
        capture = ActivationCapture(self._linear, self._rank, self._power_steps, noise, mask)
        self.bases = capture.bases
        return capture

    def sample(self, tuned: Tuned, noise: Noise) -> Direction:
        """Return R A^T for a linear weight, dense noise for any other parameter."""
        if tuned.role != "linear":
            return super().sample(tuned, noise)
        if tuned.name not in self.bases:
            raise RuntimeError(
                f"no basis for {tuned.name}: torch.nn.functional.linear was not called with this "
                "weight in the captured forward; exclude it with params="
            )
        right = self.bases[tuned.name]  # (d_in, r) orthonormal columns
        shape = (tuned.parameter.shape[0], right.shape[1])
        return LowRank(noise.tensor(shape, right.device, tuned.name, "left"), right)

    def drawn(self, tuned: Tuned) -> int:
        """Count the values of R, (d_out, r), or of dense noise."""
        if tuned.role != "linear":
            return super().drawn(tuned)
        return tuned.parameter.shape[0] * self._rank


class RandomSubspace(Gaussian):
    """LOZO's sampler: U V^T with U (d_out, r) drawn each step and V (d_in, r) every nu steps.

    U and V have separate addresses, so a refresh of V leaves U as it is. V is a pure function of
    the interval's first step and needs no saving.
    """

    def __init__(self, tuned: list[Tuned], rank: int, refresh_every: int) -> None:
        for each in tuned:
            shape = each.parameter.shape
            if len(shape) == 2 and rank > min(shape):
                raise ValueError(
                    f"rank={rank}: parameter {each.name} has shape {tuple(shape)}; "
                    f"allowed are ranks from 1 to {min(shape)}"
                )
        self._rank = rank
        self._refresh_every = refresh_every

    def sample(self, tuned: Tuned, noise: Noise) -> Direction:
        """Return U V^T for a matrix, dense noise for any other parameter."""
        shape = tuned.parameter.shape
        if len(shape) != 2:
            return super().sample(tuned, noise)
        return LowRank(self._left(tuned, noise, "left"), self._right(tuned, noise))

    def drawn(self, tuned: Tuned) -> int:
        """Count the values of U, (d_out, r), or of dense noise."""
        shape = tuned.parameter.shape
        return shape[0] * self._rank if len(shape) == 2 else super().drawn(tuned)

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
        shape = (tuned.parameter.shape[0], self._rank)
        return noise.tensor(shape, tuned.parameter.device, tuned.name, role)

    def _right(self, tuned: Tuned, noise: Noise) -> Tensor:
        first_step = noise.step - noise.step % self._refresh_every
        address = Noise(noise.seed, first_step)
        shape = (tuned.parameter.shape[1], self._rank)
        return address.tensor(shape, tuned.parameter.device, tuned.name, "right")
