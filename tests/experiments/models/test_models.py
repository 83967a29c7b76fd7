"""Models: local folders and what can be wrong with them; code of a model's own; a hub snapshot."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import world

from experiments.config.errors import BadInput
from experiments.config.schema import ModelConfig
from experiments.models import loading

CPU = torch.device("cpu")


def model_config(path, source="local", **changes):
    values = {"name": "m", "revision": None, "trust_remote_code": False, "attention": "sdpa"}
    values["quantize"] = "none"
    return ModelConfig(path=str(path), source=source, **(values | changes))


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(world() / "model", tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("dtype", loading.DTYPES)
def test_a_model_comes_in_the_dtype_asked_for_and_in_eval_mode(folder, dtype):
    model, tokenizer = loading.load(model_config(folder), dtype, CPU)
    assert {p.dtype for p in model.parameters()} == {loading.DTYPES[dtype]}
    assert not model.training
    assert tokenizer("a")["input_ids"]


def test_origin_identifies_the_weights(folder):
    model, _ = loading.load(model_config(folder), "fp32", CPU)
    before = loading.origin(model_config(folder), model)
    assert before["parameters"] == sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save_pretrained(folder)  # pyright: ignore
    assert loading.origin(model_config(folder), model)["sha256"] != before["sha256"]


SIDE_FILES = [
    *("merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "modeling_own.py"),
    *("chat_template.jinja", "additional_chat_templates/tools.jinja"),
]


@pytest.mark.parametrize("name", SIDE_FILES)
def test_origin_identifies_the_tokenizer_s_files_templates_and_code(folder, name):
    config = model_config(folder)
    weights = loading.model_sha256(config)
    model = torch.nn.Linear(1, 1)
    assert loading.origin(config, model)["side_files_sha256"] is None
    found = set()
    for text in ("one", "two"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
        found.add(loading.origin(config, model)["side_files_sha256"])
    assert len(found - {None}) == 2
    (folder / "README.md").write_text("of no effect")
    assert loading.side_files_sha256(config) in found
    assert loading.model_sha256(config) == weights  # what results from before stand on


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: shutil.rmtree(f), ["no such folder"]),
        (lambda f: (f / "model.safetensors").unlink(), ["weights", "*.safetensors"]),
        (lambda f: (f / "config.json").unlink(), ["config.json"]),
        (lambda f: [x.unlink() for x in f.glob("tokenizer*")], ["tokenizer"]),
        (lambda f: _cut(f / "model.safetensors"), ["model.safetensors is cut short: it has"]),
        (lambda f: _drop_a_tensor(f), ["do not fit config.json", "1 missing"]),
        (lambda f: _edit(f, intermediate_size=50), ["model.path"]),
        (lambda f: _edit(f, model_type="nonsense"), ["cannot be loaded"]),
    ],
)
def test_a_folder_that_is_no_model_is_one_clear_message(folder, spoil, words):
    spoil(folder)
    with pytest.raises(BadInput) as error:
        loading.load(model_config(folder), "fp32", CPU)
    assert all(word in str(error.value) for word in ["model.path=", str(folder), *words])


def test_a_models_own_code_needs_an_explicit_yes(folder):
    _edit(folder, model_type="own", auto_map={"AutoConfig": "own.OwnConfig",
                                              "AutoModelForCausalLM": "own.OwnModel"})  # fmt: skip
    (folder / "own.py").write_text("raise SystemExit('it ran')\n")
    with pytest.raises(BadInput, match=r"model\.trust_remote_code=false.*pin model\.revision"):
        loading.load(model_config(folder), "fp32", CPU)


def test_device():
    assert loading.choose_device("cpu") == CPU
    if not torch.cuda.is_available():
        assert loading.choose_device("auto") == CPU
        with pytest.raises(BadInput, match=r"device=cuda: .*allowed are cpu, auto"):
            loading.choose_device("cuda")


def test_a_hub_id_is_loaded_from_a_snapshot_and_its_commit_is_recorded(tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--tiny"
    shutil.copytree(world() / "model", repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    _offline(monkeypatch, tmp_path)
    config = model_config("someone/tiny", source="hub")
    model, _ = loading.load(config, "fp32", CPU)
    assert loading.origin(config, model)["commit"] == commit
    with pytest.raises(BadInput, match=r"model\.path=someone/absent .*hub"):
        loading.load(model_config("someone/absent", source="hub"), "fp32", CPU)


def _offline(monkeypatch, cache):
    """Point the hub client at a folder, without a network."""
    import huggingface_hub.constants
    import transformers.utils.hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    for name in ("TRANSFORMERS_CACHE", "constants"):
        if isinstance(getattr(transformers.utils.hub, name, None), str):
            monkeypatch.setattr(transformers.utils.hub, name, str(cache))


def _cut(path):
    path.write_bytes(path.read_bytes()[:1000])


def _drop_a_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _edit(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
