"""The slope probe: exact against measured slopes, their quality, and the recommended eps."""

import copy
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import qwen3
from torch import Tensor, nn

from agzo import AGZO
from agzo.window import LIMIT, quality
from baselines import MeZO
from experiments.probe import __main__, scene, slope, window
from experiments.probe.slope import Minibatch

CURVE = 0.3


def quadratic(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Minibatch, Tensor]:
    """f(W) = <Y, X W^T> + CURVE |X W^T|^2: two-sided differences are exact at any eps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4, bias=False, dtype=dtype)).eval()
    x, y = torch.randn(10, 6, dtype=torch.float64), torch.randn(10, 4, dtype=torch.float64)

    def loss(model: nn.Module) -> Tensor:
        weight = next(model.parameters())
        out = model(x.to(weight.dtype)).to(torch.promote_types(weight.dtype, torch.float32))
        return (y.to(out.dtype) * out).sum() + CURVE * out.square().sum()

    return model, Minibatch(loss, None), x


def test_two_sided_is_exact_on_a_quadratic_and_one_sided_is_off_by_the_curvature() -> None:
    model, batch, x = quadratic()
    methods = {"agzo": {}, "mezo": {}, "lozo": {"rank": 1}}
    rows = slope.slopes(model, [batch], methods, [1e-3, 0.1, 10.0], directions=3, seed=5)
    assert len(rows) == 3 * 3 * 3
    for row in rows:
        look: dict[str, Any] = {"lr": 0.0, "eps": 1.0, "seed": 5, **methods[row["method"]]}
        optimizer = slope.METHODS[row["method"]](model, **look)
        directions, _ = slope.look(optimizer, batch, row["direction"])
        delta = directions[next(model.parameters())].dense().double()
        bias = row["eps"] * CURVE * (x @ delta.T).square().sum().item()  # eps / 2 Delta^T H Delta
        assert row["two_sided"] == pytest.approx(row["exact"], rel=1e-6, abs=1e-6)
        assert row["one_sided"] - row["exact"] == pytest.approx(bias, rel=1e-5, abs=1e-6)
    assert len({row["exact"] for row in rows}) == 9  # the same at each eps, else all different


def test_each_direction_of_lozo_has_its_own_subspace() -> None:
    model, batch, _ = quadratic()
    optimizer = slope.METHODS["lozo"](model, lr=0.0, eps=1.0, rank=1, refresh_every=7)
    parameter = next(model.parameters())
    rights = [slope.look(optimizer, batch, i)[0][parameter].right for i in range(2)]  # pyright: ignore
    assert not torch.equal(rights[0], rights[1])


def test_the_true_slope_is_taken_at_the_rounded_weights() -> None:
    model, batch, _ = quadratic(torch.float32)
    row = slope.slopes(model, [batch], {"mezo": {}}, [1e-2], ["bf16"], directions=1)[0]
    rounded = copy.deepcopy(model)
    for parameter in rounded.parameters():
        parameter.data = parameter.data.bfloat16().double()
    batch.loss(rounded).backward()
    optimizer = MeZO(model, lr=0.0, eps=1.0)
    delta = slope.look(optimizer, batch, 0)[0][next(model.parameters())].dense()
    gradient = next(rounded.parameters()).grad
    assert gradient is not None
    assert row["exact"] == pytest.approx((gradient * delta).sum().item(), rel=1e-5)
    full = slope.slopes(model, [batch], {"mezo": {}}, [1e-2], ["fp32"], directions=1)[0]
    assert abs(full["exact"] - row["exact"]) > 1e-4 * abs(full["exact"])


def test_cast_leaves_buffers_ties_and_the_model_itself_alone() -> None:
    model = qwen3(tied=True).model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made: Any = slope.cast(model, "bf16")
    assert {p.dtype for p in made.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in made.buffers()} == {b.dtype for b in model.buffers()}
    assert made.lm_head.weight is made.model.embed_tokens.weight
    again = slope.cast(model, "fp32", through="bf16")
    for low, wide in zip(made.parameters(), again.parameters(), strict=True):
        assert wide.dtype == torch.float32
        assert torch.equal(low.float(), wide)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_real_network_in_low_precision_has_a_window() -> None:
    network = qwen3()

    def loss(model: nn.Module) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(4, 40, (3, 7), generator=generator)
        logits = model(input_ids=ids, use_cache=False).logits[:, -1]
        return nn.functional.cross_entropy(logits.float(), ids[:, 0])

    batch = Minibatch(loss, torch.ones(3, 7, dtype=torch.bool))
    rows = slope.slopes(
        network.model, [batch], {"agzo": {}}, [1e-7, 1e-3], ["fp32", "bf16"], directions=4
    )
    found = {(r["dtype"], r["estimator"], r["eps"]): r for r in window.windows(rows)}
    assert found["fp32", "two_sided", 1e-3]["relative_error"] < 0.01
    assert found["fp32", "two_sided", 1e-3]["usable"] == 1
    assert found["bf16", "two_sided", 1e-7]["usable"] == 0


def test_values_that_are_not_finite_are_recorded_as_empty() -> None:
    model, batch, _ = quadratic(torch.float32)
    rows = slope.slopes(model, [batch], {"mezo": {}}, [1e-2, 1e30], directions=2)
    assert [row["one_sided"] is None for row in rows] == [False, True] * 2
    table = window.windows(rows)
    lost = [row for row in table if row["eps"] == 1e30]
    assert [(row["n"], row["finite"], row["usable"]) for row in lost] == [(2, 0, 0)] * 2
    assert [row["relative_error"] for row in lost] == [None, None]
    assert {row["best"] for row in window.recommend(table)} == {1e-2}


def test_quality_of_hand_made_pairs() -> None:
    exact = [1.0, -1.0, 2.0, -2.0]
    row = quality([(e, 2 * e + 0.5) for e in exact])
    assert row == pytest.approx(
        {
            "n": 4, "finite": 4, "zero": 0, "correlation": 1.0, "gain": 2.0,
            "relative_error": math.sqrt(2.75 / 2.5), "offset": 0.5 / math.sqrt(2.5),
        }
    )  # fmt: skip
    turned = quality([(e, -e) for e in exact])
    assert (turned["correlation"], turned["gain"]) == pytest.approx((-1, -1))
    assert turned["relative_error"] == pytest.approx(2)
    silent = quality([(1.0, 0.0), (-1.0, 0.0), (1.0, None)])
    assert (silent["n"], silent["finite"], silent["zero"]) == (3, 2, 2)
    assert silent["correlation"] is None
    assert (silent["gain"], silent["relative_error"]) == (0, 1)


def table_of(errors: dict[float, float | None]) -> list[dict[str, Any]]:
    return [
        {
            "method": "agzo", "dtype": "bf16", "estimator": "one_sided", "eps": eps, "n": 8,
            "finite": 8 if error is not None else 5, "correlation": 0.9, "gain": 1.0,
            "offset": 0.0, "relative_error": error,
            "usable": int(error is not None and error <= LIMIT),
        }
        for eps, error in errors.items()
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("errors", "eps", "lowest", "highest", "best"),
    [
        # all three below the negligible error: their middle, not the smallest error
        ({1e-5: 0.5, 1e-4: 0.01, 1e-3: 0.015, 1e-2: 0.001, 1e-1: 0.8}, 1e-3, 1e-4, 1e-2, 1e-2),
        ({1e-4: 0.01, 1e-3: 0.001, 1e-2: 0.2}, 1e-4, 1e-4, 1e-2, 1e-3),  # of two the smaller
        ({1e-4: 0.2, 1e-3: 0.1, 1e-2: 0.24}, 1e-3, 1e-4, 1e-2, 1e-3),
        ({1e-6: 0.2, 1e-5: 0.4, 1e-4: 0.1, 1e-3: None}, 1e-4, 1e-4, 1e-4, 1e-4),  # a gap ends it
        ({1e-4: 0.9, 1e-3: 0.26}, None, None, None, 1e-3),
    ],
)
def test_recommended_eps(
    errors: dict, eps: float | None, lowest: float | None, highest: float | None, best: float
) -> None:
    (row,) = window.recommend(table_of(errors))
    assert (row["eps"], row["lowest"], row["highest"], row["best"]) == (eps, lowest, highest, best)
    line = window.text([row]).splitlines()[1]
    assert ("none" in line) == (eps is None)
    assert f"{best:g}" in line or eps is not None


def test_no_finite_value_at_any_eps_is_an_error() -> None:
    with pytest.raises(ValueError, match="method=agzo, bf16, one_sided: no eps"):
        window.recommend(table_of({1e-4: None}))


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("--eps", "small", "ascending numbers above 0"),
        ("--eps", "-1e-3", "ascending numbers above 0"),
        ("--eps", "1e-3,inf", "ascending numbers above 0"),
        ("--eps", "1e-3,1e-4", "ascending numbers above 0"),
        ("--directions", "0", "whole numbers from 2 on"),
        ("--batches", "two", "whole numbers from 1 on"),
        ("--dtypes", "fp64", "fp32, bf16, fp16; or all"),
        ("--methods", "agzo,adam", "agzo, mezo, lozo"),
        ("--execution", "magic", "side_branch, batched, in_place"),
    ],
)
def test_bad_input_is_one_line_before_a_model_is_loaded(
    option: str,
    value: str,
    allowed: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(scene, "load", lambda overrides: pytest.fail("loaded"))
    assert __main__.main(["slope", "--out", str(tmp_path / "a"), f"{option}={value}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert option in error
    assert value in error
    assert allowed in error


def test_the_run_s_own_method_keeps_its_keys() -> None:
    config = {"name": "agzo", "lr": 1.0, "eps": 1.0, "rank": 3, "embeddings": "frozen"}
    here: Any = type("Here", (), {"config": type("Config", (), {"method": config})})
    options = slope.method_options(here, ["agzo", "mezo"])
    assert options == {
        "agzo": {"embeddings": "frozen", "rank": 3},
        "mezo": {"embeddings": "frozen"},
    }
    assert AGZO(qwen3().model, lr=0.0, eps=1.0, **options["agzo"]).rank == 3


@pytest.mark.slow
def test_the_collecting_functions_need_neither_hydra_nor_datasets() -> None:
    code = (
        "import sys, experiments.probe.slope, experiments.probe.arrival; "
        "sys.exit(bool({'hydra', 'omegaconf', 'datasets'} & sys.modules.keys()))"
    )
    root = Path(__file__).resolve().parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
