"""The theory's expectations, within five standard errors, on a loss whose gradient is known."""

import math

import pytest
import torch
from torch import Tensor, nn

from agzo.direction import Direction
from agzo.rng import Noise
from agzo.sampler import ActivationSubspace, Gaussian, RandomSubspace
from agzo.select import Tuned

D_OUT, D_IN, SAMPLES = 6, 8, 4000


def beta(dimension: int) -> float:
    """E|U_1| for U uniform on the sphere (AGZO Eq. 25)."""
    log = math.lgamma(dimension / 2) - math.lgamma((dimension + 1) / 2)
    return math.exp(log) / math.sqrt(math.pi)


@pytest.mark.parametrize(
    ("dimension", "value"), [(2, 0.6366198), (3, 0.5), (128, 0.07066157), (344064, 1.360256e-3)]
)
def test_beta_matches_known_values(dimension, value):
    assert beta(dimension) == pytest.approx(value, rel=1e-6)


def gradient_and_basis(rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(D_OUT, D_IN, generator=generator)
    basis = torch.linalg.qr(torch.randn(D_IN, rank, generator=generator)).Q
    return gradient, basis


def tuned() -> Tuned:
    return Tuned("w", nn.Parameter(torch.zeros(D_OUT, D_IN)), "linear")


def directions(sampler: Gaussian) -> list[Direction]:
    return [sampler.sample(tuned(), Noise(0, step)) for step in range(SAMPLES)]


def mean_estimate(gradient: Tensor, drawn: list[Direction]) -> tuple[Tensor, Tensor]:
    """Mean of <G, Delta> Delta and its standard error, elementwise."""
    estimates = torch.stack([d.inner(gradient) * d.dense() for d in drawn])
    return estimates.mean(0), estimates.std(0) / len(drawn) ** 0.5


def agzo_sampler(basis: Tensor) -> ActivationSubspace:
    sampler = ActivationSubspace([tuned()], basis.shape[1], 3, 1, False)
    sampler.bases = {"w": basis}
    return sampler


@pytest.mark.parametrize("rank", [1, 3])
def test_agzo_estimate_is_the_projected_gradient(rank):
    """Prop. 5.1: the estimate has mean G A A^T."""
    gradient, basis = gradient_and_basis(rank)
    mean, error = mean_estimate(gradient, directions(agzo_sampler(basis)))
    assert ((mean - gradient @ basis @ basis.T).abs() < 5 * error + 1e-6).all()


@pytest.mark.parametrize("rank", [1, 3])
def test_agzo_expected_cosine(rank):
    """Thm 5.4: E cos = beta_{mr} |G A| / |G| with m = d_out."""
    gradient, basis = gradient_and_basis(rank)
    cosines = torch.stack(
        [
            d.inner(gradient).abs() / (d.norm() * gradient.norm())
            for d in directions(agzo_sampler(basis))
        ]
    )
    expected = beta(D_OUT * rank) * (gradient @ basis).norm() / gradient.norm()
    assert abs(cosines.mean() - expected) < 5 * cosines.std() / SAMPLES**0.5


def test_mezo_estimate_is_the_gradient_and_its_cosine_beta():
    """Isotropic case: mean G (Thm A.4), E cos = beta_{mn} (Cor. 5.5)."""
    gradient, _ = gradient_and_basis(1)
    drawn = directions(Gaussian())
    mean, error = mean_estimate(gradient, drawn)
    assert ((mean - gradient).abs() < 5 * error).all()
    cosines = torch.stack([d.inner(gradient).abs() / (d.norm() * gradient.norm()) for d in drawn])
    assert abs(cosines.mean() - beta(D_OUT * D_IN)) < 5 * cosines.std() / SAMPLES**0.5


def test_lozo_estimate_is_rank_times_the_gradient():
    """E <G, U V^T> U V^T = r G when V is fresh: the published code leaves 1/r to the lr."""
    gradient, _ = gradient_and_basis(1)
    rank = 2
    mean, error = mean_estimate(gradient, directions(RandomSubspace([tuned()], rank, 1)))
    assert ((mean - rank * gradient).abs() < 5 * error).all()
    assert mean.norm().item() == pytest.approx(rank * gradient.norm().item(), rel=0.2)


def test_lozo_keeps_v_within_an_interval():
    sampler = RandomSubspace([tuned()], 2, 5)
    rights = [sampler.sample(tuned(), Noise(0, step)).right for step in range(10)]
    assert all(right.equal(rights[0]) for right in rights[:5])
    assert all(right.equal(rights[5]) for right in rights[5:])
    assert not rights[0].equal(rights[5])


def test_agzo_direction_has_norm_of_its_left_factor():
    """|R A^T| = |R|: E|Delta|^2 = d_out r, against d_out d_in for MeZO."""
    _, basis = gradient_and_basis(2)
    squares = torch.stack([d.norm() ** 2 for d in directions(agzo_sampler(basis))])
    assert abs(squares.mean() - D_OUT * 2) < 5 * squares.std() / SAMPLES**0.5
