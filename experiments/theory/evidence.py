"""Rows of evidence: a claimed number, a measured one, its interval, and a verdict.

All verdicts hold together with the stated confidence: with k intervals each is made at the level
(1 - confidence) / k (Bonferroni). Intervals come from the central limit theorem; samples are
thousands, so at these levels (about four standard errors) they are approximate, not exact.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from statistics import NormalDist
from typing import Any, Literal

import torch
from torch import Tensor

from agzo import AGZO, ZeroOrderOptimizer
from baselines import LOZO, MeZO

Relation = Literal["=", "<=", ">=", ">"]
PILOT = 600
WIDE = 1.3  # an interval this much wider than wanted decides nothing


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        low, high: interval of the measured value; None where nothing is random.
        tolerance: of float rounding, for rows without an interval.
        half_width: the half width asked for; an "=" with a wider interval is undecided.
        expected: False where an assumption is broken on purpose; `note` says which.
    """

    name: str
    says: str
    setting: str
    claimed: float
    measured: float
    relation: Relation = "="
    low: float | None = None
    high: float | None = None
    tolerance: float = 0.0
    samples: int | None = None
    sized: str = "nothing random"
    half_width: float | None = None
    expected: bool = True
    note: str = ""

    @property
    def holds(self) -> bool | None:
        """Tell whether the measurement agrees with the claim; None: it cannot tell."""
        low = self.measured - self.tolerance if self.low is None else self.low
        high = self.measured + self.tolerance if self.high is None else self.high
        if not all(map(math.isfinite, (low, high, self.claimed))):
            return False
        if self.relation == "=":
            inside = low <= self.claimed <= high
            wide = self.half_width is not None and (high - low) / 2 > WIDE * self.half_width
            return None if inside and wide else inside
        if self.relation == ">":
            return True if low > self.claimed else None if self._undecided_above(high) else False
        # Where nothing is random, rounding must not turn a bound that is met into a failure.
        slack = 2 * self.tolerance if self.low is None else 0.0
        if self.relation == "<=":
            return True if high <= self.claimed + slack else False if low > self.claimed else None
        return True if low >= self.claimed - slack else False if high < self.claimed else None

    def _undecided_above(self, high: float) -> bool:
        return self.low is not None and high > self.claimed

    @property
    def verdict(self) -> str:
        """Say what follows: "holds" and "fails as expected" are as they should be."""
        if self.holds is None:
            return "UNDECIDED"
        if self.expected:
            return "holds" if self.holds else "FAILS"
        return "HOLDS, should fail" if self.holds else "fails as expected"

    @property
    def good(self) -> bool:
        """Tell whether the verdict is as it should be."""
        return self.holds is self.expected

    def record(self) -> dict[str, Any]:
        """Return the row for theory.json."""
        return {**asdict(self), "verdict": self.verdict}


Fields = dict[str, Any]
"""Arguments of a `Row`: a measured value and its interval."""


def but(fields: Fields, **changes: Any) -> Fields:
    """Return the fields with some changed."""
    return {**fields, **changes}


@dataclass
class Context:
    """How sure and how precise; which methods are looked at; counts the intervals made.

    Attributes:
        level: the chance that one interval misses, (1 - confidence) / intervals.
        precision: half width of an interval for a cosine, as a share of the claim; estimates, which
            vary more, get `coarse` times that.
        cap: most samples of one row.
    """

    level: float
    seed: int = 0
    precision: float = 0.03
    coarse: float = 2.5
    cap: int = 40_000
    agzo: Callable[..., ZeroOrderOptimizer] = AGZO
    mezo: Callable[..., ZeroOrderOptimizer] = MeZO
    lozo: Callable[..., ZeroOrderOptimizer] = LOZO
    intervals: int = field(default=0, init=False)

    @property
    def z(self) -> float:
        """Return the two-sided normal quantile of the level."""
        return NormalDist().inv_cdf(1.0 - self.level / 2.0)

    def noise_seed(self, what: str) -> int:
        """Return a seed of its own for each piece of work."""
        return zlib.crc32(f"{self.seed}/{what}".encode())

    def generator(self, what: str) -> torch.Generator:
        """Return a generator of its own for building a problem."""
        return torch.Generator().manual_seed(self.noise_seed(what))

    def size(self, pilot: Tensor, half_width: float) -> int:
        """Return n such that the interval of the mean is about `half_width` to each side."""
        wanted = math.ceil((self.z * pilot.std().item() / half_width) ** 2)
        return max(PILOT, min(self.cap, wanted))

    def sized(self, half_width: float, samples: int) -> str:
        """Say how a number of samples was chosen."""
        if samples >= self.cap:
            return f"the cap, {self.cap}"
        return f"pilot of {PILOT}, half width {half_width:.2g}"

    def mean(self, values: Tensor, half_width: float | None = None) -> Fields:
        """Return a mean and its interval, as arguments of a `Row`."""
        self.intervals += 1
        mean, n = values.mean().item(), values.numel()
        reach = self.z * values.std().item() / n**0.5
        sized = "" if half_width is None else self.sized(half_width, n)
        interval = {"low": mean - reach, "high": mean + reach}
        return {
            "measured": mean,
            **interval,
            "samples": n,
            "sized": sized,
            "half_width": half_width,
        }

    def difference(self, first: Tensor, second: Tensor) -> Fields:
        """Return the difference of two means of independent samples, and its interval."""
        self.intervals += 1
        measured = (first.mean() - second.mean()).item()
        parts = [x.var().item() / x.numel() for x in (first, second)]
        reach = self.z * math.sqrt(sum(parts))
        interval = {"low": measured - reach, "high": measured + reach}
        return {"measured": measured, **interval, "samples": first.numel() + second.numel()}

    def length(
        self, vectors: Tensor, scale: float, offset: Tensor | None = None, sized: str = ""
    ) -> Fields:
        """Return |mean of vectors + offset| / scale and its interval, as arguments of a `Row`.

        One statement about all coordinates at once. The mean's error is about normal with
        covariance S = cov / n, so its length exceeds sqrt(tr S) by t sqrt(largest eigenvalue) with
        a chance below exp(-t^2 / 2) (Gaussian concentration; Lipschitz functions of a normal
        vector), whatever the dimension.

        Args:
            vectors: (n, dimension), independent rows.
            scale: what the length is a share of.
            offset: a known vector to add to the mean.
            sized: how n was chosen.
        """
        self.intervals += 1
        n = vectors.shape[0]
        mean = vectors.mean(0)
        reach = self.reach(vectors) / n**0.5
        length = (mean if offset is None else mean + offset).norm().item()
        interval = {"low": max(0.0, length - reach) / scale, "high": (length + reach) / scale}
        return {"measured": length / scale, **interval, "samples": n, "sized": sized}

    def reach(self, vectors: Tensor) -> float:
        """Return sqrt(n) times the radius of `length`'s interval."""
        covariance = torch.atleast_2d(torch.cov(vectors.T))
        values = torch.linalg.eigvalsh(covariance).clamp(min=0.0)
        t = math.sqrt(2.0 * math.log(1.0 / self.level))
        return values.sum().sqrt().item() + t * values[-1].sqrt().item()

    def size_length(self, pilot: Tensor, half_width: float) -> int:
        """Return n such that `length` is known to about `half_width`."""
        return max(PILOT, min(self.cap, math.ceil((self.reach(pilot) / half_width) ** 2)))


@dataclass(frozen=True)
class Claim:
    """A function that makes rows, and the number of intervals it makes (for Bonferroni)."""

    measure: Callable[[Context], list[Row]]
    intervals: int


def level(confidence: float, claims: list[Claim]) -> float:
    """Return the level of one interval so that all hold together with `confidence`."""
    return (1.0 - confidence) / max(1, sum(claim.intervals for claim in claims))


def collect(claim: Claim, context: Context) -> list[Row]:
    """Run one claim and check that it made the intervals it declared."""
    before = context.intervals
    rows = claim.measure(context)
    made = context.intervals - before
    if made != claim.intervals:
        raise RuntimeError(
            f"{claim.measure.__name__}: it made {made} intervals and declares {claim.intervals}; "
            "the joint confidence stands on the number declared"
        )
    return rows
