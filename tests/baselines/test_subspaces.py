"""SubZero+: random orthonormal factors, and steps that stay inside them."""

import math

import pytest
import torch

from agzo.directions.orthonormal import haar
from agzo.rng import Noise
from baselines import SubZero
from tests.networks import mlp, qwen3, weights

CPU = torch.device("cpu")


def test_factors_are_orthonormal_and_uniform():
    """A Haar Q has a mean of zero; a QR whose signs are left to the routine has not."""
    draws = [haar(Noise(0, s).columns(6, 2, CPU, "w", "u")) for s in range(600)]
    for q in draws[:5]:
        torch.testing.assert_close(q.T @ q, torch.eye(2), rtol=0, atol=1e-6)
    q = torch.stack(draws)
    error = 5 / math.sqrt(len(draws) * 6)
    assert q.mean(0).abs().max() < error
    torch.testing.assert_close((q @ q.mT).mean(0), torch.eye(6) / 3, rtol=0, atol=2 * error)


def test_a_column_points_as_what_it_was_drawn_from():
    drawn = Noise(0, 0).columns(9, 3, CPU, "w", "u")
    assert ((haar(drawn) * drawn).sum(0) > 0).all()


def test_all_probes_of_an_interval_share_one_subspace_and_the_next_has_another():
    net = qwen3()
    optimizer = SubZero(net.model, 1e-3, 1e-3, rank=2, refresh_every=3, queries=2)
    name, bases = "model.layers.0.mlp.up_proj.weight", []
    tuned = {each.name: each for each in optimizer.tuned}[name]
    for step in range(4):
        for query in range(2):
            drawn = optimizer._sampler.sample(tuned, Noise(0, step, query))
            bases.append((drawn.known, torch.linalg.qr(drawn.drawn).Q))
        optimizer.step(net.closure, net.token_mask)
    for right, left in bases[1:6]:
        assert right.equal(bases[0][0])
        assert (bases[0][1].T @ left).det().abs().item() == pytest.approx(1.0, abs=1e-5)
    assert not bases[6][0].equal(bases[0][0])
    assert (bases[0][1].T @ bases[6][1]).det().abs().item() < 0.99


def test_a_matrix_moves_inside_its_subspace():
    net = mlp(torch.float64)
    optimizer = SubZero(net.model, 1e-2, 1e-3, rank=2, refresh_every=10, queries=5)
    before = weights(net.model)
    for _ in range(4):
        optimizer.step(net.closure)
    for name, w in weights(net.model).items():
        if w.dim() == 2:
            singular = torch.linalg.svdvals(w - before[name])
            assert singular[2:].max() < 1e-5 * singular[0]


def test_many_probes_are_the_gradient_inside_the_subspace():
    """E U Zbar V^T = U U^T G V V^T."""
    net, k = mlp(torch.float64), 1000
    parameter = net.model[0].weight
    optimizer = SubZero(net.model, 0.0, 1e-6, rank=2, queries=k, params=[parameter])
    measured = optimizer.estimate(net.closure).queries
    net.closure().backward()
    found = sum(g * d[parameter].dense().double() for d, g in measured) / k
    u, v = (
        optimizer._sampler.factor(optimizer.tuned[0], Noise(0, 0), side, role).double()
        for side, role in enumerate(("orthonormal-left", "orthonormal-right"))
    )
    wanted = u @ (u.T @ parameter.grad @ v) @ v.T
    error = 5 * wanted.norm().item() / math.sqrt(k)  # of each of the r x r numbers
    torch.testing.assert_close(found, wanted, rtol=0, atol=error)
    assert torch.cosine_similarity(found.view(-1), wanted.view(-1), dim=0) > 0.98


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank=0: allowed are whole numbers >= 1"),
        ({"rank": 99}, "rank=99: the widest matrix is"),
        ({"refresh_every": 0}, "refresh_every=0: allowed are whole numbers >= 1"),
        ({"queries": 0}, "queries=0: allowed are whole numbers >= 1"),
        ({"update": "adam"}, "update='adam': allowed are sgd, scalar, spread"),
    ],
)
def test_bad_settings_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        SubZero(mlp().model, 1e-3, 1e-3, **{"rank": 2, **options})


def test_rows_seen_of_a_table_move_alone():
    net = qwen3(tied=False)
    optimizer = SubZero(net.model, 1e-2, 1e-3, rank=2, queries=2, embeddings="seen")
    table = net.model.model.embed_tokens.weight
    before = table.detach().clone()
    optimizer.step(net.closure, net.token_mask)
    moved = (table.detach() - before).abs().amax(1) > 0
    assert 0 < moved.sum() < len(moved)
