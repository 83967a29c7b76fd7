"""Alignment of a direction with the gradient: against dense arithmetic, sampling, known values."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agzo.activations.spectrum import gradients
from agzo.alignment import beta, captured, cosine, expected_cosine, inner, norm
from agzo.directions.direction import Dense
from agzo.directions.low_rank import LowRank
from agzo.rng import Noise
from tests.methods import METHODS, Method

SAMPLES = 4000


@pytest.mark.parametrize(
    ("dimension", "value"),
    [
        (1, 1.0),
        (2, 0.6366198),
        (3, 0.5),
        (10, 0.2586899),
        (128, 0.07066157),
        (1024, 0.02493998),
        (344_064, 1.360256e-3),
        (1024**2, 7.791843e-4),
    ],
)
def test_beta_matches_known_values(dimension, value):
    assert beta(dimension) == pytest.approx(value, rel=1e-6)


def test_beta_obeys_its_recursion():
    """beta_D beta_(D+1) = 2 / (pi D): true of the gamma functions, and of the series."""
    for dimension in (*range(1, 3000), 10**5, 10**7, 10**8 - 1, 10**8, 10**8 + 1, 10**12):
        product = beta(dimension) * beta(dimension + 1) * math.pi * dimension / 2
        assert product == pytest.approx(1.0, rel=0, abs=3e-12)


def test_beta_falls_where_its_formula_changes_and_where_log_gammas_lose_digits():
    for start in (990, 10**6, 10**7, 10**8 - 10, 10**10):
        values = [beta(dimension) for dimension in range(start, start + 20)]
        assert all(a > b for a, b in itertools.pairwise(values)), start


def test_beta_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="dimension=0: allowed are 1 and more"):
        beta(0)


def some_problem():
    """A low-rank and two dense directions over three parameters, and a gradient."""
    generator = torch.Generator().manual_seed(0)
    weight, bias, scalar = (nn.Parameter(torch.zeros(shape)) for shape in ((5, 7), (4,), ()))
    found = {p: torch.randn(p.shape, generator=generator) for p in (weight, bias, scalar)}
    basis = torch.linalg.qr(torch.randn(7, 2, generator=generator)).Q

    def directions(step: int):
        noise, cpu = Noise(1, step), torch.device("cpu")
        return {
            weight: LowRank(noise.tensor((5, 2), cpu, "w", "left"), basis),
            bias: Dense(noise, "b", bias.shape, cpu),
            scalar: Dense(noise, "s", scalar.shape, cpu),
        }

    return directions, found


def test_cosine_inner_and_norm_are_those_of_one_long_vector():
    directions, found = some_problem()
    delta = torch.cat([d.dense().reshape(-1) for d in directions(0).values()]).double()
    gradient = torch.cat([g.reshape(-1) for g in found.values()]).double()
    assert norm(found).item() == pytest.approx(gradient.norm().item(), rel=1e-6)
    assert inner(directions(0), found).item() == pytest.approx((delta @ gradient).item(), rel=1e-5)
    wanted = F.cosine_similarity(delta, gradient, dim=0).item()
    assert cosine(directions(0), found).item() == pytest.approx(wanted, rel=1e-5)


def test_cosine_looks_at_the_parameters_of_the_gradient_alone():
    directions, found = some_problem()
    weight = next(iter(found))
    drawn = directions(0)
    alone = cosine(drawn, {weight: found[weight]}).item()
    wanted = F.cosine_similarity(
        drawn[weight].dense().reshape(-1).double(), found[weight].reshape(-1).double(), dim=0
    )
    assert alone == pytest.approx(wanted.item(), rel=1e-5, abs=1e-7)  # a product in float32


def test_cosine_does_not_see_a_scale_but_sees_a_sign():
    directions, found = some_problem()
    value = cosine(directions(0), found).item()
    close = pytest.approx(value, abs=1e-7)  # float32 sums of far larger products
    assert cosine(directions(0), {p: 3 * g for p, g in found.items()}).item() == close
    assert -cosine(directions(0), {p: -g for p, g in found.items()}).item() == close


def test_expected_cosine_is_the_mean_of_many_cosines():
    directions, found = some_problem()
    drawn = torch.stack([cosine(directions(step), found).abs() for step in range(SAMPLES)])
    expected = expected_cosine(directions(0), found)
    assert abs(drawn.mean().item() - expected) < 5 * drawn.std().item() / SAMPLES**0.5


def test_expected_cosine_of_a_dense_direction_is_beta():
    gradient = torch.randn(6, 5)
    parameter = nn.Parameter(torch.zeros(6, 5))
    direction = Dense(Noise(0, 0), "w", parameter.shape, torch.device("cpu"))
    value = expected_cosine({parameter: direction}, {parameter: gradient})
    assert value == pytest.approx(beta(30), rel=1e-6)


def test_captured_is_the_cosine_of_a_gradient_and_its_projection():
    gradient = torch.randn(4, 6)
    basis = torch.linalg.qr(torch.randn(6, 2)).Q
    projection = gradient @ basis @ basis.T
    wanted = F.cosine_similarity(gradient.reshape(-1), projection.reshape(-1), dim=0)
    assert captured(gradient, basis).item() == pytest.approx(wanted.item(), rel=1e-5)
    inside = torch.randn(4, 2) @ basis.T
    assert captured(inside, basis).item() == pytest.approx(1.0, rel=1e-6)
    assert captured(gradient - projection, basis).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_measured_slope_is_the_inner_product_with_the_exact_gradient(method: Method):
    net = method.network("mlp", torch.float64)
    optimizer = method.make(net, eps=1e-6)
    exact = gradients(net.closure, optimizer.tuned)
    for directions, g in optimizer.estimate(net.closure, net.token_mask).queries:
        assert g.item() == pytest.approx(inner(directions, exact).item(), rel=1e-3, abs=1e-5)
