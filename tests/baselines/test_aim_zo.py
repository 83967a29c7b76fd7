"""AIM-ZO: a subspace that follows the inputs, probes of MeZO's length, centred losses."""

import math

import pytest
import torch
from torch import nn

from agzo import AGZO
from agzo.activations.subspace import leading
from agzo.distributed.pieces import Piece
from baselines import AIMZO
from tests.networks import llama, mlp, weights

SMALL = {"rank": 4, "active": 3, "leading": 1, "queries": 3}


def make(net, lr=1e-3, **options):
    return AIMZO(net.model, lr, 1e-3, **{**SMALL, **options})


def test_the_subspace_comes_to_the_leading_directions_of_the_inputs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 4)).eval()
    x = torch.randn(200, 12) * 0.6 ** torch.arange(12)
    optimizer = AIMZO(model, 0.0, 1e-3, **{**SMALL, "rate": 100.0})
    found = []
    for _ in range(40):
        optimizer.step(lambda: model(x).square().mean())
        found.append(optimizer._subspace.bases["0.weight"])
    cosines = [(leading(x, 4) * each).sum(0).abs() for each in (found[0], found[-1])]
    assert cosines[0].min() < 0.9  # one step does not find them
    torch.testing.assert_close(cosines[1], torch.ones(4), rtol=0, atol=1e-3)
    torch.testing.assert_close(found[-1].T @ found[-1], torch.eye(4), rtol=0, atol=1e-5)


def test_every_probe_has_rank_one_mezos_length_and_the_first_columns():
    net = llama(torch.float64)
    optimizer = make(net, active=2, leading=1)
    optimizer.stage(net.closure, net.token_mask)  # keeps its bases, which a look does not
    assert optimizer._staged is not None
    measured = optimizer._staged.measurement
    pairs = set()
    for directions, _ in measured.queries:
        for each in optimizer.tuned:
            if each.role != "linear":
                continue
            Z = directions[each.parameter].dense().double()
            assert Z.norm().item() == pytest.approx(math.sqrt(Z.numel()), rel=1e-5)
            inside = torch.linalg.svd(Z).Vh[0] @ optimizer._subspace.now[each.name].double()
            assert torch.linalg.matrix_rank(Z, rtol=1e-5) == 1
            used = tuple((inside.abs() > 1e-6).nonzero()[:, 0].tolist())
            assert len(used) == 2
            pairs.add(used)
    assert pairs == {(0, 1), (0, 2), (0, 3)}  # the others are drawn


def test_eps_falls_to_a_quarter():
    net = mlp(torch.float64)
    optimizer = make(net, eps_steps=4)
    sizes = [optimizer.eps_at(step) / 1e-3 for step in (0, 2, 4, 9)]
    assert sizes == pytest.approx([1, 0.625, 0.25, 0.25])
    assert make(net, eps_steps=None).eps_at(99) == 1e-3
    told = []
    optimizer.register_measure_hook(told.append)
    for step in range(3):
        optimizer.step(net.closure)
        slopes = (told[step].losses[:, 0] - told[step].loss) / optimizer.eps_at(step)
        torch.testing.assert_close(told[step].projected_grad, slopes)


def test_micro_batches_have_the_subspace_of_the_whole_batch():
    whole, parts = llama(torch.float64), llama(torch.float64)
    one, several = make(whole), make(parts, accumulation=2)
    for _ in range(3):
        one.step(whole.closure, whole.token_mask)
        pieces = [Piece(parts.closure, parts.token_mask), Piece(parts.closure, parts.token_mask)]
        several.step(pieces)  # twice the same rows: the same mean of H H^T
    for name, basis in one._subspace.bases.items():
        torch.testing.assert_close(several._subspace.bases[name], basis, rtol=0, atol=1e-3)


def test_its_activation_guided_sibling_is_one_switch():
    """AGZO's directions, centred: sum c_i Delta_i / N, and the mean of the c_i is zero."""
    net = mlp(torch.float64)
    optimizer = AGZO(net.model, 1e-3, 1e-3, queries=4, update="centred")
    measured = optimizer.estimate(net.closure)
    before = weights(net.model)
    optimizer.step(net.closure)
    y = measured.losses[:, 0].double()
    for name, parameter in net.model.named_parameters():
        deltas = [directions[parameter].dense().double() for directions, _ in measured.queries]
        parts = [delta * (v - y.mean()) for delta, v in zip(deltas, y, strict=True)]
        wanted = before[name] - 1e-3 * sum(parts) / (3 * 1e-3)
        torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 99}, "rank=99: the widest input of a linear layer is"),
        ({"active": 5}, "active=5: allowed are whole numbers up to rank=4"),
        ({"leading": 4}, "leading=4: allowed are whole numbers up to active=3"),
        ({"rate": 0.0}, "rate=0.0: allowed are finite numbers > 0"),
        ({"eps_steps": 0}, "eps_steps=0: allowed are whole numbers >= 1, or None"),
        ({"queries": 1}, "queries=1: with update='centred' allowed are 2 or more"),
        ({"update": "adam"}, "update='adam': allowed are sgd, scalar, spread, centred"),
        ({"embeddings": "seen"}, "embeddings='seen': allowed are tuned, frozen"),
    ],
)
def test_bad_settings_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        make(mlp(), **options)
