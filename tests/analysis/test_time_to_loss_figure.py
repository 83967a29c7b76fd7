"""The figure of the time to a loss, from JSON alone: what is missing is named."""

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from analysis.figures import time_to_loss
from analysis.reading.load import ResultError

MODEL = {"name": "a model", "parameters": 1234567}


def row(method: str, who: str, **changes: Any) -> dict:
    slow = 1 if who == "ours" else 6
    looks = [(0, 0.9), (5, 0.8), (10, 0.7)]
    return {
        "method": method, "who": who, "lr": 5e-5, "eps": 1e-3, "seed": 0, "steps": 10,
        "seconds": 10.0 * slow, "taken": 10, "step_seconds": 1.0 * slow, "peak_gib": 0.9,
        "looks": [
            {"step": step, "seconds": 1.0 * step * slow, "dev_loss": loss} for step, loss in looks
        ],
        "task": "sst2", "batch": 16, "dev": 100, "model": MODEL, "data": {"source": "local"},
    } | changes  # fmt: skip


def write(path: Path, rows: list[Any], **changes: Any) -> Path:
    record = {
        "command": "python -m experiments.bench.time_to_loss",
        "arguments": {"target": 0.7, "every": 5},
        "git_commit": "0123456789abcdef",
        "git_dirty": False,
        "machine": {"device": "cpu", "device_name": "a processor", "threads": 1},
        "versions": {"torch": "2.13.0"},
        "complete": True,
        "planned": 4,
        "rows": rows,
    }
    path.write_text(json.dumps(record | changes))
    return path


def test_a_panel_for_each_method_and_all_numbers_in_words(tmp_path):
    lost = {"seconds": None, "steps": None}
    rows = [row("mezo", "ours"), row("mezo", "textbook")]
    rows += [row("agzo", "ours", **lost), row("agzo", "textbook", **lost)]
    drawn = time_to_loss.draw(write(tmp_path / "out.json", rows), tmp_path / "drawn")
    assert [path.name for path in drawn] == ["drawn.png", "drawn.pdf", "drawn.txt"]
    said = " ".join(drawn[2].read_text().split())
    assert (
        "MeZO (lr 5e-05, eps 0.001), here and as published: 10 and 10 steps, 10.0 and 60.0 s, "
        in said
    )
    assert "6.00 times sooner; 1.00 and 6.00 s a step (median), 0.90 and 0.90 GiB at most" in said
    assert (
        "AGZO (lr 5e-05, eps 0.001), here and as published: not reached in 10 and 10 steps" in said
    )
    assert (
        "Model: a model (1,234,567 parameters). Data: local, task sst2, batch 16, 100 dev" in said
    )
    assert "n = 1 seed (0). a processor, 1 thread(s), torch 2.13.0, commit 0123456." in said
    assert "sanity check" not in said


@pytest.mark.parametrize(
    ("lost", "sentence", "mark"),
    [
        (("textbook",), "10 steps and 10.0 s here, not reached in 40 steps as published;",
         "as published not reached in 40 steps"),
        (("ours",), "not reached in 20 steps here, 10 steps and 60.0 s as published;",
         "here not reached in 20 steps"),
        (("ours", "textbook"), "not reached in 20 and 40 steps;", "not reached in 20 and 40 steps"),
        ((), "10 and 10 steps, 10.0 and 60.0 s, 6.00 times sooner;", "6.0 times sooner"),
    ],
)  # fmt: skip
def test_each_of_a_pair_says_whether_it_came_to_the_loss(lost, sentence, mark, tmp_path):
    pair = [row("mezo", who, taken=taken) for who, taken in (("ours", 20), ("textbook", 40))]
    for one in pair:
        one |= {"seconds": None, "steps": None} if one["who"] in lost else {}
    drawn = time_to_loss.draw(write(tmp_path / "out.json", pair), tmp_path / "drawn")
    assert f"here and as published: {sentence}" in " ".join(drawn[2].read_text().split())
    axes = Figure().subplots()
    time_to_loss._mark(axes, *pair, target=0.7)
    assert [text.get_text() for text in axes.texts] == [mark]
    assert len(axes.lines) == 1 + 2 - len(lost)  # the loss, and where it is reached


PAIR = [row("mezo", "ours"), row("mezo", "textbook")]


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        (PAIR[:1], {}, "has no row of mezo, textbook; measure again"),
        (PAIR[1:], {}, "has no row of mezo, ours; measure again"),
        ([], {}, r"key rows is \[\]; expected at least one method"),
        (PAIR, {"complete": False}, "has 2 of 4 cases; run the same command again"),
        (PAIR, {"command": "another"}, "key command is 'another'; expected"),
        (PAIR, {"arguments": {}}, "key arguments.target is missing"),
        ([row("mezo", "ours", looks=[])], {}, r"key looks is \[\]; .* \(in rows\[0\]\)"),
        ([row("mezo", "ours", looks=[{}])], {}, r"key seconds is missing \(in rows\[0\]\)"),
        ([row("mezo", "ours", seconds="5")], {}, r"key seconds is '5'; expected .* \(in rows"),
        ([3], {}, r"key rows\[0\] is 3; expected an object"),
    ],
)
def test_what_is_missing_is_named(rows, changes, message, tmp_path):
    with pytest.raises(ResultError, match=message):
        time_to_loss.draw(write(tmp_path / "out.json", rows, **changes), tmp_path / "drawn")


def test_a_missing_file_is_one_line(tmp_path, capsys):
    words = [str(tmp_path / "absent.json"), "--out", str(tmp_path / "drawn")]
    assert time_to_loss.main(words) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'absent.json'}: no such file\n"
