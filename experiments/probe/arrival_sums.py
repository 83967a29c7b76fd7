"""Sums over the coordinates of an update: what was meant, and what arrived."""

import math
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Sums:
    """Inner products of actual and intended changes, added up over parameters (float64)."""

    actual: float = 0.0
    both: float = 0.0
    intended: float = 0.0

    def add(self, actual: Tensor, intended: Tensor) -> None:
        """Add one parameter's changes, of the same shape."""
        a, i = actual.double(), intended.double()
        self.actual += a.square().sum().item()
        self.both += (a * i).sum().item()
        self.intended += i.square().sum().item()

    def merge(self, other: "Sums") -> None:
        """Add other changes."""
        self.actual += other.actual
        self.both += other.both
        self.intended += other.intended

    @property
    def gain(self) -> float:
        """Return <a, i> / |i|^2."""
        return self.both / self.intended

    @property
    def noise(self) -> float:
        """Return |a - gain i| / |i|."""
        return math.sqrt(max(0.0, self.actual / self.intended - self.gain**2))


@dataclass
class Tally:
    """What became of the updates of one policy and lr, over some of the parameters."""

    singles: list[Sums]
    total: Sums = field(default_factory=Sums)


def merge(into: Tally, other: Tally) -> None:
    """Add the sums of one tally to another."""
    for mine, its in zip([into.total, *into.singles], [other.total, *other.singles], strict=True):
        mine.merge(its)
