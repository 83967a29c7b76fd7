"""Compiled decoder layers: the numbers of the eager ones, for every method."""

import pytest
import torch

from agzo.compiled import CompiledLayers
from tests.methods import METHODS, Method
from tests.networks import weights


def flat(net) -> torch.Tensor:
    return torch.cat([w.flatten() for w in weights(net.model).values()])


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("network", ["qwen3-tied", "opt-tied", "llama-untied"])
def test_compiled_layers_give_the_trajectory_of_eager_ones(method: Method, network: str):
    if network not in method.networks:
        pytest.skip("not one of the method's networks")
    ends = []
    for compiled in (False, True):
        net = method.network(network, torch.float64)
        optimizer = method.make(net, lr=1e-4)
        closure = net.closure
        if compiled:
            layers = CompiledLayers(net.model)

            def closure(plain=net.closure, layers=layers):
                with layers:
                    return plain()

        losses = [optimizer.step(closure, net.token_mask) for _ in range(6)]
        ends.append((torch.stack(losses), flat(net), torch.tensor(optimizer.forwards)))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-6, atol=1e-8)
