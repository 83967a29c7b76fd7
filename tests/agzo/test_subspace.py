"""SubspaceExtract against the exact singular vectors, and the capture that feeds it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from agzo import AGZO, subspace_extract
from agzo.activations import subspace
from agzo.activations.capture import ActivationCapture
from agzo.rng import Noise
from agzo.tuned.select import select
from tests.networks import opt, qwen3


def activations(tokens: int, width: int, decay: float = 0.5) -> torch.Tensor:
    """Random activations with singular values decay**i."""
    generator = torch.Generator().manual_seed(0)
    u = torch.linalg.qr(torch.randn(tokens, min(tokens, width), generator=generator)).Q
    v = torch.linalg.qr(torch.randn(width, min(tokens, width), generator=generator)).Q
    return (u * decay ** torch.arange(min(tokens, width))) @ v.T


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_spans_the_leading_singular_directions(rank):
    x = activations(50, 20)
    omega = torch.randn(50, rank, generator=torch.Generator().manual_seed(1))
    basis = subspace_extract(x, omega, power_steps=6)
    exact = torch.linalg.svd(x, full_matrices=False).Vh[:rank].T
    cosines = torch.linalg.svdvals(exact.T @ basis)
    assert cosines.min() > 1 - 1e-5


def test_three_power_steps_are_close_and_none_is_worse():
    x = activations(50, 20, decay=0.8)
    omega = torch.randn(50, 1, generator=torch.Generator().manual_seed(1))
    exact = torch.linalg.svd(x, full_matrices=False).Vh[0]
    alignment = [(exact @ subspace_extract(x, omega, k))[0].abs() for k in (0, 1, 3, 20)]
    assert alignment == sorted(alignment)
    assert alignment[-1] > 0.999


@given(tokens=st.integers(1, 30), width=st.integers(1, 20), rank=st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_columns_are_orthonormal(tokens, width, rank):
    rank = min(rank, tokens, width)
    x = torch.randn(tokens, width)
    basis = subspace_extract(x, torch.randn(tokens, rank), power_steps=3)
    assert basis.shape == (width, rank)
    assert basis.dtype == torch.float32
    torch.testing.assert_close(basis.T @ basis, torch.eye(rank), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("masked", [False, True])
def test_an_input_read_in_parts_gives_the_same_basis(dtype, masked, monkeypatch):
    x = activations(50, 20, decay=0.7).to(dtype)
    omega = torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    keep = torch.arange(50) % 3 != 0 if masked else None
    whole = subspace_extract(x, omega, 3, keep)
    assert torch.equal(whole, subspace_extract(x.float(), omega, 3, keep))
    for copy in (7 * 20, 49 * 20, 1):  # parts of 7, 49 and one token
        monkeypatch.setattr(subspace, "COPY", copy)
        parts = subspace_extract(x, omega, 3, keep)
        torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)


def test_masked_tokens_do_not_count():
    x = activations(40, 10)
    keep = torch.arange(40) % 3 != 0
    omega = torch.randn(40, 2)
    masked = subspace_extract(x, omega, 3, keep)
    alone = subspace_extract(x[keep], omega[keep], 3)
    torch.testing.assert_close(masked @ masked.T, alone @ alone.T, atol=1e-5, rtol=0)


def capture(net, rank=1, mask=None):
    tuned, _ = select(net.model, None, "tuned")
    linear = [each for each in tuned if each.role == "linear"]
    watch = ActivationCapture(linear, rank, 3, Noise(0, 0), mask)
    with torch.no_grad(), watch:
        net.closure()
    return watch.bases


def test_layers_fed_by_one_tensor_share_one_basis():
    bases = capture(qwen3())
    layer = "model.layers.0."
    assert bases[layer + "self_attn.q_proj.weight"] is bases[layer + "self_attn.k_proj.weight"]
    assert bases[layer + "self_attn.q_proj.weight"] is bases[layer + "self_attn.v_proj.weight"]
    assert bases[layer + "mlp.gate_proj.weight"] is bases[layer + "mlp.up_proj.weight"]
    distinct = {id(basis) for basis in bases.values()}
    assert len(bases) == 14
    assert len(distinct) == 8  # q/k/v, o, gate/up, down in each of two layers
    assert not any("embed" in name or "lm_head" in name for name in bases)


def test_an_untied_head_gets_a_basis_and_a_tied_one_does_not():
    assert "lm_head.weight" in capture(qwen3(tied=False))
    assert "lm_head.weight" not in capture(qwen3(tied=True))


def test_a_reused_address_is_not_a_shared_input():
    """Two inputs that live one after the other at one address get bases of their own."""
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    model = nn.ModuleList([first, second])
    tuned, _ = select(model, None, "tuned")
    for _ in range(20):
        watch = ActivationCapture(tuned, 1, 3, Noise(0, 0), None)
        with torch.no_grad(), watch:
            first(torch.eye(4)[:1].repeat(5, 1))  # freed on return
            second(torch.eye(4)[1:2].repeat(5, 1))
        assert watch.bases["0.weight"][0].abs() > 0.99
        assert watch.bases["1.weight"][1].abs() > 0.99


def test_no_activation_outlives_its_basis():
    import gc
    import weakref

    layer = nn.Linear(4, 4)
    tuned, _ = select(layer, lambda name, p: name == "weight", "tuned")
    watch = ActivationCapture(tuned, 1, 3, Noise(0, 0), None)
    with torch.no_grad(), watch:
        x = torch.randn(8, 4)
        alive = weakref.ref(x)
        layer(x)
        del x
        gc.collect()
        assert alive() is None


def test_padding_is_left_out_unless_asked_for():
    net = qwen3()
    with_mask = capture(net, mask=net.token_mask)
    without = capture(net, mask=None)
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.allclose(with_mask[name].abs(), without[name].abs(), atol=1e-4)
    for include, expected in ((False, with_mask), (True, without)):
        optimizer = AGZO(net.model, lr=0.0, eps=1e-3, include_padding=include)
        optimizer.step(net.closure, net.token_mask)
        assert optimizer._subspace.bases[name].equal(expected[name])


def test_a_tensor_changed_in_place_is_not_a_shared_input():
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    tuned, _ = select(nn.ModuleList([first, second]), None, "tuned")
    watch = ActivationCapture(tuned, 1, 3, Noise(0, 0), None)
    with torch.no_grad(), watch:
        x = torch.eye(4)[:1].repeat(5, 1)
        first(x)
        x[:, 0], x[:, 1] = 0.0, 1.0
        second(x)
    assert watch.bases["0.weight"][0].abs() > 0.99
    assert watch.bases["1.weight"][1].abs() > 0.99


@pytest.mark.parametrize("network", [qwen3, opt])
def test_bases_do_not_depend_on_what_the_padding_is(network):
    """OPT flattens batch and sequence before its feed-forward layers; the mask reaches them too."""
    found = []
    for pad in (1, 2):
        net = network()
        ids = torch.tensor([[pad, pad, 5, 6, 7], [8, 9, 10, 11, 12]])
        mask = ids > 2
        position_ids = (mask.long().cumsum(1) - 1).clamp(min=0)
        tuned, _ = select(net.model, None, "tuned")
        linear = [each for each in tuned if each.role == "linear"]
        watch = ActivationCapture(linear, 1, 3, Noise(0, 0), mask)
        with torch.no_grad(), watch:
            net.model(input_ids=ids, attention_mask=mask.long(), position_ids=position_ids)
        found.append(watch.bases)
    for name, basis in found[0].items():
        torch.testing.assert_close(basis, found[1][name], atol=1e-5, rtol=0)


def test_fewer_tokens_than_rank_cap_it():
    net = qwen3()
    mask = torch.zeros_like(net.token_mask)
    mask[:, -1] = True  # three real tokens
    assert capture(net, rank=8)["model.layers.0.mlp.up_proj.weight"].shape == (16, 8)
    assert capture(net, rank=8, mask=mask)["model.layers.0.mlp.up_proj.weight"].shape == (16, 3)


def test_refresh_every_keeps_the_basis_between():
    net = qwen3()
    optimizer = AGZO(net.model, lr=1e-3, eps=1e-3, refresh_every=2)
    seen = []
    for _ in range(4):
        optimizer.step(net.closure, net.token_mask)
        seen.append(optimizer._subspace.bases["model.layers.0.mlp.up_proj.weight"])
    assert seen[0] is seen[1]
    assert seen[2] is seen[3]
    assert seen[1] is not seen[2]


def test_an_input_changed_in_place_in_inference_mode_has_a_basis_of_its_own():
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(8, 8, bias=False), nn.Linear(8, 1, bias=False)

        def forward(self, x):
            h = x.clone()
            h += 3 * self.a(h)
            return self.b(h)

    x, bases = torch.randn(16, 8, generator=torch.Generator().manual_seed(1)), []
    for inference in (False, True):
        model = Residual().eval()

        def closure(model=model, inference=inference):
            with torch.inference_mode(inference):
                return model(x).square().mean()

        optimizer = AGZO(model, lr=0.0, eps=1e-3)
        optimizer.step(closure)
        bases.append(optimizer._subspace.bases)
    for name, basis in bases[0].items():
        torch.testing.assert_close(bases[1][name], basis)
