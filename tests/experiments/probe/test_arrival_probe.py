"""The arrival probe: what rounding leaves of an update, by hand and on small networks."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agzo.directions.low_rank import LowRank
from baselines import MeZO
from experiments.probe import __main__, arrival, scene, slope
from experiments.probe.slope import Minibatch

UPDATE = 2.0**-10  # below half of 2^-8, the spacing of bfloat16 numbers just under 1
SIDE = 64


def followed(
    rounding: str, dtype: torch.dtype, updates: int, singles: int = 1
) -> tuple[arrival.Tally, Tensor]:
    """Move a matrix of ones down by UPDATE, `updates` times."""
    ones = LowRank(torch.ones(SIDE, 1), torch.ones(SIDE, 1))
    weight = torch.ones(SIDE, SIDE, dtype=dtype)
    moves = [(step, ones, 1.0) for step in range(updates)]
    tallies, norms = arrival.follow(weight, moves, [UPDATE], [rounding], singles, 0, "weight")
    assert torch.equal(weight, torch.ones_like(weight))
    return tallies[rounding, UPDATE], norms


def test_nearest_rounding_loses_updates_below_half_a_spacing() -> None:
    tally, norms = followed("nearest", torch.bfloat16, 16)
    assert (tally.singles[0].gain, tally.singles[0].noise) == (0.0, 0.0)
    assert (tally.total.gain, tally.total.noise) == (0.0, 0.0)
    assert norms.tolist() == [SIDE] * 16


def test_a_master_copy_keeps_their_sum() -> None:
    tally, _ = followed("master", torch.bfloat16, 16)
    assert tally.singles[0].gain == 0.0
    assert (tally.total.gain, tally.total.noise) == (1.0, 0.0)  # 16 / 2^10 = 4 spacings
    assert followed("master", torch.bfloat16, 1)[0].total.gain == 0.0


def test_stochastic_rounding_is_right_on_average_and_noisy() -> None:
    tally, _ = followed("stochastic", torch.bfloat16, 16)
    # One in four of the weights moves by four times the update.
    error = math.sqrt(3) / SIDE
    assert tally.singles[0].gain == pytest.approx(1.0, abs=4 * error)
    assert tally.singles[0].noise == pytest.approx(math.sqrt(3), rel=0.1)
    assert tally.total.gain == pytest.approx(1.0, abs=4 * error / 4)
    assert 0 < tally.total.noise < 0.6  # about sqrt(3 / 16)


@pytest.mark.parametrize(("dtype", "gain"), [(torch.float32, 1.0), (torch.float16, 1.0)])
def test_an_update_of_whole_spacings_arrives(dtype: torch.dtype, gain: float) -> None:
    tally, _ = followed("nearest", dtype, 4)
    assert (tally.total.gain, tally.total.noise) == (gain, 0.0)


def test_sums_are_projections() -> None:
    sums = arrival.Sums()
    sums.add(torch.tensor([3.0]), torch.tensor([2.0]))
    sums.add(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.0]))
    assert sums.gain == pytest.approx(1.5)
    assert sums.noise == pytest.approx(1 / 2)  # the 1 that was not intended, by |i| = 2
    sums.merge(sums)
    assert (sums.gain, sums.noise) == pytest.approx((1.5, 0.5))


def small() -> tuple[nn.Module, Minibatch]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)).eval()
    x, y = torch.randn(20, 6), torch.randint(0, 3, (20,))

    def loss(model: nn.Module) -> Tensor:
        out = model(x.to(next(model.parameters()).dtype)).float()
        return nn.functional.cross_entropy(out, y)

    return model, Minibatch(loss, None)


def test_rows_of_a_network() -> None:
    model, batch = small()
    lrs = [1e-6, 1e-2]
    methods = {"agzo": {}, "mezo": {}, "lozo": {"rank": 1}}
    rows = arrival.arrivals(model, [batch, batch], methods, lrs, ["fp32", "bf16"], 6, 2, seed=3)
    assert len(rows) == 3 * 2 * 2 * (1 + 3)  # methods, scopes, lrs, policies
    found = {(r["dtype"], r["rounding"], r["method"], r["scope"], r["lr"]): r for r in rows}
    assert len(found) == len(rows)
    full = found["fp32", "nearest", "mezo", "all", 1e-2]
    assert full["gain"] == pytest.approx(1.0, abs=1e-4)
    assert full["gain_sum"] == pytest.approx(1.0, abs=1e-4)
    assert found["bf16", "nearest", "mezo", "all", 1e-6]["gain_sum"] < 0.2
    assert found["bf16", "nearest", "mezo", "all", 1e-6]["noise"] < 1

    # The sizes, from the optimizer's own directions and the exact slope.
    optimizer = MeZO(model, lr=0.0, eps=1.0, seed=3)
    truth = slope.true_gradients(model, model, batch)
    slopes, lengths = [], []
    for index in range(6):
        directions, _ = slope.look(optimizer, batch, index)
        slopes.append(slope.slope(directions, truth))
        square = sum(directions[p].norm().item() ** 2 for p in directions)
        lengths.append(slopes[-1] ** 2 * square)
    size = math.sqrt(sum(g * g for g in slopes) / 6)
    weights = sum(p.detach().square().sum().item() for p in model.parameters())
    assert full["projected_grad"] == pytest.approx(size, rel=1e-5)
    assert full["update"] == pytest.approx(1e-2 * size, rel=1e-5)
    assert full["relative"] == pytest.approx(1e-2 * math.sqrt(sum(lengths) / 6 / weights), rel=1e-5)


def test_a_loss_without_a_slope_is_an_error() -> None:
    model, _ = small()
    flat = Minibatch(lambda model: 0.0 * sum(p.float().sum() for p in model.parameters()), None)  # pyright: ignore
    with pytest.raises(ValueError, match="method=mezo, fp32: the slope"):
        arrival.arrivals(model, [flat], {"mezo": {}}, [1e-3], ["fp32"], 2, 1)


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("--lrs", "0", "ascending numbers above 0"),
        ("--lrs", "1e-3,nan", "ascending numbers above 0"),
        ("--updates", "0", "whole numbers from 1 on"),
        ("--singles", "-2", "whole numbers from 1 on"),
        ("--dtypes", "fp8", "fp32, bf16, fp16; or all"),
        ("--methods", "mezo,mezo", "each once"),
    ],
)
def test_bad_input_is_one_line_before_a_model_is_loaded(
    option: str,
    value: str,
    allowed: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[Any],
) -> None:
    monkeypatch.setattr(scene, "load", lambda overrides: pytest.fail("loaded"))
    assert __main__.main(["arrival", "--out", str(tmp_path / "a"), f"{option}={value}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{option}={value}" in error
    assert allowed in error
