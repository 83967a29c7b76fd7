"""The probes' command line and files, and the figures of the structure and alignment probes."""

import csv
import json

import pytest

from analysis.figures import gradient_alignment, singular_spectrum
from analysis.reading.load import ResultError
from analysis.reading.probe import load_probe
from experiments.config.errors import BadInput
from experiments.probe import scene
from experiments.probe.__main__ import main
from experiments.records import tidy

POCKET = [
    "model=pocket", "data=pocket", "task=sst2", "threads=1", "train.batch_size=4",
    "data.pocket_train=128", "data.pocket_validation=64", "train.num_train=64",
    "train.num_dev=32", "train.num_eval=32",
]  # fmt: skip
STRUCTURE = ["--steps", "0,2"]
ALIGNMENT = ["--steps", "0,1", "--groups", "2", "--forwards", "2,4", "--layer-queries", "2"]
ALIGNMENT += ["--layers", "layers.0."]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    for name, options in (("structure", STRUCTURE), ("alignment", ALIGNMENT)):
        assert main([name, "--out", str(folder / name), *options, *POCKET]) == 0
    return folder


def test_a_probe_leaves_tables_and_what_they_stand_on(measured):
    about = json.loads((measured / "structure" / "about.json").read_text())
    assert about["probe"] == "structure"
    assert list(about["rows"]) == ["cosines", "energy", "spectra"]
    assert about["rows"]["energy"] == 2 * 28  # steps, linear layers
    assert not (measured / "structure" / "parts").exists()
    assert about["settings"]["steps"] == "0,2"
    assert about["settings"]["overrides"] == POCKET
    assert about["model"]["name"] == "pocket"
    assert about["config"]["train"]["batch_size"] == 4
    assert {"git_commit", "machine", "versions", "command", "seconds"} <= about.keys()
    with (measured / "alignment" / "whole.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 5 * 2  # steps, scopes, methods, groups
    methods = {"agzo", "mezo", "lozo", "zo_act", "dominant_layer"}
    assert {row["method"] for row in rows} == methods
    with (measured / "alignment" / "layers.csv").open() as file:
        layers = list(csv.DictReader(file))
    assert {r["method"] for r in layers if r["perturbed"] == "alone"} == methods - {
        "dominant_layer"
    }
    counts = [
        len({row["layer"] for row in layers if row["perturbed"] == how})
        for how in ("alone", "together")
    ]
    assert counts == [7, 28]
    own = {row["layer"] for row in layers if row["method"] == "dominant_layer"}
    assert len(own) == 7
    assert all(name.startswith("model.layers.1.") for name in own)
    about = json.loads((measured / "alignment" / "about.json").read_text())
    assert about["dominant_layer"] == {"layer": 1, "base": "mezo"}


def test_a_measured_folder_is_left_alone_and_other_settings_are_refused(measured, capsys):
    folder = str(measured / "structure")
    before = (measured / "structure" / "about.json").stat().st_mtime_ns
    assert main(["structure", "--out", folder, *STRUCTURE, *POCKET]) == 0
    assert "measured already" in capsys.readouterr().out
    about = json.loads((measured / "structure" / "about.json").read_text())
    del about["settings"]["layers"]  # as if the option had come later
    assert tidy.finished(measured / "structure", about["settings"] | {"layers": ""})
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
        ("alignment", ["method=zo_act"], "method=zo_act: its run leaves the weights as they are"),
        (
            "alignment",
            ["--methods", "zo_act", "adapter=lora"],
            "--methods=zo_act: adapter.name=lora: method=zo_act cannot tune it",
        ),
        ("alignment", ["--layer", "9"], "--layer=9: allowed are 0 to 3, the model's layers"),
        (
            "alignment",
            ["--methods", "dominant_layer", "precision=bf16"],
            "--methods=dominant_layer: it holds its layer in float32",
        ),
        ("alignment", ["--methods", "none"], "method=none: unknown"),
        ("alignment", ["--layer-steps", "7"], "--layer-steps=7"),
        ("alignment", ["--layers", "layers.0,head"], "--layers=head: in no layer's name"),
        ("structure", ["--layers", "layers"], "layers; allowed are up to 6, whose spectra"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, name, options, message):
    assert main([name, "--out", str(tmp_path / "x"), *POCKET, *options]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not list((tmp_path / "x").iterdir())


def test_tables_hold_no_gaps(tmp_path):
    with pytest.raises(ValueError, match="at least one row"):
        tidy.to_csv([])
    with pytest.raises(ValueError, match="allowed are the columns a"):
        tidy.to_csv([{"a": 1}, {"b": 2}])
    with pytest.raises(ValueError, match=r"a=nan: allowed are finite"):
        tidy.to_csv([{"a": float("nan")}])
    assert tidy.to_csv([{"a": 1 / 3, "b": None, "c": "x,y"}]) == 'a,b,c\n0.333333,,"x,y"\n'


@pytest.mark.parametrize(
    ("module", "name"),
    [
        pytest.param(singular_spectrum, "structure", marks=pytest.mark.slow),
        (gradient_alignment, "alignment"),
    ],
)
@pytest.mark.slow
def test_a_figure_is_drawn_from_files_alone_and_twice_the_same(measured, tmp_path, module, name):
    paths = module.draw(measured / name, tmp_path / "one")
    assert [path.name for path in paths] == ["one.png", "one.pdf", "one.txt"]
    again = module.draw(measured / name, tmp_path / "two")
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(paths, again, strict=True))
    caption = (tmp_path / "one.txt").read_text()
    for part in ("Model: pocket (587,872", "task sst2", "seed 0", "fp32", "cpu", "commit",
                 "sanity check"):  # fmt: skip
        assert part in " ".join(caption.split())


@pytest.mark.slow
def test_alignment_caption_counts_what_was_measured(measured, tmp_path):
    gradient_alignment.draw(measured / "alignment", tmp_path / "figure")
    caption = " ".join((tmp_path / "figure.txt").read_text().split())
    assert "AGZO one-sided, eps 0.001, 2 groups of 3 queries" in caption
    assert "MeZO two-sided, eps 0.001, 2 groups of 2 queries" in caption
    assert "ZO-Act two-sided, eps 0.001, 2 groups of 2 queries" in caption
    assert "LOZO-M evaluates LOZO's directions" in caption
    assert "The dominant layer, by MeZO in layer 1 (from 0)" in caption


def test_a_layer_is_missed_but_where_a_method_leaves_it(measured, tmp_path):
    copy = tmp_path / "alignment"
    copy.mkdir()
    for path in (measured / "alignment").iterdir():
        (copy / path.name).write_text(path.read_text())
    rows = (copy / "layers.csv").read_text().splitlines(keepends=True)
    kept = [row for row in rows if "mezo,model.layers.0.mlp.up_proj" not in row]
    (copy / "layers.csv").write_text("".join(kept))
    about = json.loads((copy / "about.json").read_text())
    about["rows"]["layers"] -= len(rows) - len(kept)
    (copy / "about.json").write_text(json.dumps(about))
    with pytest.raises(ResultError, match=r"mezo has no row of model.layers.0.mlp.up_proj.weight"):
        gradient_alignment.draw(copy, tmp_path / "figure")


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
    with pytest.raises(ResultError, match=f"{table}.csv: has 0 rows, about.json says"):
        module.draw(copy, tmp_path / "figure")
    (copy / f"{table}.csv").write_text("")
    with pytest.raises(ResultError, match=f"{table}.csv: cannot be read as a table"):
        module.draw(copy, tmp_path / "figure")
    (copy / f"{table}.csv").write_text(f"{header}\n{rows}".replace(",0.", ",word", 1))
    with pytest.raises(ResultError, match="holds something that is no number"):
        module.draw(copy, tmp_path / "figure")
    (copy / f"{table}.csv").unlink()
    assert module.main([str(copy), "--out", str(tmp_path / "figure")]) == 1
    assert f"{table}.csv: no such file" in capsys.readouterr().err
    with pytest.raises(ResultError, match="measure first"):
        load_probe(tmp_path / "nothing", name, {})
    with pytest.raises(ResultError, match="expected 'other'"):
        load_probe(copy, "other", {})


def test_what_was_measured_before_a_stop_is_not_measured_again(tmp_path, monkeypatch, capsys):
    from experiments.probe import structure

    out, steps = tmp_path / "structure", []
    real = structure.look

    def stop_at_2(scene, step, *rest):
        steps.append(step)
        if steps == [0, 2]:
            raise KeyboardInterrupt
        return real(scene, step, *rest)

    monkeypatch.setattr(structure, "look", stop_at_2)
    monkeypatch.setattr(tidy.machine, "git_state", lambda: {"git_commit": "a", "git_dirty": False})
    command = ["structure", "--out", str(out), *STRUCTURE, *POCKET]
    assert main(command) == 130
    assert "goes on from here" in capsys.readouterr().err
    assert main(command) == 0
    assert steps == [0, 2, 2]
    whole = tmp_path / "whole"
    monkeypatch.undo()
    assert main(["structure", "--out", str(whole), *STRUCTURE, *POCKET]) == 0
    for name in ("cosines", "spectra", "energy"):
        assert (out / f"{name}.csv").read_text() == (whole / f"{name}.csv").read_text()


def test_pieces_belong_to_settings_and_commit(tmp_path, monkeypatch):
    code = {"git_commit": "a", "git_dirty": False}
    monkeypatch.setattr(tidy.machine, "git_state", lambda: dict(code))
    assert tidy.Kept(tmp_path, {"n": 1})("one piece", lambda: [1, (2.5, None)]) == [1, [2.5, None]]
    assert tidy.Kept(tmp_path, {"n": 1})("one piece", lambda: 2) == [1, [2.5, None]]
    assert tidy.Kept(tmp_path, {"n": 2})("one piece", lambda: 3) == 3
    code["git_commit"] = "b"
    assert tidy.Kept(tmp_path, {"n": 2})("one piece", lambda: 4) == 4
    code["git_dirty"] = True
    assert tidy.Kept(tmp_path, {"n": 2})("one piece", lambda: 5) == 5
    kept = tidy.Kept(tmp_path, {"n": 2})
    code["git_dirty"] = kept.stamp["code"]["git_dirty"] = False
    (tmp_path / "parts" / "one-piece.json").write_text("[1]")
    with pytest.raises(ValueError, match="holds no JSON object"):
        kept("one piece", lambda: 6)
    kept.clear()
    assert not (tmp_path / "parts").exists()


def test_a_folder_that_cannot_be_written_or_is_damaged_is_named_first(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    assert main(["structure", "--out", str(file), *POCKET]) == 2
    assert f"--out={file}: File exists; allowed is a folder" in capsys.readouterr().err
    for text in ("{", "[1]"):
        (tmp_path / "about.json").write_text(text)
        assert main(["structure", "--out", str(tmp_path), *POCKET]) == 2
        assert "about.json: holds no JSON object" in capsys.readouterr().err
    (tmp_path / "about.json").write_text('{"a": 1}')
    assert main(["structure", "--out", str(tmp_path), *POCKET]) == 2
    assert "holds measurements with another overrides, probe, steps" in capsys.readouterr().err


@pytest.mark.slow
def test_the_runs_own_method_keeps_its_settings(tmp_path):
    given = ["method=agzo", "method.eps=1e-2", "method.estimator=two_sided", "method.rank=2"]
    options = ["--steps", "0", "--groups", "2", "--forwards", "3", "--layer-queries", "2"]
    assert main(["alignment", "--out", str(tmp_path), *options, *POCKET, *given]) == 0
    with (tmp_path / "whole.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert (rows["agzo"]["eps"], rows["agzo"]["estimator"]) == ("0.01", "two_sided")
    assert (rows["mezo"]["eps"], rows["mezo"]["estimator"]) == ("0.001", "two_sided")


def test_the_first_minibatch_is_the_runs_wherever_the_probe_begins(measured, tmp_path):
    assert main(["structure", "--out", str(tmp_path), "--steps", "2", *POCKET]) == 0
    found = []
    for folder in (measured / "structure", tmp_path):
        with (folder / "cosines.csv").open() as file:
            found.append([row for row in csv.DictReader(file) if row["step"] == "2"])
    assert found[0] == found[1]


def test_the_walk_has_the_lr_of_the_runs_schedule():
    options = ["method=mezo", "method.lr=1e-3", "train.schedule=linear", "train.steps=4"]
    found = scene.load([*POCKET, *options])
    rates, step = [], found.parts.optimizer.step

    def spied(*args, **named):
        rates.append(found.parts.optimizer.param_groups[0]["lr"])
        return step(*args, **named)

    found.parts.optimizer.step = spied
    assert list(found.walk([0, 1, 4])) == [0, 1, 4]
    assert rates == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])
    with pytest.raises(BadInput, match=r"--steps=5: allowed are up to 4"):
        next(found.walk([0, 5]))
