"""The statistics: against cases counted by hand, enumeration, tables of t, and simulation."""

import itertools

import numpy as np
import pytest

from analysis.reading import significance
from analysis.reading.significance import compare, holm, sign_flip_p, t_interval, t_quantile


def enumerated(differences: list[float]) -> float:
    """The definition, one sign assignment at a time."""
    observed = abs(np.mean(differences))
    flips = list(itertools.product((1, -1), repeat=len(differences)))
    means = [abs(np.mean([s * d for s, d in zip(f, differences, strict=True)])) for f in flips]
    return sum(mean >= observed - 1e-12 for mean in means) / len(flips)


def test_p_values_counted_by_hand() -> None:
    assert sign_flip_p([2.0]) == 1.0  # one pair says nothing: both signs are as far from zero
    assert sign_flip_p([1.0, 1.0, 1.0]) == 2 / 8  # only +++ and ---
    assert sign_flip_p([1.0, 2.0, 3.0, -1.0]) == 6 / 16  # |sums|: 7 twice, 5 four times, 5 observed
    assert sign_flip_p([1.0, -1.0]) == 1.0
    assert sign_flip_p([0.0, 0.0, 0.0]) == 1.0
    assert sign_flip_p([0.1] * 6) == 2 / 64  # 0.1 * 6 is not the sum of six 0.1: ties must count


def test_exact_p_equals_enumeration() -> None:
    rng = np.random.default_rng(0)
    for n in range(1, 10):
        for scale in (1.0, 100.0):
            d = np.round(rng.normal(0.3, 1.0, n), 1) * scale  # rounded: ties among the sums
            assert sign_flip_p(list(d)) == pytest.approx(enumerated(list(d)), abs=1e-12)


def test_sampled_p_is_close_to_exact_seeded_and_never_zero() -> None:
    d = list(np.random.default_rng(1).normal(0.5, 1.0, 14))
    exact = sign_flip_p(d)
    sampled = sign_flip_p(d, seed=3, exact_up_to=0)
    assert abs(sampled - exact) < 5 * np.sqrt(exact * (1 - exact) / significance.FLIPS) + 2e-5
    assert sampled == sign_flip_p(d, seed=3, exact_up_to=0)
    assert sampled != sign_flip_p(d, seed=4, exact_up_to=0)
    assert sign_flip_p([1.0] * 40) == 1 / (1 + significance.FLIPS)


def test_p_is_uniform_under_the_null() -> None:
    rng = np.random.default_rng(2)
    p = np.array([sign_flip_p(list(rng.standard_t(3, 10))) for _ in range(2000)])
    for level in (0.01, 0.05, 0.2, 0.5, 0.9):
        expected = np.floor(level * 512) / 512  # ten pairs: p is a multiple of 2 / 1024
        spread = 5 * np.sqrt(expected * (1 - expected) / p.size)
        assert abs(np.mean(p <= level) - expected) < spread, level


def test_power_under_a_clear_effect() -> None:
    rng = np.random.default_rng(3)
    p = [sign_flip_p(list(rng.normal(1.5, 1.0, 10))) for _ in range(200)]
    assert np.mean(np.array(p) <= 0.05) > 0.95
    assert sign_flip_p(list(rng.normal(1.5, 1.0, 24))) < 0.001  # sampled


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04]) == [0.02, 0.04]
    assert holm([0.04, 0.03]) == [0.06, 0.06]  # monotone: the larger is not below the smaller
    assert holm([0.7, 0.6]) == [1.0, 1.0]
    assert holm([0.01, 0.03, 0.02]) == [0.03, 0.04, 0.04]
    assert holm([None, 0.02]) == [None, 0.04]  # a comparison without a value yet still counts
    assert holm([0.0, None, None]) == [0.0, None, None]
    assert holm([]) == []


def test_t_quantiles_against_tables() -> None:
    table = {1: 12.7062, 2: 4.3027, 5: 2.5706, 10: 2.2281, 23: 2.0687, 30: 2.0423, 1000: 1.9623}
    for freedom, value in table.items():
        assert t_quantile(freedom) == pytest.approx(value, abs=6e-5)
    assert t_quantile(3, 0.99) == pytest.approx(5.8409, abs=6e-5)


def test_t_interval_and_comparison_by_hand() -> None:
    # mean 2, sample deviation 1, so half a width of 4.3027 / sqrt(3) = 2.4841
    assert t_interval([1.0, 2.0, 3.0]) == pytest.approx((-0.4841, 4.4841), abs=1e-4)
    shown = compare([1.0, 2.0, 3.0])
    assert shown is not None
    assert (shown.n, shown.difference, shown.p, shown.exact) == (3, 2.0, 0.25, True)
    single = compare([1.0])
    assert single is not None
    assert (single.interval, single.p) == (None, 1.0)
    assert compare([]) is None
    many = compare([1.0, -0.5] * 12)
    assert many is not None
    assert not many.exact


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="expected finite numbers"):
        sign_flip_p([1.0, float("nan")])
    with pytest.raises(ValueError, match="at least two"):
        t_interval([1.0])
    with pytest.raises(ValueError, match="freedom=0"):
        t_quantile(0)
