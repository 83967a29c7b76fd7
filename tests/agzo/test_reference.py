"""The methods against the plain functions that state them, over many steps, in float64."""

import pytest
import torch
from torch import nn

from agzo import AGZO, reference
from agzo.rng import Noise
from agzo.tuned.select import roles
from baselines import LOZO, MeZO
from tests.networks import NETWORKS, weights

LR, EPS, STEPS, NU = 1e-3, 1e-3, 7, 3
CPU = torch.device("cpu")


def drawn(step: int):
    """The library's own numbers of a step."""
    noise = Noise(0, step)

    def normal(name: str, shape: tuple[int, ...], role: str) -> torch.Tensor:
        if role == "left":
            return noise.columns(*shape, CPU, name, role).double()
        return noise.tensor(shape, CPU, name, role).double()

    return normal


def compare(kind, network, step_of_reference, tolerance=1e-6, **options):
    """Take the same steps by a method and by its reference; compare slopes and weights.

    Factors and bases are float32 in the method, also of a float64 model.
    """
    ours, plain = NETWORKS[network](torch.float64), NETWORKS[network](torch.float64)
    optimizer = kind(ours.model, LR, EPS, **options)
    for step in range(STEPS):
        g = step_of_reference(plain, step)
        optimizer.step(ours.closure, ours.token_mask)
        assert optimizer.projected_grad.item() == pytest.approx(g, rel=tolerance, abs=tolerance)
    after = weights(plain.model)
    for name, weight in weights(ours.model).items():
        torch.testing.assert_close(weight, after[name], rtol=tolerance, atol=tolerance)


networks = pytest.mark.parametrize("network", ["mlp", "qwen3-tied", "llama-untied", "opt-tied"])


@networks
@pytest.mark.parametrize("execution", ["side_branch", "in_place", "batched"])
def test_mezo(network, execution):
    def step(net, number):
        W = dict(net.model.named_parameters())
        return reference.mezo(W, net.closure, LR, EPS, drawn(number))

    compare(MeZO, network, step, execution=execution)


@networks
def test_lozo(network):
    def step(net, number):
        W = dict(net.model.named_parameters())
        first = Noise(0, number - number % NU)
        V = {
            name: first.columns(w.shape[1], 2, CPU, name, "right").double()
            for name, w in W.items()
            if w.dim() == 2
        }
        return reference.lozo(W, net.closure, LR, EPS, drawn(number), 2, V)

    compare(LOZO, network, step, 1e-4, rank=2, refresh_every=NU)


@networks
@pytest.mark.parametrize("rank", [1, 2])
def test_agzo(network, rank):
    def step(net, number):
        W = dict(net.model.named_parameters())
        role = roles(net.model)
        layers = {
            f"{name}.weight": module
            for name, module in net.model.named_modules()
            if isinstance(module, nn.Linear) and role[module.weight] == "linear"
        }
        mask = net.token_mask
        normal, noise, leaders = drawn(number), Noise(0, number), {}

        def with_omega(name, shape, kind):
            """Omega of the first layer that an input enters, row by row of the whole batch."""
            if kind != "omega":
                return normal(name, shape, kind)
            leader = leaders.setdefault(first_of(name), name)
            rows = (20, 1) if mask is None else mask.shape
            table = noise.table(*rows, shape[1], CPU, leader).reshape(-1, shape[1])
            return table if mask is None else table[mask.reshape(-1)]

        real = None if mask is None else mask.reshape(-1)
        return reference.agzo(W, net.closure, LR, EPS, with_omega, rank, 3, layers, real)

    compare(AGZO, network, step, 1e-3, rank=rank)


def first_of(name: str) -> str:
    """Name the input of a layer: q, k and v have one, gate and up have one."""
    shared = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "gu", "up_proj": "gu"}
    head, _, last = name.removesuffix(".weight").rpartition(".")
    return f"{head}.{shared.get(last, last)}"
