"""Figure 1's measurements against what is known about small layers."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from agzo.activations.spectrum import gradients, spectrum
from agzo.tuned.select import Tuned
from experiments.config.errors import BadInput
from experiments.probe.structure import (
    choose,
    cosine_rows,
    energy_rows,
    iterated_bases,
    linear_layers,
    real_tokens,
    spectra_of,
    spectrum_rows,
)
from tests.networks import qwen3
from tests.text_models import random_model

ROWS = SimpleNamespace(
    token_mask=torch.tensor([[False, True, True], [True, True, True]]),
    position_ids=torch.tensor([[0, 0, 1], [0, 1, 2]]),
    input_ids=torch.tensor([[9, 5, 6], [5, 7, 8]]),
)


def look(net):
    layers = linear_layers(net.model)
    rows = SimpleNamespace(token_mask=net.token_mask)
    return layers, spectra_of(net.closure, rows, layers), gradients(net.closure, layers)  # pyright: ignore


def test_the_gradient_lies_in_the_span_of_the_real_tokens():
    """Eq. 9 on a transformer with padding: 18 real tokens, so widths above 18 are a real check."""
    layers, spectra, gradient = look(qwen3())
    assert len(layers) == 14
    rows = cosine_rows(3, layers, gradient, {"same": spectra, "other": spectra})
    full = [row for row in rows if row["rank"] == "full" and row["basis"] == "same"]
    assert len(full) == 14
    assert any(row["columns"] < gradient[layer.parameter].shape[1]
               for row, layer in zip(full, layers, strict=True))  # fmt: skip
    assert all(row["cosine"] == pytest.approx(1.0, abs=1e-5) for row in full)
    by_rank = {row["rank"]: row["cosine"] for row in rows if row["layer"] == layers[0].name}
    assert by_rank["1"] < by_rank["10"] <= by_rank["full"] + 1e-6
    assert {row["step"] for row in rows} == {3}


def test_cosines_are_those_of_an_explicit_projection():
    layers, spectra, gradient = look(qwen3())
    layer = layers[6]  # a down projection, the widest
    g = gradient[layer.parameter].double()
    basis = spectra[layer.name].right[:, :10]
    projected = g @ basis @ basis.T
    cosine = (projected * g).sum() / (projected.norm() * g.norm())
    (row,) = [
        row for row in cosine_rows(0, [layer], gradient, {"same": spectra})
        if row["rank"] == "10" and row["basis"] == "same"
    ]  # fmt: skip
    assert row["cosine"] == pytest.approx(cosine.item(), rel=1e-9)
    assert row["random"] == pytest.approx((10 / g.shape[1]) ** 0.5)


def test_another_basis_captures_less():
    layers, spectra, gradient = look(qwen3())
    turned = {
        name: spectrum(torch.randn(5, s.right.shape[0], generator=torch.Generator().manual_seed(0)))
        for name, s in spectra.items()
    }
    rows = cosine_rows(0, layers, gradient, {"same": spectra, "other": turned})
    mean = {
        basis: sum(r["cosine"] for r in rows if r["basis"] == basis and r["rank"] == "full")
        for basis in ("same", "other")
    }
    assert mean["other"] < 0.9 * mean["same"]


def test_power_iteration_finds_a_clear_direction():
    x = torch.randn(40, 12, generator=torch.Generator().manual_seed(0)) * 0.1
    x[:, 3] += 5.0
    exact = spectrum(x)
    another = spectrum(x + 0.1 * torch.randn(40, 12, generator=torch.Generator().manual_seed(1)))
    found = iterated_bases(exact, another, 1, "layer", 0)
    assert set(found) == {"power", "warm", "sampled"}
    for basis in found.values():
        close = 1e-5 if basis is not found["sampled"] else 1e-3
        assert abs((exact.basis(1).float() * basis).sum()) == pytest.approx(1.0, abs=close)


def test_padding_is_left_out():
    x = torch.arange(12.0).view(2, 3, 2)
    kept = real_tokens(x, ROWS.token_mask)
    assert kept.tolist() == [[2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]
    assert real_tokens(x.view(6, 2), ROWS.token_mask).equal(kept)  # flattened inputs too
    assert real_tokens(x[:, :1], ROWS.token_mask).shape == (2, 2)  # label positions: whole


def test_energy_names_the_position_and_the_token_that_carry_it():
    x = torch.full((5, 4), 0.01)
    x[0], x[2] = torch.tensor([3.0, 0, 0, 0]), torch.tensor([4.0, 0, 0, 0])  # token 5, position 0
    layer = Tuned("w", nn.Parameter(torch.zeros(2, 4)), "linear")
    (row,) = energy_rows(0, [layer], {"w": spectrum(x)}, ROWS, str)  # pyright: ignore
    assert row["share"] > 0.999
    assert (row["position"], row["token"]) == (0, "5")
    assert row["position_share"] == pytest.approx(1.0, abs=1e-3)
    assert row["position_tokens"] == pytest.approx(2 / 5)
    assert row["token_share"] == pytest.approx(1.0, abs=1e-3)
    one = spectrum(torch.randn(2, 4))  # a head that saw two label positions
    assert energy_rows(0, [layer], {"w": one}, ROWS, str) == []  # pyright: ignore


def test_spectra_are_the_singular_values():
    layers, spectra, gradient = look(qwen3())
    rows = spectrum_rows(0, layers[:1], gradient, spectra)
    g = [row["value"] for row in rows if row["of"] == "gradient"]
    assert g == pytest.approx(
        torch.linalg.svdvals(gradient[layers[0].parameter]).tolist(), abs=1e-6
    )
    x = [row["value"] for row in rows if row["of"] == "activation"]
    assert x == sorted(x, reverse=True)
    assert [row["index"] for row in rows if row["of"] == "gradient"] == list(range(1, len(g) + 1))


def test_layers_are_chosen_by_name():
    layers = linear_layers(qwen3().model)
    assert [each.name for each in choose(layers, "")] == [
        layers[0].name, layers[7].name, layers[13].name,
    ]  # fmt: skip
    assert len(choose(layers, "down_proj")) == 2
    with pytest.raises(ValueError, match="--layers=nothing: in no layer's name"):
        choose(layers, "nothing")


def test_weights_that_lie_turned_are_refused():
    with pytest.raises(BadInput, match=r"8 that lie turned, transformer\.h\.0\.attn\.c_attn"):
        linear_layers(random_model("gpt2"))
    with pytest.raises(BadInput, match="none at all"):
        linear_layers(nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4)))
