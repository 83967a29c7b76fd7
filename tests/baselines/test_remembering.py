"""HiZOO and ConMeZO: what they remember of each weight, and what it may cost."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agzo.rng import Noise
from baselines import ConMeZO, HiZOO, MeZO
from tests.networks import mlp, qwen3, weights

LR, EPS = 1e-3, 1e-3
CPU = torch.device("cpu")


class Point(nn.Module):
    """A vector of weights, and the loss x^T A x / 2 with a diagonal A."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.linspace(-1.0, 1.0, 6, dtype=torch.float64))
        self.diagonal = torch.tensor([1.0, 2.0, 4.0, 8.0, 0.5, 3.0], dtype=torch.float64)

    def forward(self) -> Tensor:
        return (self.diagonal * self.x.square()).sum() / 2


def ends(kind, steps=4, **options) -> dict[str, Tensor]:
    net = mlp(torch.float64)
    optimizer = kind(net.model, LR, EPS, **options)
    for _ in range(steps):
        optimizer.step(net.closure)
    return weights(net.model)


def test_without_curvature_or_cone_both_are_mezo():
    torch.testing.assert_close(ends(HiZOO, curvature_rate=0.0), ends(MeZO))
    torch.testing.assert_close(ends(ConMeZO, theta=math.pi / 2), ends(MeZO), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(ends(ConMeZO, 1), ends(MeZO, 1))  # there is no momentum yet


def test_the_curvature_is_that_of_a_quadratic():
    """l+ + l- - 2 l = eps^2 z^T A z, so H = 1 - alpha + alpha (z^T A z / 2) z^2 after a step."""
    model, alpha = Point().eval(), 0.25
    optimizer = HiZOO(model, LR, EPS, curvature_rate=alpha)
    optimizer.step(model)
    z = Noise(0, 0).tensor(torch.Size([6]), CPU, "x", "dense").double()
    bend = (model.diagonal * z.square()).sum()
    wanted = 1 - alpha + alpha * bend / 2 * z.square()
    found = optimizer.memory(optimizer.tuned[0])
    assert found is not None
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_curvature_of_a_weight_that_bends_more_is_larger():
    """E |z^T A z| z_i^2 / 2 = tr A / 2 + A_ii, by which HiZOO shortens that weight's steps."""
    model, draws = Point().eval(), 4000
    optimizer = HiZOO(model, lr=0.0, eps=1e-2, curvature_rate=0.5, queries=draws)
    optimizer.step(model)
    found = optimizer.memory(optimizer.tuned[0])
    assert found is not None
    wanted = (1 + model.diagonal.sum() / 2 + model.diagonal) / 2
    torch.testing.assert_close(found.double(), wanted, rtol=0.2, atol=0)
    assert found.argmax() == model.diagonal.argmax()


@pytest.mark.parametrize("theta", [0.4, 1.35])
def test_a_direction_is_in_the_cone_and_as_long_as_mezos(theta):
    net = qwen3()
    optimizer = ConMeZO(net.model, 1e-5, EPS, theta=theta)
    for _ in range(3):
        optimizer.step(net.closure, net.token_mask)
    m = torch.cat([optimizer.memory(each).reshape(-1) for each in optimizer.tuned])
    (directions, *_), _ = optimizer.directions(net.closure, net.token_mask, step=3)
    z = torch.cat([directions[each.parameter].dense().reshape(-1) for each in optimizer.tuned])
    d = m.numel()
    assert F.cosine_similarity(z, m, dim=0).item() == pytest.approx(
        math.cos(theta), abs=4 / math.sqrt(d)
    )
    assert z.norm().item() == pytest.approx(math.sqrt(d), rel=5 / math.sqrt(d))


@pytest.mark.parametrize("kind", [HiZOO, ConMeZO])
def test_a_copy_goes_on_as_the_original_does(kind):
    net = mlp()
    optimizer = kind(net.model, LR, EPS)
    optimizer.step(net.closure)
    state, before = optimizer.state_dict(), copy.deepcopy(net.model.state_dict())
    for _ in range(2):
        optimizer.step(net.closure)
    after = weights(net.model)
    net.model.load_state_dict(before)
    optimizer.load_state_dict(state)  # back to the memory of then
    for _ in range(2):
        optimizer.step(net.closure)
    assert all(w.equal(after[name]) for name, w in weights(net.model).items())


def test_a_run_of_conmezo_is_replayed_and_one_of_hizoo_is_not():
    one, other = mlp(), mlp()
    first, second = ConMeZO(one.model, LR, EPS), ConMeZO(other.model, LR, EPS)
    for _ in range(4):
        first.step(one.closure)
        assert first.projected_grad is not None
        second.replay(first.projected_grad)
    assert all(w.equal(weights(other.model)[name]) for name, w in weights(one.model).items())
    with pytest.raises(RuntimeError, match="curvature needs the losses"):
        HiZOO(one.model, LR, EPS).replay(torch.ones(1))


def large() -> nn.Module:
    """A model of more than 64 MiB; its weights are never written."""
    return nn.Sequential(torch.nn.utils.skip_init(nn.Linear, 130, 2**17)).eval()


@pytest.mark.parametrize(("kind", "what"), [(HiZOO, "a curvature"), (ConMeZO, "a momentum")])
def test_memory_as_large_as_the_model_is_refused_with_its_size(kind, what):
    model = large()
    wanted = (
        rf"large_state=False: {kind.__name__} keeps {what} for each weight: its state would take "
        r"0\.064 GiB in float32, for a model of 17,170,432 values .* allowed are up to 0\.0625 GiB "
        r"\(embeddings='frozen', fewer params\), or large_state=True"
    )
    with pytest.raises(ValueError, match=wanted):
        kind(model, LR, EPS)
    optimizer = kind(model, LR, EPS, large_state=True)
    assert optimizer.summary().state_bytes == 4 * 17_170_432


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (HiZOO, {"curvature_rate": 1.0}, r"curvature_rate=1.0: allowed are .* < 1.0"),
        (HiZOO, {"estimator": "one_sided"}, r"estimator='one_sided': allowed are two_sided"),
        (ConMeZO, {"theta": 0.0}, r"theta=0.0: allowed are .* > 0.0 and <= 1.57"),
        (ConMeZO, {"beta": 1.0}, r"beta=1.0: allowed are .* < 1.0"),
        (HiZOO, {"update": "adam"}, "update='adam': allowed are sgd, scalar, spread"),
        (ConMeZO, {"update": "momentum"}, "update='momentum': allowed are sgd, scalar, spread"),
        (ConMeZO, {"update": "rmsprop"}, "update='rmsprop': allowed are sgd, scalar, spread"),
        (ConMeZO, {"embeddings": "seen"}, "embeddings='seen': ConMeZO has a momentum for each row"),
    ],
)
def test_bad_settings_are_refused_by_name(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(mlp().model, LR, EPS, **options)
