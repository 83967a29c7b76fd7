"""Figure 2's measurements against the theory and against sums done by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agzo import AGZO, alignment
from agzo.spectrum import gradients
from baselines import LOZO, MeZO
from experiments.probe.alignment import (
    Moment,
    affordable,
    alone_rows,
    averaged_cosines,
    signed_cosine,
    whole_rows,
)


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
