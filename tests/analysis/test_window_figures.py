"""The figures of the slope and arrival probes, from a probe's own files to the drawing."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_run import world

from analysis.figures import eps_window, update_arrival
from analysis.reading.load import ResultError
from experiments.probe import __main__

FIGURES: dict[str, Any] = {"slope": eps_window, "arrival": update_arrival}
OPTIONS = {
    "slope": ["--eps", "1e-7,1e-4,1e-3,1e-2", "--directions", "2", "--dtypes", "fp32,bf16"],
    "arrival": ["--lrs", "1e-6,1e-2", "--updates", "3", "--singles", "2", "--dtypes", "fp32,bf16"],
}
TABLES = {"slope": ("windows", "relative_error"), "arrival": ("arrival", "gain_sum")}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both probes, run by their command line on a tiny model."""
    root = tmp_path_factory.mktemp("probes")
    overrides = [
        "model=local", f"model.path={world() / 'model'}", "data=local", "task=sst2",
        f"data.root={world() / 'data'}", "train.num_train=16", "train.num_dev=8",
        "train.num_eval=8", "train.batch_size=4", "threads=1", "method=agzo", "method.rank=2",
    ]  # fmt: skip
    for probe, options in OPTIONS.items():
        assert __main__.main([probe, "--out", str(root / probe), *options, *overrides]) == 0
    return {probe: root / probe for probe in OPTIONS}


@pytest.mark.parametrize("probe", list(FIGURES))
def test_a_figure_with_its_caption(probe: str, measured: dict[str, Path], tmp_path: Path) -> None:
    stem = tmp_path / "figure"
    assert FIGURES[probe].main([str(measured[probe]), "--out", str(stem)]) == 0
    assert stem.with_suffix(".png").stat().st_size > 10_000
    assert stem.with_suffix(".pdf").stat().st_size > 1_000
    caption = " ".join(stem.with_suffix(".txt").read_text().split())
    words = ("task sst2", "Seed: 0", "commit", "Device: cpu", "rank=2", "parameters)")
    assert [word for word in words if word not in caption] == []
    own = {
        "slope": ("n = 4 directions", "2 for each of 2 training batches", "Recommended eps"),
        "arrival": ("n = 2 of them", "the sum of 3 updates", "weights of linear layers"),
    }
    assert [word for word in own[probe] if word not in caption] == []


def test_the_probe_prints_what_the_caption_recommends(
    measured: dict[str, Path], tmp_path: Path
) -> None:
    table = (measured["slope"] / "recommended.csv").read_text().splitlines()
    assert len(table) == 1 + 2 * 3 * 2  # dtypes, methods, estimators
    stem = tmp_path / "figure"
    eps_window.draw(measured["slope"], stem)
    caption = " ".join(stem.with_suffix(".txt").read_text().split())
    cells = [line.split(",") for line in table[1:]]
    mezo = {row[2]: row[3] for row in cells if row[:2] == ["mezo", "fp32"]}
    both = [f"{float(mezo[e]):g}" if mezo[e] else "none" for e in ("one_sided", "two_sided")]
    assert f"float32: (MeZO {', '.join(both)})" in caption


@pytest.mark.parametrize("probe", list(FIGURES))
def test_missing_data_stops_with_its_name(
    probe: str, measured: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = FIGURES[probe].draw
    with pytest.raises(ResultError, match="measure first"):
        draw(tmp_path / "nothing", tmp_path / "figure")
    other = measured["arrival" if probe == "slope" else "slope"]
    with pytest.raises(ResultError, match=f"expected '{probe}'"):
        draw(other, tmp_path / "figure")

    name, column = TABLES[probe]
    copy = shutil.copytree(measured[probe], tmp_path / "copy")
    whole = (copy / f"{name}.csv").read_text()
    (copy / f"{name}.csv").write_text(whole.replace(column, "renamed"))
    with pytest.raises(ResultError, match=f"no column.*{column}"):
        draw(copy, tmp_path / "figure")
    (copy / f"{name}.csv").write_text(whole.replace("bf16", "fp8"))
    with pytest.raises(ResultError, match="dtype 'fp8'"):
        draw(copy, tmp_path / "figure")
    (copy / f"{name}.csv").unlink()
    assert FIGURES[probe].main([str(copy), "--out", str(tmp_path / "figure")]) == 1
    assert f"{name}.csv: no such file" in capsys.readouterr().err
    assert not (tmp_path / "figure.png").exists()


def test_a_scope_without_rows_is_an_error(measured: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(measured["arrival"], tmp_path / "copy")
    lines = (copy / "arrival.csv").read_text().splitlines(keepends=True)
    kept = [line for line in lines if ",linear," not in line]
    (copy / "arrival.csv").write_text("".join(kept))
    with pytest.raises(ResultError, match=f"has {len(kept) - 1} rows, about.json says"):
        update_arrival.draw(copy, tmp_path / "figure")
    about = json.loads((copy / "about.json").read_text())
    about["rows"]["arrival"] = len(kept) - 1
    (copy / "about.json").write_text(json.dumps(about))
    with pytest.raises(ResultError, match="scope 'linear' has no rows"):
        update_arrival.draw(copy, tmp_path / "figure")
    assert update_arrival.draw(copy, tmp_path / "figure", "all")
