"""Paired comparisons of two methods: sign-flip permutation test, Holm's correction, t interval.

A pair is the same task and seed under two methods, d = score of one minus score of the other. If
the methods are exchangeable, every sign of every d is equally likely, so the two-sided p-value is
the share of the 2^n sign assignments whose |mean| is at least the observed one. That is exact for
any distribution of the scores; it is enumerated for few pairs and sampled for many. numpy alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

EXACT_UP_TO = 20  # pairs; 2^20 sums take 8 MiB
FLIPS = 100_000
CHUNK = 10_000  # random flips held at once
TOLERANCE = 1e-9  # of the sum of |d|: sums of the same numbers in another order count as equal


@dataclass(frozen=True)
class Comparison:
    """The paired comparison of two methods, in the units of the scores."""

    n: int
    difference: float  # mean of d
    interval: tuple[float, float] | None  # 95 % t interval; None for a single pair
    p: float
    exact: bool  # p from all sign assignments, not from a sample


def compare(differences: Sequence[float], seed: int = 0) -> Comparison | None:
    """Compare by paired differences; None without a pair."""
    if not differences:
        return None
    n = len(differences)
    return Comparison(
        n,
        float(np.mean(differences)),
        t_interval(differences) if n > 1 else None,
        sign_flip_p(differences, seed),
        n <= EXACT_UP_TO,
    )


def sign_flip_p(
    differences: Sequence[float], seed: int = 0, exact_up_to: int = EXACT_UP_TO
) -> float:
    """Return the two-sided p-value of the sign-flip test of a mean difference of zero.

    Beyond `exact_up_to` pairs it is (1 + hits) / (1 + FLIPS) over seeded random flips: the observed
    assignment counts as one of them, so the p-value is valid and never zero (Phipson, Smyth 2010).
    """
    d = np.asarray(differences, dtype=np.float64)
    if d.ndim != 1 or d.size == 0 or not np.isfinite(d).all():
        raise ValueError(f"differences={differences}: expected finite numbers, at least one")
    least = abs(float(d.sum())) - TOLERANCE * float(np.abs(d).sum())
    if d.size <= exact_up_to:
        sums = np.zeros(1)
        for one in d:
            sums = np.concatenate([sums + one, sums - one])  # all 2^k signed sums so far
        return float(np.mean(np.abs(sums) >= least))
    rng = np.random.default_rng(seed)
    hits = 0
    for _ in range(FLIPS // CHUNK):
        signs = rng.integers(0, 2, size=(CHUNK, d.size)) * 2 - 1
        hits += int(np.count_nonzero(np.abs(signs @ d) >= least))
    return (1 + hits) / (1 + FLIPS)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p-values for their number by Holm's step-down method, in the order given.

    The number is that of the comparisons planned: one that has no p-value yet (None) stays None but
    counts, so that a table that fills up never corrects for less than it will.
    """
    order = sorted(
        (i for i, p in enumerate(p_values) if p is not None), key=lambda i: p_values[i] or 0.0
    )
    corrected: list[float | None] = [None] * len(p_values)
    running = 0.0
    for rank, i in enumerate(order):
        p = p_values[i]
        assert p is not None
        running = max(running, min(1.0, (len(p_values) - rank) * p))
        corrected[i] = running
    return corrected


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return the t interval of the mean: mean ± t · s / √n with s the sample deviation."""
    x = np.asarray(values, dtype=np.float64)
    if x.size < 2:
        raise ValueError(f"values={values}: an interval needs at least two")
    half = t_quantile(x.size - 1, level) * float(x.std(ddof=1)) / float(np.sqrt(x.size))
    return float(x.mean()) - half, float(x.mean()) + half


def t_quantile(freedom: int, level: float = 0.95) -> float:
    """Return t with P(|T| <= t) = level for Student's T.

    With T = √ν tan θ the density of θ is proportional to cos^(ν-1) θ on (-π/2, π/2): smooth and
    bounded, so a plain trapezoid sum gives its distribution.
    """
    if freedom < 1 or not 0 < level < 1:
        raise ValueError(f"freedom={freedom}, level={level}: expected >= 1 and within (0, 1)")
    theta = np.linspace(0.0, np.pi / 2, 200_001)
    density = np.cos(theta) ** (freedom - 1)
    mass = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return float(np.sqrt(freedom) * np.tan(np.interp(level * mass[-1], mass, theta)))
