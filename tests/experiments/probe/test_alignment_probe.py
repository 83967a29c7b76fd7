"""Figure 2's measurements against the theory and against sums done by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agzo import AGZO, alignment
from agzo.activations.spectrum import gradients
from baselines import LOZO, MeZO, ZOAct, on_dominant_layer
from experiments.probe.alignment import (
    Moment,
    alone_rows,
    averaged_cosines,
    signed_cosine,
    whole_rows,
)
from experiments.probe.estimates import OfCoefficients, affordable, dominant, reached
from tests.networks import mlp, qwen3, stack


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 3)).double().eval()
    x, y = torch.randn(30, 12).double(), torch.randint(0, 3, (30,))
    return model, lambda: F.cross_entropy(model(x), y)


def maker(method, model, **options):
    def make(seed, params, queries=1):
        return method(
            model, lr=1e-3, eps=1e-6, seed=seed, params=params, queries=queries, **options
        )

    return make


def moment(network, *, biases: bool = False):
    model, closure = network
    tuned = [t for t in AGZO(model, lr=1, eps=1).tuned if biases or t.role == "linear"]
    return Moment(0, closure, None, gradients(closure, tuned)), tuned  # pyright: ignore


METHODS = {"agzo": AGZO, "mezo": MeZO, "lozo": LOZO}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("biases", [False, True], ids=["linear", "all"])
def test_measured_cosines_have_the_mean_that_the_theory_gives(network, name, biases):
    """Theorem 5.4 and Corollary 5.5, several layers at once; five standard errors."""
    now, _ = moment(network, biases=biases)
    make = maker(METHODS[name], network[0])
    whole, _, _ = whole_rows(now, "linear", {name: make}, groups=60, budgets=[16])
    measured = torch.tensor([row["cosine"] for row in whole])
    expected = torch.tensor([row["expected"] for row in whole]).mean()
    slack = 0.02 * expected if name == "lozo" else 0.0  # its V is not orthonormal
    assert abs(measured.mean() - expected) < 5 * measured.std() / 60**0.5 + slack
    assert all(row["wrong_sign"] == 0 for row in whole)  # float64: the slope is exact


def test_layers_alone_and_together(network):
    now, tuned = moment(network)
    make = maker(AGZO, network[0])
    rows = alone_rows(now, tuned, {"agzo": make}, queries=800)
    assert [row["layer"] for row in rows] == ["0.weight", "2.weight"]
    for row in rows:
        assert abs(row["cosine"] - row["expected"]) < 5 * row["deviation"] / math.sqrt(row["n"])
        assert row["n"] == 800
    _, _, together = whole_rows(now, "linear", {"agzo": make}, groups=2, budgets=[4])
    assert [(row["layer"], row["perturbed"], row["n"], row["expected"]) for row in together] == [
        ("0.weight", "together", 6, None),
        ("2.weight", "together", 6, None),
    ]
    _, _, none = whole_rows(now, "all", {"agzo": make}, groups=2, budgets=[4])
    assert none == []


def test_averaged_queries_are_the_mean_of_the_estimates(network):
    now, _ = moment(network, biases=True)
    chosen = list(now.gradient)
    measured = maker(MeZO, network[0])(0, chosen, 5).estimate(now.closure)
    found = averaged_cosines(measured, now.gradient, [1, 5])
    (first, g), *_ = measured.queries
    assert found[1] == pytest.approx(signed_cosine(first, g, now.gradient), rel=1e-6)
    mean = {
        p: torch.stack([g * d[p].dense().double() for d, g in measured.queries]).mean(0)
        for p in chosen
    }
    product = sum((mean[p] * now.gradient[p]).sum() for p in chosen)
    by_hand = product / (alignment.norm(mean) * alignment.norm(now.gradient))
    assert found[5] == pytest.approx(float(by_hand), rel=1e-6)
    assert set(found) == {1, 5}


def test_many_queries_reach_the_captured_share_and_no_more(network):
    """Inside a fixed basis the mean of estimates tends to G A A^T, whose cosine is |GA| / |G|."""
    now, tuned = moment(network)
    first = tuned[0]
    own = {first.parameter: now.gradient[first.parameter]}
    measured = maker(AGZO, network[0])(0, [first.parameter], 3000).estimate(now.closure)
    found = averaged_cosines(measured, own, [3000])[3000]
    basis = measured.queries[0][0][first.parameter].right  # pyright: ignore
    share = alignment.captured(own[first.parameter], basis).item()
    assert share < 0.9
    assert 0.98 * share < found <= share + 1e-9


def test_a_slope_of_the_wrong_sign_is_seen(network):
    now, _ = moment(network)
    measured = maker(MeZO, network[0])(0, list(now.gradient), 1).estimate(now.closure)
    directions, g = measured.queries[0]
    assert signed_cosine(directions, g, now.gradient) > 0
    assert signed_cosine(directions, -g, now.gradient) < 0


@pytest.mark.parametrize(
    ("method", "options", "forwards", "queries"),
    [
        (AGZO, {}, 2, 1),
        (AGZO, {}, 32, 31),
        (AGZO, {"estimator": "two_sided"}, 2, 0),
        (AGZO, {"estimator": "two_sided"}, 32, 15),
        (MeZO, {}, 32, 16),
        (MeZO, {"estimator": "one_sided"}, 32, 31),
        (LOZO, {}, 3, 1),
    ],
)
def test_queries_that_forwards_pay_for(network, method, options, forwards, queries):
    make = maker(method, network[0], **options)
    assert affordable(make(0, list(network[0].parameters())), forwards) == queries


def test_measuring_moves_nothing(network):
    before = [p.clone() for p in network[0].parameters()]
    now, _ = moment(network)
    optimizer = maker(AGZO, network[0])(0, list(now.gradient))
    optimizer.estimate(now.closure)
    assert optimizer.forwards == 0
    assert all(a.equal(b) for a, b in zip(before, network[0].parameters(), strict=True))
    loss = optimizer.estimate(now.closure).queries[0][1]
    optimizer.step(now.closure)  # the same directions as were measured for step 0
    assert optimizer.projected_grad is not None
    assert loss.equal(optimizer.projected_grad[0])


def language_model():
    """A float64 model of two decoder layers, its moment over all weights, and ZO-Act's bases."""
    net = qwen3(torch.float64, tied=False)
    model, closure = net.model, net.closure
    tuned = AGZO(model, lr=1, eps=1).tuned
    optimizer = ZOAct(model, lr=1e-3, eps=1e-3, rank=2, large_state=True)
    optimizer.calibrate([(closure, net.token_mask)])
    bases = optimizer.bases
    optimizer.remove()
    return model, Moment(0, closure, net.token_mask, gradients(closure, tuned)), tuned, bases  # pyright: ignore


def of_coefficients(model, bases):
    def make(seed, params, queries=1):
        options = {"lr": 1e-3, "eps": 1e-6, "rank": 2, "estimator": "two_sided", "update": "sgd"}
        return OfCoefficients(model, bases, params, seed=seed, queries=queries, **options)

    return make


def of_layer(model):
    def make(seed, params, queries=1):
        return on_dominant_layer(
            model, lr=1e-3, eps=1e-6, layer=1, seed=seed, params=params, queries=queries
        )

    return make


def state(model):
    """Everything that a method could leave behind on a model."""
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    names = {name: (p.requires_grad, p.dtype) for name, p in model.named_parameters()}
    return hooks, names, [*model.state_dict()], [n for n, _ in model.named_modules()]


def test_an_estimate_of_coefficients_is_the_slope_of_the_weights():
    """The finite difference in C is <G, Z V^T>, G the gradient of the unaltered weights."""
    model, now, _, bases = language_model()
    before = [p.clone() for p in model.parameters()]
    was = state(model)
    estimates = of_coefficients(model, bases)(3, list(now.gradient), 5)
    measured = estimates.estimate(now.closure, now.token_mask, 0)
    own, share = reached(estimates, now.gradient)
    assert set(measured.queries[0][0]) == set(own)
    assert len(own) == 14
    assert 0 < share < 1  # the head, norms and the embedding are left out
    for directions, g in measured.queries:
        assert float(alignment.inner(directions, own)) == pytest.approx(float(g), rel=1e-6)
    with torch.no_grad():  # the same, through the weights themselves
        directions, g = measured.queries[0]
        eps, losses = 1e-6, []
        for sign in (1, -1):
            for p, original in zip(model.parameters(), before, strict=True):
                if p in directions:
                    p.copy_(original + sign * eps * directions[p].dense().double())
            losses.append(now.closure())
        for p, original in zip(model.parameters(), before, strict=True):
            p.copy_(original)
    assert float((losses[0] - losses[1]) / (2 * eps)) == pytest.approx(float(g), rel=1e-5)
    assert state(model) == was


def test_the_model_is_as_it_was_when_measuring_stops_half_way():
    model, now, _, bases = language_model()
    was = state(model)

    def broken():
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        of_coefficients(model, bases)(0, list(now.gradient)).estimate(broken, now.token_mask)
    assert state(model) == was


@pytest.mark.parametrize("name", ["zo_act", "dominant_layer"])
@pytest.mark.slow
def test_part_of_the_weights_against_the_whole_gradient(name):
    """Directions are zero elsewhere: by hand over dense vectors, and the theory's mean."""
    model, now, tuned, bases = language_model()
    make = {"zo_act": of_coefficients(model, bases), "dominant_layer": of_layer(model)}[name]
    was = state(model)
    whole, averaged, _ = whole_rows(now, "all", {name: make}, groups=60, budgets=[8])
    assert state(model) == was
    measured = torch.tensor([row["cosine"] for row in whole])
    expected = torch.tensor([row["expected"] for row in whole]).mean()
    assert abs(measured.mean() - expected) < 5 * measured.std() / 60**0.5
    assert {row["queries"] for row in whole} == {4}
    queries = make(0, list(now.gradient), 4).estimate(now.closure, now.token_mask, 0).queries
    gradient = torch.cat([g.flatten() for g in now.gradient.values()])
    flat = [
        torch.cat([
            (d[p].dense().double() if p in d else torch.zeros_like(g)).flatten()
            for p, g in now.gradient.items()
        ])
        for d, _ in queries
    ]  # fmt: skip
    by_hand = [float(torch.cosine_similarity(d, gradient, 0).abs()) for d in flat]
    assert whole[0]["cosine"] == pytest.approx(sum(by_hand) / 4, rel=1e-6)
    mean = sum(g * d for (_, g), d in zip(queries, flat, strict=True))
    by_hand = float(torch.cosine_similarity(mean, gradient, 0))  # pyright: ignore
    assert averaged[0]["cosine"] == pytest.approx(by_hand, rel=1e-6)
    if name == "dominant_layer":
        own = {each.parameter for each in tuned if each.name.startswith("model.layers.1.")}
        assert set(queries[0][0]) == own


@pytest.mark.slow
def test_layers_that_a_method_leaves_have_no_row():
    model, whole, tuned, bases = language_model()
    linear = [each for each in tuned if each.role == "linear"]
    own = {each.parameter: whole.gradient[each.parameter] for each in linear}
    now = Moment(0, whole.closure, whole.token_mask, own)
    make = of_coefficients(model, bases)
    rows = alone_rows(now, linear, {"zo_act": make}, queries=200)
    assert [row["layer"] for row in rows] == [
        each.name for each in linear if each.name != "lm_head.weight"
    ]
    for row in rows:
        assert abs(row["cosine"] - row["expected"]) < 6 * row["deviation"] / math.sqrt(row["n"])
    _, _, together = whole_rows(now, "linear", {"one": of_layer(model)}, groups=2, budgets=[4])
    assert {row["layer"] for row in together} == {
        each.name for each in linear if each.name.startswith("model.layers.1.")
    }


def test_the_dominant_layer_is_the_runs_own_or_the_one_asked_for():
    net = stack()
    own = on_dominant_layer(net.model, 1e-3, 1e-3, layer=0, base="agzo")
    run = SimpleNamespace(parts=SimpleNamespace(optimizer=own), model=net.model)
    assert dominant(run, 1) == {"layer": 0, "base": "agzo"}  # pyright: ignore
    run.parts.optimizer = MeZO(net.model, 1e-3, 1e-3)
    assert dominant(run, 1) == {"layer": 1, "base": "mezo"}  # pyright: ignore
    with pytest.raises(ValueError, match=r"--layer=2: allowed are 0 to 1"):
        dominant(run, 2)  # pyright: ignore
    run.model = mlp().model
    with pytest.raises(ValueError, match="--methods=dominant_layer: Sequential: has no decoder"):
        dominant(run, 0)  # pyright: ignore
