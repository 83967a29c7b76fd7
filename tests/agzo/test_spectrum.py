"""Exact spectra of layer inputs, and the collectors of inputs and gradients."""

import pytest
import torch
from torch import Tensor, nn

from agzo.activations.spectrum import gradients, inputs, spectrum
from agzo.tuned.select import select
from tests.networks import NETWORKS, mlp


def test_spectrum_is_the_singular_value_decomposition():
    x = torch.randn(9, 5)
    found = spectrum(x)
    values = torch.linalg.svdvals(x.double())
    torch.testing.assert_close(found.values, values)
    torch.testing.assert_close((found.left * found.values) @ found.right.T, x.double())
    for vectors in (found.left, found.right):
        eye = torch.eye(5, dtype=torch.float64)
        torch.testing.assert_close(vectors.T @ vectors, eye)
    assert found.values.dtype == torch.float64
    assert found.right.shape == (5, 5)
    assert found.left.shape == (9, 5)


def test_fewer_tokens_than_width():
    found = spectrum(torch.randn(3, 8))
    assert found.values.shape == (3,)
    assert found.right.shape == (8, 3)
    assert found.rank == 3


def test_basis_keeps_most_energy_and_is_orthonormal():
    x = torch.randn(20, 6)
    found = spectrum(x)
    basis = found.basis(2)
    torch.testing.assert_close(basis.T @ basis, torch.eye(2, dtype=torch.float64))
    kept = (x.double() @ basis).square().sum()
    assert kept.item() == pytest.approx(found.values[:2].square().sum().item())
    other = torch.linalg.qr(torch.randn(6, 2, dtype=torch.float64)).Q
    assert kept > (x.double() @ other).square().sum()


def test_energy_sums_to_one_and_falls():
    energy = spectrum(torch.randn(7, 4)).energy()
    assert energy.sum().item() == pytest.approx(1.0)
    assert (energy.diff() <= 0).all()


@pytest.mark.parametrize("rank", [1, 3])
def test_rank_of_a_rank_deficient_input(rank):
    x = (torch.randn(30, rank) @ torch.randn(rank, 8)).float()
    assert spectrum(x).rank == rank
    assert spectrum(torch.randn(30, 8)).rank == 8


def test_rows_of_the_gradient_lie_in_the_span_of_the_inputs():
    """Eq. 9: with two tokens the gradient lies in two directions."""
    layer = nn.Linear(6, 4, bias=False)
    x = torch.randn(2, 6)
    tuned, _ = select(layer, None, "tuned")
    gradient = gradients(lambda: layer(x).cosh().sum(), tuned)[layer.weight].double()
    basis = spectrum(x).basis(2)
    torch.testing.assert_close(gradient @ basis @ basis.T, gradient, atol=1e-5, rtol=0)


@pytest.mark.parametrize("network", NETWORKS)
def test_inputs_are_what_forward_hooks_see(network):
    net = NETWORKS[network]()
    wanted = [t for t in select(net.model, None, "tuned")[0] if t.role == "linear"]
    seen: dict[str, Tensor] = {}
    handles = [
        module.register_forward_pre_hook(
            lambda _, args, name=name: seen.setdefault(f"{name}.weight", args[0].detach().clone())
        )
        for name, module in net.model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    with torch.no_grad():
        net.closure()
    for handle in handles:
        handle.remove()
    found = inputs(net.closure, wanted)
    assert found.keys() == {t.name for t in wanted}
    for name, x in found.items():
        assert torch.equal(x, seen[name]), name


def test_inputs_takes_the_wanted_layers_alone_and_no_graph():
    net = mlp()
    wanted = [t for t in select(net.model, None, "tuned")[0] if t.name == "3.weight"]
    found = inputs(net.closure, wanted)
    assert list(found) == ["3.weight"]
    assert not found["3.weight"].requires_grad


def test_gradients_are_those_of_backward_and_leave_grad_alone():
    net = mlp()
    tuned, _ = select(net.model, None, "tuned")
    kept = torch.full_like(tuned[0].parameter, 7.0)
    tuned[0].parameter.grad = kept
    with torch.no_grad():  # as inside an optimizer's step
        found = gradients(net.closure, tuned)
    assert tuned[0].parameter.grad is kept
    assert kept.eq(7.0).all()
    assert all(t.parameter.grad is None for t in tuned[1:])
    tuned[0].parameter.grad = None
    net.closure().backward()
    for each in tuned:
        assert torch.equal(found[each.parameter], each.parameter.grad)
