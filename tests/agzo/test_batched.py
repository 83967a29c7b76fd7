"""Two points in one pass: the numbers of one after the other, for every two-sided method."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from agzo import AGZO, rng
from baselines import LOZO, MeZO
from tests.methods import METHODS, Method, slow_for_the_field
from tests.networks import mlp, qwen3, weights

TWO_SIDED = [
    replace(method, options={**method.options, "estimator": "two_sided"})
    for method in METHODS
    if method.pieces == 1
]


def flat(net) -> torch.Tensor:
    return torch.cat([w.flatten() for w in weights(net.model).values()])


@pytest.mark.parametrize("method", slow_for_the_field(TWO_SIDED))
@pytest.mark.parametrize(
    "network",
    ["qwen3-tied", pytest.param("opt-tied", marks=pytest.mark.slow), "llama-untied", "mlp"],
)
def test_both_at_once_is_one_after_the_other(method: Method, network: str):
    if method.networks and network not in method.networks:
        pytest.skip("not one of the method's networks")
    ends = []
    for execution in ("side_branch", "batched"):
        net = method.network(network, torch.float64)
        optimizer = method.make(net, lr=1e-4, execution=execution)
        losses = [optimizer.step(net.closure, net.token_mask) for _ in range(8)]
        ends.append((torch.stack(losses), flat(net), torch.tensor(optimizer.forwards)))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", [MeZO, LOZO])
def test_in_lower_precision_it_is_as_close_as_its_rounding(method, dtype):
    found = []
    for execution in ("side_branch", "batched"):
        net = qwen3(dtype)
        optimizer = method(net.model, lr=0.0, eps=1e-2, execution=execution)
        optimizer.step(net.closure, net.token_mask)
        found.append(optimizer.projected_grad)
    atol = 1e-4 if dtype == torch.float32 else 1.0  # a loss of 4 has a spacing of 2^-6 / 2 eps
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=atol)


def test_dense_noise_comes_in_chunks(monkeypatch):
    found = []
    for chunk in (1 << 20, 24):
        monkeypatch.setattr(rng, "CHUNK", chunk)
        net = mlp(torch.float64)
        optimizer = MeZO(net.model, lr=1e-2, eps=1e-3, execution="batched")
        for _ in range(3):
            optimizer.step(net.closure)
        found.append(flat(net))
    torch.testing.assert_close(found[0], found[1])


def test_weights_are_left_as_they_were_also_when_the_closure_fails():
    net = qwen3()
    before = flat(net).clone()

    def closure():
        net.closure()
        raise KeyError("mine")

    optimizer = MeZO(net.model, lr=1e-2, eps=1e-2, execution="batched")
    with pytest.raises(KeyError, match="mine"):
        optimizer.step(closure)
    assert flat(net).equal(before)
    assert optimizer._execution.points == 1


def test_a_closure_that_reads_its_values_is_refused():
    model = nn.Linear(3, 1)
    x = torch.randn(5, 3)

    def closure():
        loss = model(x).square().mean()
        return loss if loss.item() > 0 else -loss

    optimizer = MeZO(model, lr=1e-2, eps=1e-2, execution="batched")
    with pytest.raises(ValueError, match=r"execution=.batched.: .* allowed is side_branch"):
        optimizer.step(closure)


def test_the_evaluation_of_a_basis_stays_alone():
    net = qwen3()
    optimizer = AGZO(net.model, lr=1e-3, eps=1e-2, estimator="two_sided", execution="batched")
    calls = []
    optimizer.step(lambda: calls.append(optimizer._execution.points) or net.closure())
    assert calls == [1, 1, 1, 2]  # the check's two, the captured one, both
    assert optimizer.forwards == 5


def test_resumed_runs_are_bit_identical():
    ends = []
    for stops in (False, True):
        net = qwen3()
        optimizer = MeZO(net.model, lr=1e-3, eps=1e-2, execution="batched")
        for _ in range(3):
            optimizer.step(net.closure)
        if stops:
            state = optimizer.state_dict()
            optimizer = MeZO(net.model, lr=1e-3, eps=1e-2, execution="batched")
            optimizer.load_state_dict(state)
        for _ in range(3):
            optimizer.step(net.closure)
        ends.append(flat(net))
    assert ends[0].equal(ends[1])
