"""The figure of layer scores: what it draws, and that it stops where data are missing."""

import copy
import json

import pytest

from analysis.figures.layer_scores import DETECTORS, main
from baselines.outliers import THRESHOLDS

SCORES = {
    "massive_activations": [0.01, 0.02, 5.0, 5.0],
    "super_weight": [1.0, 0.9, 40.0, 1.1],
    "first_token": [1.0, 1.1, 200.0, 190.0],
}
RESULT = {
    "status": "finished", "task": "sst2", "seed": 0, "pocket": False,
    "model": {"name": "small"}, "git_commit": "abcdef0123", "git_dirty": False,
    "machine": {"device": "cpu", "device_name": "a processor", "threads": 1},
    "config": {"train": {"batch_size": 16}, "precision": {"dtype": "fp32"}},
    "study": {
        "layer": 2, "layers": 4, "given": False, "detector": "massive_activations",
        "found": dict.fromkeys(SCORES, 2), "thresholds": THRESHOLDS, "scores": SCORES, "batches": 4,
    },
}  # fmt: skip


def write(folder, change=lambda result: None):
    result = copy.deepcopy(RESULT)
    change(result)
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_the_figure_and_its_caption(tmp_path, capsys):
    def other(result):
        result["model"]["name"] = "other"
        result["study"] |= {"given": True, "layer": 0, "found": dict.fromkeys(SCORES)}
        result["pocket"] = True

    write(tmp_path / "runs" / "a")
    write(tmp_path / "runs" / "b", other)
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "figure")]) == 0
    written = capsys.readouterr().out.split()
    assert [name.rpartition(".")[2] for name in written] == ["png", "pdf", "txt"]
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    words = " ".join((tmp_path / "figure.txt").read_text().split())
    assert "small: 4 batches of 16, task sst2, seed 0, fp32; first outlier layer: " in words
    assert "massive activations 2, super weight 2, first token's norm 2" in words
    assert "tuned: layer 2, chosen by massive activations. Device: cpu" in words
    assert "other: 4 batches of 16" in words
    assert "super weight none" in words
    assert "tuned: layer 0, as given" in words
    assert words.count("sanity check") == 1
    first = (tmp_path / "figure.pdf").read_bytes()
    main([str(tmp_path / "runs"), "--out", str(tmp_path / "figure")])
    assert (tmp_path / "figure.pdf").read_bytes() == first


def test_the_figure_knows_every_detector():
    assert set(DETECTORS) == set(THRESHOLDS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(study=None), "key study is null; expected a scan"),
        (lambda r: r.pop("study"), "key study is missing"),
        (lambda r: r.update(status="failed"), "key status is 'failed'"),
        (lambda r: r["study"].pop("layer"), "key study.layer is missing"),
        (lambda r: r["study"]["scores"].pop("first_token"), "study.scores.first_token is missing"),
        (lambda r: r["study"]["scores"]["super_weight"].pop(), "super_weight has 3 of 4 layers"),
    ],
)
def test_missing_data_stop_with_file_and_key(tmp_path, capsys, change, message):
    folder = write(tmp_path / "run", change)
    assert main([str(folder), "--out", str(tmp_path / "figure")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not list(tmp_path.glob("figure.*"))


def test_no_results_stop_with_the_folder(tmp_path, capsys):
    assert main([str(tmp_path), "--out", str(tmp_path / "figure")]) == 1
    assert "holds no result.json" in capsys.readouterr().err
