"""What only a CUDA device can show of compiled layers: graphs replayed with new weights."""

import pytest
import torch

from agzo import AGZO
from agzo.execution.compiled import CompiledLayers
from baselines import LOZO, MeZO
from tests.experiments.probe.test_gpu import on_cuda, waiting_is_an_error
from tests.methods import METHODS, Method
from tests.networks import weights

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _cuda():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


def ends(method, dtype: torch.dtype, graphs: bool | None, steps: int):
    """Losses and weights behind some steps; graphs=None: eager."""
    net = on_cuda(dtype)
    optimizer = method(net)
    closure = net.closure
    if graphs is not None:
        closure = CompiledLayers(net.model, graphs=graphs).around(closure)
    losses = [optimizer.step(closure, net.token_mask) for _ in range(steps)]
    flat = torch.cat([w.flatten() for w in weights(net.model).values()])
    return torch.stack(losses), flat


@pytest.mark.parametrize("graphs", [False, True], ids=["compiled", "graphs"])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_they_give_the_trajectory_of_eager_layers(method: Method, graphs: bool):
    if "qwen3-tied" not in method.networks:
        pytest.skip("not one of the method's networks")

    def make(net):
        return method.make(net, eps=1e-2, lr=1e-4)

    found = ends(make, torch.float32, graphs, 8)
    torch.testing.assert_close(found, ends(make, torch.float32, None, 8), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [AGZO, LOZO, MeZO])
def test_graphs_are_the_same_run_every_time(method):
    def make(net):
        return method(net.model, lr=1e-3, eps=1e-2)

    first = ends(make, torch.bfloat16, True, 8)
    torch.compiler.reset()
    second = ends(make, torch.bfloat16, True, 8)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("graphs", [False, True], ids=["compiled", "graphs"])
@pytest.mark.parametrize("method", [AGZO, LOZO, MeZO])
def test_a_step_never_waits_for_the_device(method, graphs):
    net = on_cuda(torch.bfloat16)
    optimizer = method(net.model, lr=1e-3, eps=1e-2)
    closure = CompiledLayers(net.model, graphs=graphs).around(net.closure)
    for _ in range(4):  # compiled, warmed up and recorded
        optimizer.step(closure, net.token_mask)
    with waiting_is_an_error():
        for _ in range(4):
            optimizer.step(closure, net.token_mask)
