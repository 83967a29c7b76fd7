"""find_eps: a window by forwards alone, which a gradient confirms."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import agzo
from agzo import AGZO, find_eps
from agzo.activations.spectrum import gradients
from agzo.alignment import inner
from agzo.window import LIMIT, judged
from baselines import LOZO, MeZO, ZOAct
from tests.networks import Network, mlp, qwen3, weights

METHODS = [pytest.param(each, id=each.__name__) for each in (AGZO, MeZO, LOZO)]
ESTIMATORS = ["one_sided", "two_sided"]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("network", [mlp, qwen3], ids=lambda each: each.__name__)
def test_a_gradient_confirms_the_window(network, method, estimator):
    net: Network = network()
    before = weights(net.model)
    found = find_eps(
        net.model, net.closure, net.token_mask, method=method, estimator=estimator, directions=6
    )
    assert all(value.equal(before[name]) for name, value in weights(net.model).items())
    assert found.forwards == 2 + 6 * 2 * len(agzo.finder.EPS)
    assert found.lowest <= found.eps <= found.highest
    optimizer = method(net.model, lr=0.0, eps=found.eps, estimator=estimator)
    truth = gradients(net.closure, optimizer.tuned)
    pairs: list[tuple[float, float | None]] = []
    for step in range(6):
        directions, g = optimizer.estimate(net.closure, net.token_mask, step).queries[0]
        exact = inner(directions, {p: truth[p] for p in directions}).item()
        pairs.append((exact, g.item()))
    assert judged(pairs)["relative_error"] < LIMIT
    assert f"eps={found.eps:g} ({estimator}: usable" in str(found)


def test_a_one_sided_window_ends_below_a_two_sided_one_and_bfloat16_begins_above():
    ends = {}
    for estimator in ESTIMATORS:
        net = mlp()
        ends[estimator] = find_eps(net.model, net.closure, method=MeZO, estimator=estimator)
    assert ends["one_sided"].highest < ends["two_sided"].highest
    torch.manual_seed(0)
    x, y = torch.randn(64, 6), torch.randint(0, 3, (64,))
    lowest = []
    for dtype in (torch.float32, torch.bfloat16):
        model = mlp(dtype).model

        def closure(model: nn.Module = model, dtype: torch.dtype = dtype) -> Tensor:
            return F.cross_entropy(model(x.to(dtype)).float(), y)

        lowest.append(find_eps(model, closure, method=MeZO, estimator="two_sided").lowest)
    assert lowest[1] > 10 * lowest[0]


def test_what_it_refuses():
    net = mlp()
    with pytest.raises(ValueError, match=r"eps=\[0.001\]: allowed are two or more"):
        find_eps(net.model, net.closure, eps=[1e-3])
    with pytest.raises(ValueError, match="directions=1"):
        find_eps(net.model, net.closure, directions=1)
    with pytest.raises(ValueError, match="ZOAct looks at batches"):
        find_eps(mlp().model, net.closure, method=ZOAct)
    with pytest.raises(ValueError, match="no two neighbours agree"):
        find_eps(net.model, net.closure, eps=[1e-12, 1e-11, 1e-10])
    with pytest.raises(ValueError, match=r"none is usable|no two neighbours agree"):
        find_eps(net.model, net.closure, method=MeZO, estimator="one_sided", eps=[3.0, 3.1])
    with pytest.raises(ValueError, match="for the same weights"):
        find_eps(net.model, lambda: net.closure() + torch.rand(()))


def test_a_refused_method_leaves_the_model_as_it_was():
    net = qwen3()
    before = [(name, p.requires_grad) for name, p in net.model.named_parameters()]
    with pytest.raises(ValueError, match="ZOAct looks at batches before its first step"):
        find_eps(net.model, net.closure, method=ZOAct)
    assert [(name, p.requires_grad) for name, p in net.model.named_parameters()] == before
