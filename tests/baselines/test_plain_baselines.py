"""The methods of `baselines` against the plain functions that state them, in float64."""

import math

import pytest
import torch
from torch import Tensor, nn

from agzo.directions.direction import Signs
from agzo.directions.orthonormal import haar
from agzo.distributed.pieces import Piece
from agzo.rng import Noise
from baselines import AIMZO, FZOO, GRZO, ConMeZO, DeepZero, HiZOO, MeZO, SubZero, ZOMuon, reference
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


def whole(net: Network):
    return net.closure, net.token_mask


def compare(kind, network, step_of_reference, lr=LR, tolerance=1e-6, batch=whole, **options):
    """Take the same steps by a method and by its reference; compare slopes and weights."""
    ours, plain = NETWORKS[network](torch.float64), NETWORKS[network](torch.float64)
    optimizer = kind(ours.model, lr, EPS, **options)
    for step in range(STEPS):
        slopes = step_of_reference(plain, step)
        optimizer.step(*batch(ours))
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


@pytest.mark.parametrize("network", ["mlp", "llama-untied"])
def test_aim_zo(network):
    """Layers that are fed by one tensor share Q, that of the first of them."""
    K, k, h, T = 5, 4, 2, 4
    first = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
    Q: dict[str, Tensor] = {}

    def step(net, number):
        linear = {n: m for n, m in net.model.named_modules() if isinstance(m, nn.Linear)}
        if not Q:
            for n, m in linear.items():
                shared = ".".join(first.get(part, part) for part in n.split(".")) + ".weight"
                drawn = Noise(0, number).columns(m.in_features, K, CPU, shared, "tracked")
                Q[f"{n}.weight"] = haar(drawn).double()

        def inputs():
            seen = {}

            def hook(name):
                def look(module, given):
                    x = given[0]
                    if net.token_mask is not None and x.shape[:-1] == net.token_mask.shape:
                        x = x[net.token_mask]
                    seen[name] = x.reshape(-1, x.shape[-1]).T

                return look

            hooks = [m.register_forward_pre_hook(hook(f"{n}.weight")) for n, m in linear.items()]
            net.closure()
            for each in hooks:
                each.remove()
            return seen

        def probe(query):
            noise = Noise(0, number, query)

            def draw(name, w):
                if name not in Q:
                    return noise.tensor(w.shape, CPU, name, "dense").double()
                tail = noise.columns(K - h, 1, CPU, name, "tail")[:, 0].argsort()[: k - h]
                a = noise.columns(w.shape[0], 1, CPU, name, "a")[:, 0].double()
                b = noise.columns(k, 1, CPU, name, "b")[:, 0].double()
                return a, b, torch.cat([torch.arange(h), h + tail])

            return draw

        eps = EPS * (0.25 + 0.375 * (1 + math.cos(math.pi * min(number / T, 1))))
        probes = [probe(query) for query in range(3)]
        return reference.aim_zo(W(net), net.closure, LR, eps, Q, 0.3, probes, inputs)

    options = {"rank": K, "active": k, "leading": h, "eps_steps": T, "queries": 3}
    compare(AIMZO, network, step, tolerance=1e-4, **options)


@pytest.mark.parametrize(
    ("network", "execution"),
    [("mlp", "side_branch"), ("qwen3-tied", "in_place"), ("opt-tied", "side_branch")],
)
def test_grzo(network, execution):
    examples = range(3)

    def losses(net):
        return [lambda power=i + 1: net.closure() ** power for i in examples]

    def step(net, number):
        def flip(example):
            noise = Noise(0, number, example)

            def of(name, w):
                r = Signs(noise, f"{name}, r", w.shape[:1], CPU).dense().double()
                return r, Signs(noise, f"{name}, s", w.shape[1:], CPU).dense().double()

            return of

        flips = [flip(example) for example in examples]
        return reference.grzo(W(net), losses(net), 2 * LR * EPS, EPS, dense(number), flips)

    def batch(net):
        return ([Piece(each, net.token_mask) for each in losses(net)],)

    options = {"lr": LR * EPS, "batch": batch, "accumulation": 3, "execution": execution}
    compare(GRZO, network, step, tolerance=1e-5, **options)


@networks
def test_deepzero(network):
    """Slopes, and where they are applied; how coordinates are found has tests of its own."""
    drawing = []

    def kind(model, lr, eps):
        optimizer = DeepZero(model, lr, eps, queries=6, density=0.5, refresh_every=2)
        net = NETWORKS[network](torch.float64)
        own = DeepZero(net.model, lr, eps, queries=6, density=0.5, refresh_every=2)
        own.calibrate([(net.closure, net.token_mask)])
        optimizer._zo["kept"] = own._zo["kept"]
        drawing.append(own)
        return optimizer

    def step(net, number):
        if not drawing:
            kind(net.model, LR, EPS)
        S = [(each.name, index) for each, index in drawing[0].coordinates(number)]
        return reference.deepzero(W(net), net.closure, LR, EPS, S)

    compare(kind, network, step)


@networks
def test_meazo_is_mezo_with_update_scalar(network):
    state: dict[str, float] = {}

    def step(net, number):
        return reference.meazo(W(net), net.closure, LR, EPS, dense(number), 0.9, state)

    compare(MeZO, network, step, update="scalar", beta2=0.9)
