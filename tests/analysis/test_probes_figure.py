"""The figure of many probes against many steps, from a fabricated suite whose numbers are known."""

import json
from dataclasses import replace

import pytest

from analysis.figures.probes_or_steps import differences, draw, main
from analysis.reading.cells import read_cells
from analysis.reading.suite import load_suite
from tests.analysis.test_table1 import edit, write_json, write_suite

QUERIES = {"agzo": 1, "lozo": 16}  # two columns, made one method's


@pytest.fixture
def suite(tmp_path):
    root = write_suite(tmp_path / "suite")
    plan = json.loads((root / "suite.json").read_text())
    columns = [column for column in plan["columns"] if column["name"] in QUERIES]
    for path in root.glob("pocket/*/*/*/result.json"):
        method = path.parent.parent.name.partition("+")[0]
        if method in QUERIES and path.parts[-4] == "sst2":
            edit(path, config__method__queries=QUERIES[method])
    write_json(root / "suite.json", plan | {"columns": columns, "tasks": ["sst2"]})
    edit(root / "suite.json", budget="examples")
    return root


def test_differences_pair_the_seeds_of_a_method(suite):
    cells = read_cells(load_suite(suite), "pocket")
    for cell in cells.values():
        assert cell.complete
    with pytest.raises(IndexError):
        differences(cells, False)  # either method has one number of probes
    one_method = {
        key: replace(cell, column=replace(cell.column, method="agzo"))
        for key, cell in cells.items()
    }
    assert differences(one_method, True) == pytest.approx([0.0, 0.0, 0.0])  # 90, 91, 92 twice


def test_a_suite_of_other_budgets_is_refused(suite, capsys):
    edit(suite / "suite.json", budget="forwards")
    assert main([str(suite), "--out", str(suite / "figure")]) == 1
    assert "budget forwards, 1 model(s), 1 task(s); expected" in capsys.readouterr().err


def test_it_is_drawn_with_its_answer(suite, monkeypatch):
    monkeypatch.setattr(
        "analysis.figures.probes_or_steps.differences", lambda cells, most: [1.0, 2.0, 3.0]
    )
    png, pdf, text = draw(suite, suite / "figure")
    assert png.stat().st_size > 5000
    assert pdf.is_file()
    words = " ".join(text.read_text().split())
    assert "the most probes minus the fewest: +2.0 points, 95 % t interval -0.5 to +4.5" in words
    assert "12,800" in words
