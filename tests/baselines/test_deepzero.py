"""DeepZero: coordinates one by one, as many of each layer as zeroth-order scores say."""

from collections import Counter

import pytest
import torch

from agzo.directions.sparse import Sparse
from agzo.rng import Noise
from baselines import DeepZero
from baselines.reference import zo_grasp
from tests.networks import mlp, qwen3, weights

CPU = torch.device("cpu")


def make(net, calibrated=True, **options):
    optimizer = DeepZero(net.model, 1e-2, 1e-3, **{"queries": 5, "density": 0.5, **options})
    if calibrated:
        optimizer.calibrate([(net.closure, net.token_mask)])
    return optimizer


@pytest.mark.parametrize("network", [mlp, qwen3])
def test_the_scores_are_the_published_ones(network):
    """ZO-GraSP of the plain function, with the threshold found to a sixteenth of an octave."""
    ours, plain = network(torch.float64), network(torch.float64)
    optimizer = make(ours, score_queries=3)
    noise = [drawn(query) for query in range(3)]
    W = dict(plain.model.named_parameters())
    scores = zo_grasp(W, plain.closure, 1e-3, noise)
    every = torch.cat([each.reshape(-1) for each in scores.values()])
    threshold = every.sort(descending=True).values[every.numel() // 2 - 1]
    for name, score in scores.items():
        least, most = ((score >= threshold * f).sum().item() for f in (1.045, 0.955))
        assert least <= optimizer._zo["kept"][name] <= most, name
    assert optimizer.forwards == 2 * (3 + 1)


def drawn(query):
    noise = Noise(0, 0, query)
    return lambda name, w: noise.tensor(w.shape, CPU, f"{name}, score", "dense").double()


def test_a_layer_has_its_density_and_no_coordinate_comes_twice():
    net = qwen3()
    optimizer = make(net, queries=200, refresh_every=2)
    kept = optimizer._zo["kept"]
    total, seen = sum(kept.values()), set()
    for step in range(4):
        found = [(each.name, index) for each, index in optimizer.coordinates(step)]
        assert len(set(found)) == 200
        assert all(0 <= i < net.model.get_parameter(n).numel() for n, i in found)
        for name, count in Counter(name for name, _ in found).items():
            assert abs(count - 200 * kept[name] / total) < 1
        seen.add(tuple(found))
    assert len(seen) == 2


def test_a_step_is_the_gradient_on_its_coordinates():
    net = mlp(torch.float64)
    optimizer = make(net)
    chosen = optimizer.coordinates(0)
    before = weights(net.model)
    net.closure().backward()
    optimizer.step(net.closure)
    for name, parameter in net.model.named_parameters():
        assert parameter.grad is not None
        index = [i for each, i in chosen if each.name == name]
        moved = (parameter.detach() - before[name]).view(-1)
        wanted = torch.zeros_like(moved)
        wanted[index] = -1e-2 * parameter.grad.view(-1)[index]
        torch.testing.assert_close(moved, wanted, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("shape", [(), (7,), (5, 6), (3, 2, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_sparse_direction_is_its_rows(shape, dtype, monkeypatch):
    size = torch.Size(shape)
    index = torch.arange(0, size.numel(), 3)
    sparse = Sparse(size, index, torch.arange(1.0, len(index) + 1))
    dense = torch.zeros(size.numel())
    dense[index] = sparse.values
    assert sparse.dense().equal(dense.view(size))
    monkeypatch.setattr("agzo.rng.CHUNK", 6)
    assert sparse.dense().equal(dense.view(size))
    weight = torch.ones(size, dtype=dtype)
    sparse.add_to(weight, None, torch.tensor(-0.5), None)
    torch.testing.assert_close(weight, (1.0 - 0.5 * dense.view(size)).to(dtype))
    if len(size) != 2:
        return
    ids = torch.tensor([4, 0, 4])
    assert sparse.take(ids).equal(dense.view(size)[ids])
    x, y = torch.randn(4, 6).to(dtype), torch.zeros(4, 5, dtype=dtype)
    sparse.add_linear(y, x, 0.5)
    wanted = (x.double() @ dense.view(size).double().T * 0.5).to(dtype)
    torch.testing.assert_close(y, wanted, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 0.0}, "density=0.0: allowed are finite numbers > 0"),
        ({"density": 1.5}, "density=1.5: allowed are"),
        ({"score_queries": 0}, "score_queries=0: allowed are whole numbers >= 1"),
        ({"refresh_every": 0}, "refresh_every=0: allowed are whole numbers >= 1"),
        ({"queries": 99}, "queries=99: allowed with density=0.5 are up to 5"),
        ({"update": "sgd"}, "update='sgd': allowed are sum"),
        ({"embeddings": "seen"}, "embeddings='seen': allowed are tuned, frozen"),
    ],
)
def test_bad_settings_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        make(mlp(), **options)


def test_without_scores_there_is_no_step():
    net = mlp()
    with pytest.raises(RuntimeError, match="no scores yet; call calibrate"):
        make(net, calibrated=False).step(net.closure)


def test_scores_of_another_batch_draw_other_coordinates():
    net = mlp()
    optimizer = make(net)
    before = optimizer.coordinates(0)
    last = net.model.get_parameter("3.weight")
    optimizer.calibrate([(lambda: last.square().sum(), None)])
    after = optimizer.coordinates(0)
    state = optimizer.state_dict()
    fresh = make(net, calibrated=False)
    fresh.load_state_dict(state)
    places = [
        [(each.name, at) for each, at in some] for some in (before, after, fresh.coordinates(0))
    ]
    assert places[0] != places[1] == places[2]


def test_no_coordinate_is_measured_twice_where_few_can_still_move():
    net = mlp()
    optimizer = make(net)
    for name, parameter in net.model.named_parameters():
        parameter.requires_grad_(name == "3.bias")  # of three values
    with pytest.raises(ValueError, match="queries=5: the parameters that take part now, 1 of 6"):
        optimizer.step(net.closure)


def test_scores_that_are_not_finite_are_refused():
    net = mlp()
    optimizer = make(net, calibrated=False)
    with pytest.raises(ValueError, match=r"eps=0\.001: the losses beside W"):
        optimizer.calibrate([(lambda: net.closure() * torch.inf, None)])
    assert optimizer.must_calibrate
