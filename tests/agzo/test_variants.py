"""AGZO's switches beyond the paper: which bases a step uses, and how they are come by."""

import pytest
import torch
from torch import Tensor, nn

from agzo import AGZO, LowRank
from agzo.activations.subspace import leading, subspace_extract
from tests.networks import mlp, weights

# --- when bases are taken and used


class Batches:
    """A model and other batches at each step, with the bases that each batch gives by itself."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
        self.x = [torch.randn(20, 6) for _ in range(8)]

    def closure(self, step: int):
        return lambda: self.model(self.x[step]).square().mean()

    def leading(self, step: int) -> Tensor:
        return leading(self.x[step], 2)


@pytest.mark.parametrize("estimator", ["one_sided", "two_sided"])
@pytest.mark.parametrize(
    ("every", "source", "forwards"),  # of a two-sided step, from the first on
    [
        (1, [0, 1, 2, 3, 4, 5, 6], [3, 3, 3, 3, 3, 3, 3]),
        (3, [0, 0, 0, 3, 3, 3, 6], [3, 2, 2, 3, 2, 2, 3]),
        (None, [0, 0, 0, 0, 0, 0, 0], [3, 2, 2, 2, 2, 2, 2]),
    ],
)
def test_a_step_uses_the_bases_of_the_batch_it_should(every, source, forwards, estimator):
    """The first layer's input is the batch itself, so its bases do not depend on the weights."""
    batches = Batches()
    options = {"rank": 2, "basis": "exact", "refresh_every": every}
    optimizer = AGZO(batches.model, 1e-3, 1e-3, estimator=estimator, **options)
    before = 2  # the one-off check
    for step in range(7):
        optimizer.step(batches.closure(step))
        used = optimizer._subspace.bases["0.weight"]
        torch.testing.assert_close(used, batches.leading(source[step]))
        wanted = forwards[step] if estimator == "two_sided" else 2
        assert optimizer.forwards - before == wanted == optimizer.forwards_of_step(step)
        before = optimizer.forwards


def test_an_optimizer_without_bases_can_look_at_any_step():
    net = mlp()
    optimizer = AGZO(net.model, 1e-3, 1e-3, estimator="two_sided", refresh_every=None)
    ((directions, _),) = optimizer.estimate(net.closure, step=17).queries
    inside = [
        each.name for each in optimizer.tuned if isinstance(directions[each.parameter], LowRank)
    ]
    assert inside == ["0.weight", "3.weight"]


# --- exact leading directions


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [12, 200])
@pytest.mark.parametrize("masked", [False, True])
def test_exact_directions_are_the_singular_vectors(tokens, dtype, masked, monkeypatch):
    monkeypatch.setattr("agzo.activations.subspace.COPY", 1000)  # the larger comes in parts
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, 40, generator=generator) * 0.8 ** torch.arange(40)
    x = (x + 30.0).to(dtype)  # one direction far ahead of the others, as in a language model
    keep = torch.arange(tokens) % 3 != 0 if masked else None
    real = x if keep is None else x[keep]
    wanted = torch.linalg.svd(real.double(), full_matrices=False).Vh[:4].T
    found = leading(x, 4, keep)
    assert found.dtype == torch.float32
    cosines = (found.double() * wanted).sum(0).abs()
    torch.testing.assert_close(cosines, torch.ones_like(cosines), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.T @ found, torch.eye(4), atol=1e-5, rtol=0)


def test_power_iteration_approaches_the_exact_directions():
    x = torch.randn(100, 20, generator=torch.Generator().manual_seed(0))
    omega = torch.randn(100, 2, generator=torch.Generator().manual_seed(1))
    exact = leading(x, 2)
    held = [(exact.T @ subspace_extract(x, omega, k)).norm() for k in (0, 3, 300)]
    assert held[0] < held[1] < held[2]
    assert held[2] == pytest.approx(2**0.5, abs=1e-4)


def test_exact_directions_of_fewer_independent_tokens_are_orthonormal():
    x = torch.ones(6, 10)
    x[0] = 2.0
    torch.testing.assert_close(leading(x, 3).T @ leading(x, 3), torch.eye(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("estimator", ["one_sided", "two_sided"])
def test_exact_bases_of_a_broken_batch_freeze_the_weights(bad, estimator):
    batches = Batches()
    optimizer = AGZO(batches.model, 1e-3, 1e-3, basis="exact", estimator=estimator)
    optimizer.step(batches.closure(0))
    before = weights(batches.model)
    batches.x[1][3, 2] = bad
    optimizer.step(batches.closure(1))
    assert not optimizer.finite
    assert all(p.equal(before[n]) for n, p in batches.model.named_parameters())


# --- cheaper bases


def test_a_warm_start_comes_to_the_leading_directions_over_the_steps():
    """One iteration a step on one batch, each from the basis before, is the power iteration."""
    net = mlp()
    leading_ones = AGZO(net.model, 0.0, 1e-3, rank=2, basis="exact")
    leading_ones.step(net.closure, net.token_mask)
    optimizer = AGZO(net.model, 0.0, 1e-3, rank=2, power_steps=1, warm_start=True)
    overlaps = []
    for _ in range(30):
        optimizer.step(net.closure, net.token_mask)
        overlaps.append(
            min(
                torch.linalg.svdvals(exact.T @ optimizer._subspace.bases[name]).min().item()
                for name, exact in leading_ones._subspace.bases.items()
            )
        )
    assert overlaps[0] < overlaps[-1]
    assert overlaps[-1] > 0.999


# --- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"basis": "svd"}, "basis='svd': allowed are power, exact"),
        ({"basis": "exact", "warm_start": True}, "warm_start=True: allowed is False with"),
        ({"refresh_every": 0}, r"refresh_every=0: .* numbers >= 1, or None \(one-shot\)"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        AGZO(mlp().model, 1e-3, 1e-3, **options)


@pytest.mark.parametrize(
    "change",
    [
        {"basis": "exact"},
        {"warm_start": True},
        {"refresh_every": None},
        {"update": "momentum", "large_state": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_state_of_another_variant_is_refused(change):
    state = AGZO(mlp().model, 1e-3, 1e-3).state_dict()
    key = next(iter(change))
    with pytest.raises(ValueError, match=f"{key}=.*: allowed is .*, as when the loaded state"):
        AGZO(mlp().model, 1e-3, 1e-3, **change).load_state_dict(state)


def test_a_state_with_a_setting_that_is_no_more_is_refused():
    optimizer = AGZO(mlp().model, 1e-3, 1e-3)
    state = optimizer.state_dict()
    state["state"]["zo"]["settings"] = {**state["state"]["zo"]["settings"], "lagged": True}
    with pytest.raises(ValueError, match=r"lagged=True: .* this AGZO has no lagged"):
        optimizer.load_state_dict(state)
