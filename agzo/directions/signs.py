"""FZOO's sampler: independent signs, -1 or 1, for every coordinate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from agzo.directions.direction import ByRows, Direction
from agzo.directions.sampler import Gaussian
from agzo.rng import Noise
from agzo.tuned.select import Tuned


@dataclass(frozen=True)
class Signs(ByRows):
    """Rademacher numbers of a parameter's shape, regenerated on each use."""

    noise: Noise
    name: str
    shape: torch.Size  # pyright: ignore[reportIncompatibleMethodOverride]
    device: torch.device

    def rows(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yield the signs in blocks of whole rows, float32, free to be overwritten."""
        return self.noise.signs(self.shape, self.device, self.name)


class Rademacher(Gaussian):
    """u in {-1, 1}^d, of covariance I as Gaussian noise, and of the same length for every draw."""

    def sample(self, tuned: Tuned, noise: Noise) -> Direction:
        """Return signs for each coordinate."""
        return Signs(noise, tuned.name, tuned.parameter.shape, tuned.device)
