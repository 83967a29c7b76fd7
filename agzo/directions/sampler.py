"""Where to look: a sampler turns a parameter and an address into a search direction.

| sampler              | linear weights                               | the rest                   |
|----------------------|----------------------------------------------|----------------------------|
| `Gaussian`           | Z ~ N(0, 1)                                  | Z                          |
| `ActivationSubspace` | R A^T, A the basis of the layer's input      | Z                          |
| `RandomSubspace`     | U V^T, V redrawn every `refresh_every` steps | U V^T if a matrix, else Z  |

A weight that its layer holds the other way round, (d_in, d_out), has A R^T. A matrix of which one
side is shorter than the rank has the rank of that side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from torch import Tensor, nn

from agzo.activations.capture import ActivationCapture
from agzo.directions.direction import Dense, Direction, Signs
from agzo.directions.low_rank import LowRank
from agzo.rng import Noise
from agzo.tuned.coordinates import Moved
from agzo.tuned.select import Tuned

NOISES: dict[str, type[Dense]] = {"gaussian": Dense, "rademacher": Signs}
"""What dense directions, and dense parts of others, are made of."""


class DirectionSampler(Protocol):
    """The first of a method's three choices."""

    dense: type[Dense]

    def capture(self, noise: Noise, token_mask: Tensor | None) -> ActivationCapture | None:
        """Return what must watch a forward of this step before sampling, or None."""
        ...

    def sample(self, tuned: Tuned, noise: Noise) -> Direction:
        """Return the direction of one parameter for the (seed, step, query) of `noise`."""
        ...

    def head(self, tuned: Tuned, noise: Noise) -> LowRank | None:
        """Return R A^T of an embedding table that is a head too, None where no basis is taken."""
        ...

    def learn(self, token_mask: Tensor | None) -> AbstractContextManager[object]:
        """Return what must be entered around a forward of the check before the first step."""
        ...

    def looking(self) -> AbstractContextManager[object]:
        """Return what must be entered around a look at a step: after it all is as before."""
        ...

    def stepped(self) -> None:
        """End a step, which was taken: later ones go on from what it has seen."""
        ...

    def sizes(self, tuned: Tuned) -> tuple[int, int]:
        """Count the values of one parameter's factors: those drawn, and the known factor's."""
        ...

    def kept(self, tuned: Tuned) -> int:
        """Count the values that stay between steps for one parameter, moments apart."""
        ...

    def moved(self, tuned: Tuned) -> Moved:
        """Say how one parameter moves: in a basis of some rank, or densely."""
        ...


class Sampled(Mapping[nn.Parameter, Direction]):
    """The directions of one query, each sampled when it is first asked for, and kept.

    So a direction may be taken from what an evaluation that runs beside its own has captured by
    then.
    """

    def __init__(self, tuned: Sequence[Tuned], sample: Callable[[Tuned], Direction]) -> None:
        self._tuned = {each.parameter: each for each in tuned}
        self._sample = sample
        self._made: dict[nn.Parameter, Direction] = {}

    def __getitem__(self, parameter: nn.Parameter) -> Direction:
        made = self._made.get(parameter)
        if made is None:
            made = self._made[parameter] = self._sample(self._tuned[parameter])
        return made

    def __contains__(self, parameter: object) -> bool:
        return parameter in self._tuned

    def __iter__(self) -> Iterator[nn.Parameter]:
        return iter(self._tuned)

    def __len__(self) -> int:
        return len(self._tuned)


def sample_rest(directions: Mapping[nn.Parameter, Direction]) -> None:
    """Sample what no evaluation has used: it moves as well, and the next batch has other bases."""
    for _ in directions.values():
        pass


class Gaussian:
    """MeZO's sampler: independent numbers for every coordinate, standard normal or signs."""

    dense: type[Dense] = Dense

    def capture(self, noise: Noise, token_mask: Tensor | None) -> ActivationCapture | None:
        """Need nothing from a forward."""

    def sample(self, tuned: Tuned, noise: Noise) -> Direction:
        """Return dense noise."""
        return self.dense(noise, tuned.name, tuned.parameter.shape, tuned.device)

    def head(self, tuned: Tuned, noise: Noise) -> LowRank | None:
        """Return None: no basis is taken."""
        return None

    def learn(self, token_mask: Tensor | None) -> AbstractContextManager[object]:
        """Need to know nothing."""
        return nullcontext()

    def looking(self) -> AbstractContextManager[object]:
        """Have nothing that a look changes."""
        return nullcontext()

    def stepped(self) -> None:
        """Keep nothing."""

    def sizes(self, tuned: Tuned) -> tuple[int, int]:
        """Count the parameter's values; there is no known factor."""
        return tuned.parameter.numel(), 0

    def kept(self, tuned: Tuned) -> int:
        """Count nothing: noise is made again."""
        return 0

    def moved(self, tuned: Tuned) -> Moved:
        """Say that it moves densely."""
        return Moved(tuned.name, tuned.parameter.numel())


def input_side(tuned: Tuned) -> int:
    """Return the dimension that an input comes in by, of a table that is a head too."""
    return 1 if tuned.inputs is None else tuned.inputs


def width_of(tuned: Tuned) -> int:
    """Return d_in of a linear layer's weight."""
    return tuned.parameter.shape[input_side(tuned)]


def check_rank(rank: int, sides: Mapping[str, int], what: str) -> None:
    """Raise ValueError for a rank that no matrix can have; a smaller one has the rank it can.

    A matrix with one row or column is a vector: its rank is 1, and no choice.
    """
    longest = max(sides, key=lambda name: sides[name], default=None)
    if longest is not None and rank > sides[longest] > 1:
        raise ValueError(
            f"rank={rank}: the widest {what} is {longest}, of {sides[longest]}; "
            f"allowed are ranks from 1 to {sides[longest]}"
        )
