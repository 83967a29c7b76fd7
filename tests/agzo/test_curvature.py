"""Slopes and curvatures by forwards: exact on a quadratic, and what they say of the best step."""

import csv
import json

import pytest
import torch
from torch import nn

from agzo import AGZO
from agzo.activations.spectrum import gradients
from agzo.curvature import Bend, bend, summary
from baselines import LOZO, MeZO
from experiments.probe import progress
from experiments.probe.__main__ import main
from tests.networks import qwen3, weights
from tests.outlier_models import network
from tests.text_models import random_model


class Quadratic(nn.Module):
    """f(W) = <b, W> + W^T H W / 2 of a linear layer's weight, whose input is one token."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layer = nn.Linear(4, 3, bias=False, dtype=torch.float64)
        self.x = torch.randn(1, 4, generator=generator, dtype=torch.float64)
        self.target = torch.randn(1, 3, generator=generator, dtype=torch.float64)
        self.shape = torch.rand(3, generator=generator, dtype=torch.float64) + 0.5
        nn.init.normal_(self.layer.weight, generator=generator)

    def forward(self) -> torch.Tensor:
        return (self.shape * (self.layer(self.x) - self.target).square()).sum()


@pytest.mark.parametrize("kind", [MeZO, AGZO, LOZO])
def test_slope_and_curvature_of_a_quadratic_are_exact(kind):
    model = Quadratic()
    optimizer = kind(model, 0.0, 1e-3, estimator="two_sided")
    before = weights(model)
    loss = model().detach()
    found = bend(optimizer, model, None, model, loss, step=5, eps=1e-2)
    (directions, *_), _ = optimizer.directions(model, None, 5)
    d = directions[model.layer.weight].dense().double()
    model().backward()
    change = model.x @ d.T
    assert found.g == pytest.approx(
        (model.layer.weight.grad * d).sum().item(), rel=1e-6
    )  # the factors are float32
    assert found.c == pytest.approx(2 * (model.shape * change.square()).sum().item(), rel=1e-6)
    assert (found.g_other, found.c_other) == pytest.approx((found.g, found.c))
    assert all(p.equal(before[name]) for name, p in model.named_parameters())


def test_looking_counts_nothing_and_keeps_the_state():
    net = qwen3()
    optimizer = AGZO(net.model, 1e-3, 1e-3)
    optimizer.step(net.closure, net.token_mask)
    forwards = optimizer.forwards
    with torch.no_grad():
        loss = net.closure()
    bend(optimizer, net.closure, net.token_mask, net.closure, loss, 3, 1e-2)
    assert optimizer.forwards == forwards
    assert optimizer._zo["step"] == 1


def test_agzos_directions_meet_the_whole_curvature_of_a_linear_layer():
    """One token: AGZO's basis is its input, so E c is that of dense noise, with fewer numbers."""
    curvatures = {}
    for kind in (AGZO, MeZO):
        model = Quadratic()
        optimizer = kind(model, 0.0, 1e-3, estimator="two_sided")
        loss = model().detach()
        found = [bend(optimizer, model, None, model, loss, step, 1e-2) for step in range(400)]
        curvatures[kind] = summary(found)["c"]
    wanted = 2 * (model.shape.sum() * model.x.square().sum()).item()  # the trace of H
    for found in curvatures.values():
        assert found.low < wanted < found.high


def test_the_best_rate_is_where_the_mean_loss_is_least():
    """Along drawn directions of a quadratic the mean change is a parabola in lr."""
    model = Quadratic()
    optimizer = MeZO(model, 0.0, 1e-3)
    loss = model().detach()
    found = [bend(optimizer, model, None, model, loss, step, 1e-2) for step in range(64)]
    said = summary(found)

    def mean_change(lr: float) -> float:
        changes = []
        for step, each in enumerate(found):
            (directions, *_), _ = optimizer.directions(model, None, step)
            d = directions[model.layer.weight].dense().double()
            with torch.no_grad():
                model.layer.weight -= lr * each.g * d
                changes.append((model() - loss).item())
                model.layer.weight += lr * each.g * d
        return sum(changes) / len(changes)

    best = said["lr"].value
    assert mean_change(best) == pytest.approx(-said["progress"].value, rel=1e-6)
    assert mean_change(best) < min(mean_change(0.9 * best), mean_change(1.1 * best))


def test_a_rate_without_curvature_has_no_bound_and_a_wrong_way_gains_nothing():
    flat = [Bend(1.0, -1.0, 1.0, -1.0), Bend(2.0, -1.0, 2.0, -0.5)]
    assert summary(flat)["lr"].value == float("inf")
    against = [Bend(1.0, 1.0, -1.0, 1.0), Bend(2.0, 1.0, -1.0, 1.0)]
    assert (summary(against)["lr"].value, summary(against)["progress"].value) == (0.0, 0.0)
    with pytest.raises(ValueError, match="1 samples: allowed are two or more"):
        summary(flat[:1])


POCKET = ["model=pocket", "task=sst2", "data=pocket", "threads=1", "train.batch_size=4"]
FEW = ["--ranks", "1,2", "--depths", "2", "--most", "16", "--few", "2", "--minibatches", "2",
       "--methods", "agzo,mezo", "--others", "4"]  # fmt: skip


@pytest.mark.slow
def test_the_probe_writes_what_the_figure_reads(tmp_path):
    out = tmp_path / "progress"
    assert main(["progress", "--out", str(out), *FEW, "--eps", "1e-3,3e-3", *POCKET]) == 0
    with (out / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    scopes = {row["scope"] for row in rows}
    assert {"linear", "all", "role q_proj", "role embedding", "role rest", "depth 0-1"} <= scopes
    assert json.loads((out / "about.json").read_text())["rows"]["second"] == 3
    from analysis.figures.step_progress import main as draw

    assert draw([str(out), "--out", str(tmp_path / "figure")]) == 0
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_scopes_part_the_model():
    net = qwen3()
    found = progress.scopes(net.model, 2)
    where = progress.places(net.model)
    by_role = [name for name in found if name.startswith("role")]
    for parameter, place in where.items():
        assert sum(found[name](place) for name in by_role) == 1, parameter.shape
    linear = {id(p) for p, place in where.items() if found["linear"](place)}
    by_depth = [{id(p) for p, place in where.items() if found[f"depth {d}-{d}"](place)}
                for d in (0, 1)]  # fmt: skip
    assert by_depth[0] | by_depth[1] == linear
    assert not by_depth[0] & by_depth[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--eps", "1e-3,2e-3,3e-3"], "--eps=1e-3,2e-3,3e-3: allowed are one or two"),
        (["--most", "3"], "--most=3: allowed are whole numbers from 16"),
        (["--scopes", "roles,layers"], "--scopes=roles,layers"),
        (["--others", "9999"], "--others=9999: allowed are up to"),
    ],
)
def test_bad_options_are_one_line(tmp_path, options, message, capsys):
    assert main(["progress", "--out", str(tmp_path), *options, *POCKET]) == 2
    assert message in capsys.readouterr().err


def test_the_share_that_bases_hold_is_that_of_the_gradients_side_that_inputs_enter():
    """Also of GPT-2, whose weights lie turned: (d_in, d_out)."""
    net = network(random_model("gpt2"))
    batches = lambda _: (net.closure, net.token_mask)  # noqa: E731
    chosen = progress.scopes(net.model, 1)["linear"]
    for row in progress.held_rows(net.model, batches, 1, [1, 4], seed=0):
        case = progress.Case("linear", "agzo", row["rank"], "frozen", 0)
        made = progress.make(case, net.model, chosen, 1e-3, 0)
        (directions, *_), _ = made.directions(net.closure, net.token_mask, 0)
        kept = whole = 0.0
        for parameter, gradient in gradients(net.closure, made.tuned).items():
            basis = directions[parameter].left  # orthonormal: what a Conv1D's input enters by
            kept += (basis.T @ gradient).double().square().sum().item()
            whole += gradient.double().square().sum().item()
        assert row["share"] == pytest.approx(kept / whole, rel=1e-5)
        assert 0 < row["share"] <= 1
