"""Figures 3 and 4 from files alone: what is missing is named, and the caption says what it is."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from analysis.figures import peak_memory
from analysis.paper import memory as paper
from analysis.reading.load import ResultError
from analysis.reading.memory_points import COLUMNS, criterion, load_sweep, ratio

METHODS = ("inference", "sgd", "sgd_checkpointed", "agzo", "mezo", "lozo")
LEVEL = {"inference": 2.0, "sgd": 9.0, "sgd_checkpointed": 5.0, "agzo": 2.02, "mezo": 2.01}


def rows(kind: str = "counted", shape: str = "0.6b", dtype: str = "float32") -> list[dict]:
    found = []
    for batch, length in ((4, 128), (4, 256), (4, 512), (1, 256), (8, 256)):
        for series in ("published", "ours"):
            for method in METHODS:
                level = LEVEL.get(method, 2.03) * (1.5 if series == "published" else 1.0)
                found.append(
                    dict(
                        kind=kind, shape=shape, dtype=dtype, attention="fused", series=series,
                        method=method, batch=batch, length=length, status="ok",
                        peak_gib=level * batch * length / 512, reserved_gib="",
                        baseline_gib=0.25 if kind == "resident" else "", message="",
                    )
                )  # fmt: skip
    return found


def write(folder: Path, table: list[dict], **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    kind, shape, dtype = (table[0][key] for key in ("kind", "shape", "dtype"))
    about = {
        "probe": "memory",
        "settings": {
            "kind": kind, "shape": shape, "dtype": dtype, "attention": "fused", "batch": 4,
            "lengths": "128,256,512", "length": 256, "batches": "1,4,8",
            "methods": ",".join(METHODS), "series": "published,ours",
        },
        "parameters": 596_049_920,
        "answer_tokens": 8,
        "git_commit": "0123456789abcdef",
        "git_dirty": False,
        "machine": {"device": "cpu", "device_name": "a processor", "threads": 1},
        "rows": {"memory": len(table)},
    }  # fmt: skip
    (folder / "about.json").write_text(json.dumps(about | changes))
    with (folder / "memory.csv").open("w") as file:
        writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    return folder


def without(table: list[dict], **point: Any) -> list[dict]:
    return [row for row in table if any(row[key] != value for key, value in point.items())]


def test_the_figure_is_drawn_twice_the_same_and_says_what_it_is(tmp_path, capsys):
    folder = write(tmp_path / "in", rows())
    assert peak_memory.main([str(folder), "--out", str(tmp_path / "a" / "figure")]) == 0
    printed = capsys.readouterr().out
    assert "AGZO needs at most 1.0050 times the memory of MeZO" in printed
    assert "AGZO 4.19" in printed
    peak_memory.draw([folder], tmp_path / "b" / "figure")
    for suffix in (".png", ".pdf", ".txt"):
        first, second = (tmp_path / each / f"figure{suffix}" for each in "ab")
        assert first.read_bytes() == second.read_bytes()
    caption = " ".join((tmp_path / "a" / "figure.txt").read_text().split())
    for words in (
        "batch size (Figure 3 of the paper).",
        "Counted: bytes of live tensors",
        "without kernels' workspaces, the allocator's fragmentation and the CUDA context",
        "random weights of the shape of Qwen3-0.6B, 596,049,920 parameters, float32",
        "the last 8 of them the answer",
        "counted as a fused kernel",
        "n = 1",
        "Open markers: the paper's points",
        "Published code here over the paper's AGZO: 0.76 at 4 x 128, 1.45 at 4 x 256",
        "the two moments that AdamW keeps would be 4.4 GiB",
        "SGD, published code, from length 256 and from batch 4",
        "at most 1.0100 times the memory of inference",
        "commit 0123456",
    ):
        assert words in caption, words
    assert "with local changes" not in caption


def test_other_kinds_and_several_folders(tmp_path):
    resident = rows("resident", "60m")
    sweep = load_sweep(write(tmp_path / "resident", resident))
    assert sweep.peaks["ours", "sgd", 4, 256] == pytest.approx(18.0 - 0.25)  # less the baseline
    assert sweep.printed == []
    cuda = rows("cuda", "pangu-1b", "bfloat16")
    for row in cuda:
        if row["method"] == "sgd" and row["length"] == 512:
            row |= {"status": "out_of_memory", "peak_gib": "", "message": "CUDA out of memory"}
    write(tmp_path / "cuda", cuda)
    folders = [tmp_path / "resident", tmp_path / "cuda"]
    paths = peak_memory.draw(folders, tmp_path / "both")
    caption = " ".join(paths[-1].read_text().split())
    assert "Panels (a), (b). Measured: the peak resident set" in caption
    assert "Panels (c), (d). Measured: the peak that torch's CUDA allocator" in caption
    assert "SGD, this library, from length 512" in caption
    assert "whether the real one is tied is not known" in caption
    assert load_sweep(tmp_path / "cuda").peaks["ours", "sgd", 4, 512] is None


def test_what_is_missing_stops_with_its_name(tmp_path, capsys):
    whole = rows()
    gap = without(whole, series="ours", method="agzo", length=512)
    with pytest.raises(ResultError, match="ours agzo, batch 4, length 512, is missing"):
        load_sweep(write(tmp_path / "gap", gap))
    for column in COLUMNS["memory"]:
        table = [{key: row[key] for key in row if key != column} for row in whole]
        folder = tmp_path / f"no-{column}"
        write(folder, whole)
        with (folder / "memory.csv").open("w") as file:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
        with pytest.raises(ResultError, match=f"has no column {column}"):
            load_sweep(folder)
    failed = [dict(row) for row in whole]
    failed[3] |= {"status": "failed", "peak_gib": "", "message": "KeyError: 'x'"}
    with pytest.raises(ResultError, match=r"published agzo, batch 4, length 128, .*KeyError"):
        load_sweep(write(tmp_path / "failed", failed))
    empty = [dict(row) for row in whole]
    empty[3] |= {"peak_gib": ""}
    with pytest.raises(ResultError, match="has no peak"):
        load_sweep(write(tmp_path / "empty", empty))
    with pytest.raises(ResultError, match="'structure'; expected 'memory'"):
        load_sweep(write(tmp_path / "other", whole, probe="structure"))
    assert peak_memory.main([str(tmp_path / "none"), "--out", str(tmp_path / "x")]) == 1
    assert "measure first (python -m experiments.probe memory" in capsys.readouterr().err
    assert not list(tmp_path.glob("x.*"))


def test_ratios_and_crossings(tmp_path):
    table = rows()
    for row in table:
        if row["method"] == "agzo" and row["batch"] == 8 and row["series"] == "ours":
            row["peak_gib"] *= 1.5
    sweep = load_sweep(write(tmp_path, table))
    found = ratio(sweep, "agzo", "mezo")
    assert found is not None
    assert found[0] == pytest.approx(1.5 * 2.02 / 2.01)
    assert found[1] == (8, 256)
    assert len(list(criterion(sweep))) == 2
    assert list(peak_memory.crossings([(1, 6.0), (2, 12.0), (8, 48.0)])) == pytest.approx([4.0])
    assert list(peak_memory.crossings([(1, 6.0), (2, 24.0)])) == []


def test_the_papers_points_are_whole():
    figure3, figure4 = (paper.load(name) for name in paper.NAMES)
    assert len(figure3.points) == 24
    assert sum(point.peak is None for point in figure3.points) == 2
    at = {(point.method, point.batch, point.length): point.peak for point in figure4.points}
    assert at == {
        ("sgd", 4, 1536): None,
        ("agzo", 4, 2048): 9.69,
        ("sgd", 32, 256): None,
        ("agzo", 64, 256): 15.15,
    }
    with pytest.raises(ValueError, match="expected one of figure3, figure4"):
        paper.load("figure9")
