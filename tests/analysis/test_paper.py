"""The literature's numbers: complete, and inconsistent only where it is known."""

import math
import statistics

import pytest

from analysis.paper import NAMES, load
from analysis.paper.__main__ import shown, side_by_side


def test_tables_are_whole() -> None:
    for name, cells in zip(NAMES, (48, 36, 36, 42), strict=True):
        table = load(name)
        assert sum(len(row) for row in table.scores.values()) == cells
        assert table.notes
        assert table.confidence
        for task in table.scores:
            for column in table.columns:
                percent = table.percent(task, column)
                assert percent is not None
                assert 40 < percent < 96
    assert load("table1").percent("sst2", "agzo") == pytest.approx(87.7)
    assert load("aim_zo").percent("squad", "mezo") == 83.23
    assert load("table2").percent("squad", "agzo") is None
    with pytest.raises(ValueError, match="expected one of table1, table2"):
        load("table9")


def test_printed_averages_follow_from_the_rows_but_for_the_known_two() -> None:
    wrong = {
        (name, column): (round(mean, 1), round(printed, 1))
        for name in NAMES
        for column, (mean, printed) in load(name).wrong_averages().items()
    }
    assert wrong == {("table3", "first_order"): (75.1, 73.8), ("table3", "icl"): (63.4, 63.6)}
    means = [mean for mean, printed in load("table1").averages().values() if printed is None]
    assert means == pytest.approx([81.60, 76.83, 73.61, 73.55, 52.46, 59.15], abs=0.01)


def test_scores_are_counts_of_the_evaluation_sets_but_for_the_known_two() -> None:
    odd = set()
    for name in ("table1", "table2", "table3"):
        table = load(name)
        for task, row in table.scores.items():
            n = table.eval_n[task]
            half = 0.5 if table.rounding == "rounded" else 0.0
            counts = {math.floor(1000 * k / n + half) for k in range(n + 1)}
            odd |= {
                (name, task, column)
                for column, score in zip(table.columns, row, strict=True)
                if round(1000 * score) not in counts
            }
    assert odd == {("table1", "cb", "lozo"), ("table1", "cb", "icl")}


def test_other_known_facts() -> None:
    npu = load("table3").scores["sst2"]
    assert npu[2] > npu[1]  # the text says AGZO is best on SST-2, the table MeZO
    by_seed = {
        "rte": (76.17, 76.90, 79.06, 77.98, 77.98),
        "sst2": (89.11, 90.37, 88.19, 87.04, 87.39),
    }
    re_run = load("aim_zo")
    assert re_run.std is not None
    for task, five in by_seed.items():  # MeZO's: what its row says follows from what its note says
        assert statistics.fmean(five) == pytest.approx(re_run.scores[task][1], abs=0.006)
        assert statistics.stdev(five) == pytest.approx(re_run.std[task][1], abs=0.006)
        assert ", ".join(f"{score:.2f}" for score in five) in " ".join(re_run.notes)
    boolq = load("table1").scores["boolq"]
    assert boolq[2] > boolq[1]


def test_tables_are_printed_with_what_they_stand_on() -> None:
    text = shown(load("table3")).text()
    assert "Printed average of first_order: 73.8 %, mean of the rows: 75.1 %." in text
    assert "arXiv 2601.17261v1, Table 3" in text
    assert "69.68 ± 4.39" in shown(load("aim_zo")).text()
    assert "87.7, 84.8" in side_by_side(load("table1"), load("aim_zo")).text()
