"""The dev loss of a suite's columns: which runs a line is made of, and what is not drawn."""

from pathlib import Path

import pytest

from analysis.figures import curves, suite_loss
from analysis.reading.cells import read_cells
from analysis.reading.load import ResultError
from analysis.reading.suite import Column, load_suite
from tests.analysis.test_table1 import COLUMNS, SCORES, edit, folder_of, write_suite


def with_looks(root: Path) -> Path:
    """Give each run of the suite a dev loss at start and end: 1, and a quarter + seed / 8."""
    for path in root.rglob("result.json"):
        seed = int(path.parent.name.removeprefix("seed"))
        looks = [
            {"step": at // 2, "forwards": at, "loss": None, "projected_grad": None, "seconds": at,
             "dev": {"loss": loss, "n": 40, "accuracy": 0.5, "seconds": 1.0}}
            for at, loss in ((0, 1.0), (800, 0.25 + seed / 8))
        ]  # fmt: skip
        edit(path, metrics=looks)
    return root


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    return with_looks(write_suite(tmp_path / "table1"))


def test_a_line_holds_each_seed_of_the_chosen_setting(suite: Path) -> None:
    edit(folder_of(suite, "sst2", "agzo", 0, "lr0.003") / "result.json", metrics=[])  # not chosen
    cells = read_cells(load_suite(suite), "pocket")
    lines = suite_loss.curve(cells["sst2", "agzo"])
    assert lines == {(0, 0): [1.0, 1.0, 1.0], (400, 800): [0.25, 0.375, 0.5]}


def test_the_figure_of_a_suite_and_its_caption(suite: Path, tmp_path: Path) -> None:
    first, again = (curves.draw(suite, tmp_path / name / "loss_0.6b") for name in "ab")
    assert [path.name for path in first] == [f"loss_0.6b.{x}" for x in ("png", "pdf", "txt")]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, again, strict=True))
    said = " ".join(first[2].read_text().split())
    assert "mean over the seeds (0, 1, 2)" in said
    assert "Not drawn" not in said
    (folder_of(suite, "sst2", "mezo", 2, "lr0.001") / "result.json").unlink()
    for name, _, kind in COLUMNS:
        if kind != "untrained":
            (folder_of(suite, "copa", name, 1, "lr0.001") / "result.json").unlink()
    said = " ".join(curves.draw(suite, tmp_path / "loss")[2].read_text().split())
    assert said.count("Not drawn, since unfinished: sst2 (MeZO), copa.") == 1


def test_a_suite_without_a_finished_column_is_no_figure(suite: Path, tmp_path: Path) -> None:
    for task in SCORES:
        for name, _, kind in COLUMNS:
            if kind != "untrained":
                (folder_of(suite, task, name, 1, "lr0.001") / "result.json").unlink()
    with pytest.raises(ResultError, match="no column of pocket has all its seeds"):
        curves.draw(suite, tmp_path / "loss")


def test_the_dev_loss_of_a_suite_has_no_window(suite: Path, tmp_path: Path) -> None:
    with pytest.raises(ResultError, match=r"window=0\.2: the dev loss of a suite's columns"):
        curves.draw(suite, tmp_path / "loss", window=0.2)


@pytest.mark.parametrize("method", ["agzo", "first_of_its_name"])
def test_no_two_columns_of_a_method_look_alike(method: str) -> None:
    columns = [Column(f"c{n}", f"column {n}", method, "zo", (), (0,), 0) for n in range(30)]
    looks = suite_loss._looks(columns)
    told = {(look["marker"], look["linestyle"]) for look in looks.values()}
    assert len(told) == len(columns)
    assert len({look["color"] for look in looks.values()}) == 1
