"""The methods of `baselines` against the plain functions that state them, in float64."""

import pytest
import torch
from torch import Tensor, nn

from agzo.directions.direction import Signs
from agzo.directions.orthonormal import haar
from agzo.rng import Noise
from baselines import FZOO, ConMeZO, HiZOO, MeZO, SubZero, ZOMuon, reference
from tests.networks import NETWORKS, Network, weights

LR, EPS, STEPS = 1e-3, 1e-3, 7
CPU = torch.device("cpu")
networks = pytest.mark.parametrize("network", ["mlp", "qwen3-tied", "llama-untied", "opt-tied"])


def W(net: Network) -> dict[str, nn.Parameter]:
    return dict(net.model.named_parameters())


def dense(step: int, query: int = 0):
    """The library's own Gaussian numbers."""
    noise = Noise(0, step, query)
    return lambda name, w: noise.tensor(w.shape, CPU, name, "dense").double()


def signs(step: int, query: int):
    """The library's own signs."""

    def of(name: str, w: nn.Parameter) -> Tensor:
        return Signs(Noise(0, step, query), name, w.shape, CPU).dense().double()

    return of


def compare(kind, network, step_of_reference, lr=LR, tolerance=1e-6, **options):
    """Take the same steps by a method and by its reference; compare slopes and weights."""
    ours, plain = NETWORKS[network](torch.float64), NETWORKS[network](torch.float64)
    optimizer = kind(ours.model, lr, EPS, **options)
    for step in range(STEPS):
        slopes = step_of_reference(plain, step)
        optimizer.step(ours.closure, ours.token_mask)
        wanted = torch.tensor(slopes, dtype=torch.float64).reshape(-1)
        torch.testing.assert_close(optimizer.projected_grad, wanted, rtol=tolerance, atol=tolerance)
    after = weights(plain.model)
    for name, weight in weights(ours.model).items():
        torch.testing.assert_close(weight, after[name], rtol=tolerance, atol=tolerance)


@networks
@pytest.mark.parametrize("execution", ["side_branch", "in_place"])
def test_fzoo(network, execution):
    def step(net, number):
        u = [signs(number, query) for query in range(4)]
        return reference.fzoo(W(net), net.closure, LR * EPS, EPS, u)

    compare(FZOO, network, step, lr=LR * EPS, queries=4, execution=execution)


@networks
@pytest.mark.parametrize("execution", ["side_branch", "batched"])
def test_hizoo(network, execution):
    H: dict[str, Tensor] = {}

    def step(net, number):
        return reference.hizoo(W(net), net.closure, LR, EPS, dense(number), 0.1, H)

    compare(HiZOO, network, step, tolerance=1e-4, curvature_rate=0.1, execution=execution)


@networks
def test_conmezo(network):
    m: dict[str, Tensor] = {}

    def step(net, number):
        return reference.conmezo(W(net), net.closure, LR, EPS, dense(number), 1.2, 0.9, m)

    compare(ConMeZO, network, step, tolerance=1e-5, theta=1.2, beta=0.9)


@networks
def test_subzero(network):
    rank, every = 2, 3

    def step(net, number):
        first = Noise(0, number - number % every)
        matrices = {name: w for name, w in W(net).items() if w.dim() == 2}
        U, V = (
            {
                name: haar(first.columns(w.shape[side], rank, CPU, name, f"orthonormal-{which}"))
                for name, w in matrices.items()
            }
            for side, which in enumerate(("left", "right"))
        )

        def core(query):
            noise = Noise(0, number, query)
            return lambda name, w: (
                noise.columns(rank, rank, CPU, name, "core").double()
                if name in matrices
                else noise.tensor(w.shape, CPU, name, "dense").double()
            )

        U, V = ({name: each.double() for name, each in side.items()} for side in (U, V))
        return reference.subzero(
            W(net), net.closure, LR, EPS, [core(query) for query in range(3)], U, V
        )

    compare(SubZero, network, step, tolerance=1e-4, rank=rank, refresh_every=every, queries=3)


@networks
def test_zo_muon(network):
    rank, every = 2, 3

    def step(net, number):
        first = Noise(0, number - number % every)
        P = {
            name: haar(first.columns(w.shape[0], rank, CPU, name, "orthonormal-left")).double()
            for name, w in W(net).items()
            if w.dim() == 2
        }

        def psi(query):
            noise = Noise(0, number, query)
            return lambda name, w: (
                noise.columns(w.shape[1], rank, CPU, name, "psi").T.double()
                if name in P
                else noise.tensor(w.shape, CPU, name, "dense").double()
            )

        Psi = [psi(query) for query in range(4)]
        return reference.zo_muon(W(net), net.closure, LR, EPS, Psi, P, 0.1)

    compare(ZOMuon, network, step, 1e-3, rank=rank, refresh_every=every, vector_rate=0.1)


@networks
def test_meazo_is_mezo_with_update_scalar(network):
    state: dict[str, float] = {}

    def step(net, number):
        return reference.meazo(W(net), net.closure, LR, EPS, dense(number), 0.9, state)

    compare(MeZO, network, step, update="scalar", beta2=0.9)
