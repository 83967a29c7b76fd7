"""ZO-Muon: steps of one length along nearly orthogonal matrices."""

import pytest
import torch

from baselines import ZOMuon
from baselines.reference import msign
from baselines.zo_muon import newton_schulz
from tests.networks import mlp, qwen3, weights


@pytest.mark.parametrize("shape", [(1, 5), (3, 8), (8, 3), (6, 6)])
def test_newton_schulz_brings_singular_values_near_one(shape):
    """Of the published coefficients; a singular value below .01 of the norm is not there yet."""
    G = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    U, S, Vh = torch.linalg.svd(G, full_matrices=False)
    G = U @ (S.clamp(min=0.05 * S.norm())[:, None] * Vh)
    found = newton_schulz(G)
    singular = torch.linalg.svdvals(found)
    assert 0.65 < singular.min() <= singular.max() < 1.25
    torch.testing.assert_close(found, msign(G))  # the polynomial, by singular values
    torch.testing.assert_close(newton_schulz(1e-3 * G), found, rtol=1e-3, atol=1e-4)
    assert newton_schulz(0 * G).equal(torch.zeros_like(G))


def test_a_steps_length_is_lr_and_not_the_gradients():
    ends = []
    for factor in (1.0, 8.0):
        net = mlp(torch.float64)
        optimizer = ZOMuon(net.model, 1e-2, 1e-6, rank=2, params=lambda n, p: p.dim() == 2)
        before = weights(net.model)
        optimizer.step(lambda net=net, factor=factor: factor * net.closure())
        ends.append({name: w - before[name] for name, w in weights(net.model).items()})
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-7)
    for name, moved in ends[0].items():
        if moved.dim() == 2:
            singular = torch.linalg.svdvals(moved)
            assert 0.6e-2 < singular[0] < 1.25e-2, name
            assert singular[2:].max() < 1e-8, name


def test_vectors_take_plain_steps_of_their_own_rate():
    net = mlp(torch.float64)
    optimizer = ZOMuon(net.model, 1e-2, 1e-3, rank=2, vector_rate=0.1)
    measured = optimizer.estimate(net.closure).queries
    before = weights(net.model)
    optimizer.step(net.closure)
    for name, p in net.model.named_parameters():
        if p.dim() == 1:
            mean = sum(g * d[p].dense().double() for d, g in measured) / len(measured)
            torch.testing.assert_close(p.detach(), before[name] - 1e-3 * mean)


def test_a_loss_that_is_not_finite_leaves_no_trace_in_the_weights():
    net = qwen3()
    before = weights(net.model)
    optimizer = ZOMuon(net.model, 1e-2, 1e-3, rank=2)
    optimizer.step(lambda: net.closure() * float("nan"), net.token_mask)
    assert all(p.equal(before[n]) for n, p in net.model.named_parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank=0: allowed are whole numbers >= 1"),
        ({"rank": 99}, "rank=99: the widest matrix is"),
        ({"refresh_every": 0}, "refresh_every=0: allowed are whole numbers >= 1"),
        ({"vector_rate": -1.0}, "vector_rate=-1.0: allowed are finite numbers >= 0.0"),
        ({"embeddings": "seen"}, "embeddings='seen': allowed are tuned, frozen"),
        ({"update": "sgd"}, "update='sgd': allowed are orthogonal"),
    ],
)
def test_bad_settings_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        ZOMuon(mlp().model, 1e-3, 1e-3, **{"rank": 2, **options})
