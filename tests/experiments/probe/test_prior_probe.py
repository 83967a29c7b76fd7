"""The control that touches no weight: the best shift of the options' scores."""

import csv

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from experiments.probe.__main__ import main
from experiments.probe.prior import fit, quality

POCKET = ["model=pocket", "data=pocket", "threads=1", "train.batch_size=4", "method=mezo"]


def test_where_scores_say_nothing_the_shift_is_that_of_the_labels():
    labels = torch.tensor([0] * 6 + [1] * 2)
    shift = fit(torch.zeros(8, 2, dtype=torch.float64), labels)
    assert shift.tolist() == pytest.approx([0.0, torch.tensor(2 / 6).log().item()], abs=1e-6)


@given(options=st.integers(2, 4), seed=st.integers(0, 99), spread=st.floats(0.1, 5.0))
def test_at_the_minimum_an_option_has_its_share_of_the_labels(options, seed, spread):
    generator = torch.Generator().manual_seed(seed)
    scores = spread * torch.randn(40, options, generator=generator, dtype=torch.float64)
    labels = torch.arange(40) % options
    shift = fit(scores, labels)
    mean = (scores + shift).softmax(1).mean(0)
    share = labels.bincount(minlength=options) / 40
    assert mean.tolist() == pytest.approx(share.tolist(), abs=1e-6)
    assert cross_entropy(scores + shift, labels) <= cross_entropy(scores, labels) + 1e-12


def test_quality_by_hand():
    scores = torch.tensor([[0.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    loss, accuracy = quality(scores, torch.tensor([0, 1]))
    assert loss == pytest.approx((0.693147 + 2.126928) / 2, abs=1e-5)
    assert accuracy == 0.5


def test_an_option_that_nobody_answers_is_one_line():
    with pytest.raises(ValueError, match="--fit=3: option 1 is the answer of none"):
        fit(torch.zeros(3, 2, dtype=torch.float64), torch.zeros(3, dtype=torch.int64))


def test_the_probe_looks_at_both_splits_along_a_run(tmp_path, capsys):
    out = tmp_path / "prior"
    few = ["--steps", "0,2", "--fit", "32", "train.num_dev=20", "train.num_eval=30"]
    assert main(["prior", "--out", str(out), *few, "task=sst2", *POCKET]) == 0
    with (out / "prior.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["split"], row["n"]) for row in rows] == [
        ("0", "dev", "20"), ("0", "eval", "30"), ("2", "dev", "20"), ("2", "eval", "30"),
    ]  # fmt: skip
    assert rows[0]["loss"] != rows[2]["loss"]
    assert "shifted_accuracy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task=copa", "train.num_dev=10"], "task=copa: its options differ from row to row"),
        (["task=sst2", "--fit", "0"], "--fit=0"),
        (["task=sst2", "--fit", "99999"], "--fit=99999: allowed are up to"),
    ],
)
def test_bad_options_are_one_line(tmp_path, words, message, capsys):
    assert main(["prior", "--out", str(tmp_path), *words, *POCKET]) == 2
    assert message in capsys.readouterr().err
