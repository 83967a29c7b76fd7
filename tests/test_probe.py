"""The probes' command line and files, and the figures of the structure and alignment probes."""

import csv
import json

import pytest

from analysis import gradient_alignment, singular_spectrum
from analysis.load import ResultError
from analysis.probe import load_probe
from experiments.probe import tidy
from experiments.probe.__main__ import main

POCKET = ["model=pocket", "data=pocket", "task=sst2", "threads=1", "train.batch_size=4"]
STRUCTURE = ["--steps", "0,2"]
ALIGNMENT = ["--steps", "0,1", "--groups", "2", "--forwards", "2,4", "--layer-queries", "2"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    for name, options in (("structure", STRUCTURE), ("alignment", ALIGNMENT)):
        assert main([name, "--out", str(folder / name), *options, *POCKET]) == 0
    return folder


def test_a_probe_leaves_tables_and_what_they_stand_on(measured):
    about = json.loads((measured / "structure" / "about.json").read_text())
    assert about["probe"] == "structure"
    assert about["tables"] == ["cosines", "energy", "spectra"]
    assert about["settings"]["steps"] == "0,2"
    assert about["settings"]["overrides"] == POCKET
    assert about["model"]["name"] == "pocket"
    assert about["config"]["train"]["batch_size"] == 4
    assert {"git_commit", "machine", "versions", "command", "seconds"} <= about.keys()
    with (measured / "alignment" / "whole.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 3 * 2  # steps, scopes, methods, groups
    assert {row["method"] for row in rows} == {"agzo", "mezo", "lozo"}


def test_a_measured_folder_is_left_alone_and_other_settings_are_refused(measured, capsys):
    folder = str(measured / "structure")
    before = (measured / "structure" / "about.json").stat().st_mtime_ns
    assert main(["structure", "--out", folder, *STRUCTURE, *POCKET]) == 0
    assert "measured already" in capsys.readouterr().out
    assert main(["structure", "--out", folder, "--steps", "0,3", *POCKET]) == 2
    message = capsys.readouterr().err
    assert "another steps" in message
    assert folder in message
    assert (measured / "structure" / "about.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("structure", ["--steps", "5,1"], "--steps=5,1: allowed are ascending whole numbers"),
        ("structure", ["--steps", "x"], "--steps=x"),
        ("structure", ["task=nothing"], "task=nothing: unknown"),
        ("structure", ["--layers", "nothing"], "--layers=nothing: in no layer's name"),
        ("structure", ["method=zero_shot"], "method=zero_shot: allowed is a method that trains"),
        ("alignment", ["--groups", "1"], "--groups=1: allowed is 2 or more"),
        ("alignment", ["--forwards", "1,2"], "--forwards=1,2"),
        ("alignment", ["--layer-queries", "0"], "--layer-queries=0: allowed is 2 or more"),
        ("alignment", ["--methods", "sgd"], "--methods=sgd: allowed are zeroth-order methods"),
        ("alignment", ["--methods", "none"], "method=none: unknown"),
        ("alignment", ["--layer-steps", "7"], "--layer-steps=7"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, name, options, message):
    assert main([name, "--out", str(tmp_path / "x"), *POCKET, *options]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "x").exists()


def test_tables_hold_no_gaps(tmp_path):
    with pytest.raises(ValueError, match="at least one row"):
        tidy.to_csv([])
    with pytest.raises(ValueError, match="allowed are the columns a"):
        tidy.to_csv([{"a": 1}, {"b": 2}])
    with pytest.raises(ValueError, match=r"a=nan: allowed are finite"):
        tidy.to_csv([{"a": float("nan")}])
    assert tidy.to_csv([{"a": 1 / 3, "b": None, "c": "x,y"}]) == 'a,b,c\n0.333333,,"x,y"\n'


@pytest.mark.parametrize(
    ("module", "name"), [(singular_spectrum, "structure"), (gradient_alignment, "alignment")]
)
def test_a_figure_is_drawn_from_files_alone_and_twice_the_same(measured, tmp_path, module, name):
    paths = module.draw(measured / name, tmp_path / "one")
    assert [path.name for path in paths] == ["one.png", "one.pdf", "one.txt"]
    again = module.draw(measured / name, tmp_path / "two")
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(paths, again, strict=True))
    caption = (tmp_path / "one.txt").read_text()
    for part in ("Model: pocket (587,872", "task sst2", "seed 0", "fp32", "cpu", "commit",
                 "sanity check"):  # fmt: skip
        assert part in " ".join(caption.split())


def test_alignment_caption_counts_what_was_measured(measured, tmp_path):
    gradient_alignment.draw(measured / "alignment", tmp_path / "figure")
    caption = " ".join((tmp_path / "figure.txt").read_text().split())
    assert "AGZO one-sided, eps 0.001, 2 groups of 3 queries" in caption
    assert "MeZO two-sided, eps 0.001, 2 groups of 2 queries" in caption


@pytest.mark.parametrize(
    ("module", "name", "table"),
    [(singular_spectrum, "structure", "energy"), (gradient_alignment, "alignment", "layers")],
)
def test_missing_data_stop_a_figure(measured, tmp_path, capsys, module, name, table):
    copy = tmp_path / name
    copy.mkdir()
    for path in (measured / name).iterdir():
        (copy / path.name).write_text(path.read_text())
    text = (copy / f"{table}.csv").read_text()
    header, _, rows = text.partition("\n")
    (copy / f"{table}.csv").write_text(header.replace("layer", "lair") + "\n" + rows)
    with pytest.raises(ResultError, match=f"{table}.csv: has no column layer"):
        module.draw(copy, tmp_path / "figure")
    (copy / f"{table}.csv").write_text(header + "\n")
    with pytest.raises(ResultError, match=f"{table}.csv: has no rows"):
        module.draw(copy, tmp_path / "figure")
    (copy / f"{table}.csv").unlink()
    assert module.main([str(copy), "--out", str(tmp_path / "figure")]) == 1
    assert f"{table}.csv: no such file" in capsys.readouterr().err
    with pytest.raises(ResultError, match="measure first"):
        load_probe(tmp_path / "nothing", name, {})
    with pytest.raises(ResultError, match="expected 'other'"):
        load_probe(copy, "other", {})
