"""Where a run goes: what no input sees of a movement, and the figure of a few short runs."""

import csv

import pytest
import torch

from analysis.figures.run_drift import main as draw
from experiments.probe.__main__ import main
from experiments.probe.drift import cases, outside

POCKET = ["model=pocket", "task=sst2", "data=pocket", "threads=1", "train.batch_size=4"]


def test_outside_is_what_the_span_does_not_hold():
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(8, 3, generator=generator)).Q
    inside = torch.randn(5, 3, generator=generator) @ basis.T
    across = torch.randn(5, 8, generator=generator)
    across -= across @ basis @ basis.T
    left, whole = outside(inside, basis)
    assert abs(left) < 1e-5 * whole  # a difference of float32 numbers' squares
    left, whole = outside(2.0 * inside + across, basis)
    assert left == pytest.approx(across.double().square().sum().item(), rel=1e-5)
    assert whole == pytest.approx(left + 4.0 * inside.double().square().sum().item(), rel=1e-5)


@pytest.mark.parametrize("text", ["agzo", "agzo:fast", "agzo:-1e-3", ""])
def test_cases_are_methods_and_rates(text):
    assert cases("agzo:1e-4,mezo:3e-5") == [("agzo", 1e-4), ("mezo", 3e-5)]
    with pytest.raises(ValueError, match=f"--cases={text}: allowed are method:lr pairs"):
        cases(text)


@pytest.mark.slow
def test_the_probe_writes_what_the_figure_reads(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("A film that nobody was shown. " * 40)
    out = tmp_path / "drift"
    few = ["--cases", "agzo:1e-3,mezo:1e-4", "--steps", "0,3,6", "--others", "8"]
    assert main(["drift", "--out", str(out), *few, f"train.forgetting={text}", *POCKET]) == 0
    with (out / "drift.csv").open() as file:
        rows = {(row["method"], int(row["step"])): row for row in csv.DictReader(file)}
    for method in ("agzo", "mezo"):
        moved = [float(rows[method, step]["moved"]) for step in (0, 3, 6)]
        assert moved[0] == 0 < moved[1] < moved[2]
        assert rows[method, 0]["dev"] != rows[method, 6]["dev"]
    assert float(rows["agzo", 6]["outside"]) < float(rows["mezo", 6]["outside"])
    assert rows["agzo", 0]["unrelated"] == rows["mezo", 0]["unrelated"]
    assert draw([str(out), "--out", str(tmp_path / "figure")]) == 0
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_more_dev_examples_than_there_are_is_one_line(tmp_path, capsys):
    few = ["--cases", "agzo:1e-3", "--others", "9999"]
    assert main(["drift", "--out", str(tmp_path), *few, *POCKET]) == 2
    assert "--others=9999: allowed are up to" in capsys.readouterr().err
