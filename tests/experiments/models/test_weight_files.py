"""Damaged model files and weights that are no finite floats: named in one line, early."""

import json
import shutil

import pytest
import tiny_run
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from experiments import merge
from experiments.config.errors import BadInput
from experiments.config.schema import ModelConfig
from experiments.models import loading
from experiments.models.weight_files import Damaged, check_finite, check_folder, check_weights
from experiments.training.runner import NonFiniteLoss
from experiments.training.session import run

CPU = torch.device("cpu")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
WEIGHTS = "model.safetensors"
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(tiny_run.world() / "model", tmp_path / "model")


def config(folder, **changed):
    usual = {"prompt": "plain", "attention": "sdpa", "quantize": "none", "offload": "none"}
    usual |= {"name": "x", "source": "local", "path": str(folder), "revision": None}
    usual |= {"trust_remote_code": False, "device_map": "none"}
    return ModelConfig(**usual | changed)


def change(folder, edit, name=UP):
    """Change one tensor of a folder's weights."""
    tensors = load_file(folder / WEIGHTS)
    tensors[name] = edit(tensors[name])
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def sharded(folder):
    """Give a model in two files, as large ones are."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for shard, own in parts.items():
        save_file({n: tensors[n] for n in own}, folder / shard, metadata={"format": "pt"})
    index: dict = {"metadata": {}}
    index["weight_map"] = {name: shard for shard, own in parts.items() for name in own}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def pickled(folder, edit=lambda tensor: tensor):
    """Give the weights as torch writes them."""
    tensors = load_file(folder / WEIGHTS)
    tensors[UP] = edit(tensors[UP])
    (folder / WEIGHTS).unlink()
    torch.save(tensors, folder / "pytorch_model.bin")


def cut(path, by=100):
    path.write_bytes(path.read_bytes()[:-by])


def shard_cut(folder):
    sharded(folder)
    cut(folder / "model-2.safetensors")


def shard_missing(folder):
    sharded(folder)
    (folder / "model-1.safetensors").unlink()


def index_empty(folder):
    sharded(folder)
    (folder / "model.safetensors.index.json").write_text("{}")


def bin_cut(folder):
    pickled(folder)
    cut(folder / "pytorch_model.bin", by=5000)


def bin_text(folder):
    pickled(folder)
    (folder / "pytorch_model.bin").write_text("<!DOCTYPE html><html>404</html>")


def write(name, content):
    def damage(folder):
        raw = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(raw)

    return damage


HEADER = b"\x10\0\0\0\0\0\0\0"
DAMAGE = {
    "pointer": (write(WEIGHTS, POINTER), [f"{WEIGHTS} is a Git LFS pointer", "git lfs pull"]),
    "tokenizer pointer": (write("tokenizer.json", POINTER), ["tokenizer.json is a Git LFS"]),
    "config pointer": (write("config.json", POINTER), ["config.json is a Git LFS pointer"]),
    "cut": (lambda f: cut(f / WEIGHTS), [f"{WEIGHTS} is cut short: it has", "header says"]),
    "longer": (lambda f: write(WEIGHTS, (f / WEIGHTS).read_bytes() + b"\0")(f), ["is longer"]),
    "cut in its header": (
        lambda f: write(WEIGHTS, (f / WEIGHTS).read_bytes()[:99])(f),
        ["is cut short: it has 99 bytes, its header alone"],
    ),
    "empty": (write(WEIGHTS, b""), ["is no safetensors file: 0 bytes"]),
    "web page": (write(WEIGHTS, "<!DOCTYPE html><html>"), ["beginning with b'<!DOCTYP'"]),
    "no header": (write(WEIGHTS, HEADER + b"[1, 2, 3]       "), ["has no header of safetensors"]),
    "odd header": (write(WEIGHTS, HEADER + b'{"a": {"b": 1}} '), ["has no header of safetensors"]),
    "shard cut": (shard_cut, ["model-2.safetensors is cut short"]),
    "shard missing": (shard_missing, [".index.json lists model-1.safetensors, which is not"]),
    "index empty": (index_empty, [".index.json has None as weight_map"]),
    "bin cut": (bin_cut, ["pytorch_model.bin cannot be loaded: it is cut short or damaged"]),
    "bin text": (bin_text, ["pytorch_model.bin is no file of torch: it begins with b'<!DO'"]),
    "config cut": (write("config.json", '{"model_type": "qw'), ["config.json is no JSON"]),
    "config list": (write("config.json", "[]"), ["config.json holds [], allowed is a JSON object"]),
    "silently left out": (write("generation_config.json", "{"), ["generation_config.json is no"]),
    "tokenizer cut": (lambda f: cut(f / "tokenizer.json"), ["tokenizer.json is no JSON"]),
    "int8": (lambda f: change(f, lambda w: (w * 100).char()), [f"{WEIGHTS} holds {UP} as I8"]),
    "bool": (lambda f: change(f, lambda w: w > 0), ["as BOOL", "allowed are BF16, F16, F32, F64"]),
    "float8": (lambda f: change(f, lambda w: w.to(torch.float8_e4m3fn)), ["as F8_E4M3"]),
    "complex": (lambda f: change(f, lambda w: w.to(torch.complex64)), ["as C64"]),
    "bin int8": (
        lambda f: pickled(f, lambda w: (w * 100).char()),
        [f"pytorch_model.bin holds {UP} as int8"],
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_by_file_before_anything_is_loaded(folder, name, tmp_path, monkeypatch):
    from experiments.training import prepare

    damage, words = DAMAGE[name]
    damage(folder)
    monkeypatch.setattr(prepare, "load_splits", lambda *_, **__: pytest.fail("data were read"))
    given = tiny_run.config(tmp_path / "out", "method=mezo", f"model.path={folder}")
    with pytest.raises(BadInput) as caught:
        run(given)
    said = str(caught.value)
    assert all(word in said for word in [f"model.path={folder}: ", *words]), said
    assert len(said.splitlines()) == 1
    assert len(said) < 500


def test_a_gguf_file_that_is_a_pointer_or_no_gguf(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_text(POINTER)
    with pytest.raises(BadInput, match=r"model\.gguf is a Git LFS pointer"):
        loading.check_files(config(path))
    path.write_bytes(b"GGML")
    with pytest.raises(BadInput, match="no GGUF file: it begins with b'GGML'"):
        loading.check_files(config(path))


@pytest.mark.parametrize("make", [lambda f: None, sharded, pickled])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_whole_files_are_fine(folder, make, dtype):
    change(folder, lambda w: w.to(dtype))
    make(folder)
    check_folder(folder)
    assert loading.load_model(config(folder), "fp32", CPU).get_parameter(UP).dtype == torch.float32


def test_what_is_not_read_may_be_anything(folder):
    """Strays, integers that are no weights, and integers whose scales the configuration has."""
    (folder / "adapter_model.safetensors").write_text(POINTER)
    (folder / "pytorch_model.bin").write_text(POINTER)
    (folder / "trainer_state.json").write_text("{")
    tensors = load_file(folder / WEIGHTS) | {"position_ids": torch.arange(9)}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    check_folder(folder)
    change(folder, lambda w: w.char())
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | {"quantization_config": {}}))
    check_folder(folder)


@settings(max_examples=50, deadline=None)
@given(cut_at=st.floats(0, 1, exclude_max=True), flip=st.binary(min_size=1, max_size=3))
def test_any_cut_and_any_start_is_damage_and_nothing_else(tmp_path_factory, cut_at, flip):
    path = tmp_path_factory.mktemp("cut") / WEIGHTS
    whole = (tiny_run.world() / "model" / WEIGHTS).read_bytes()
    path.write_bytes(whole[: int(cut_at * len(whole))])
    with pytest.raises(Damaged, match=r"^model\.safetensors "):
        check_weights(path)
    path.write_bytes(whole[:8] + flip + whole[8 + len(flip) :])
    if flip != whole[8 : 8 + len(flip)]:
        with pytest.raises(Damaged, match=r"^model\.safetensors "):
            check_weights(path)


# Weights that are not finite


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("name", [UP, "model.norm.weight", "model.embed_tokens.weight"])
def test_a_weight_that_is_not_finite_is_named_and_no_setting_is_blamed(
    folder, tmp_path, value, name
):
    def spoil(weight):
        weight.view(-1)[-1] = float(value)
        return weight

    change(folder, spoil, name)
    given = tiny_run.config(tmp_path / "out", "method=mezo", f"model.path={folder}")
    with pytest.raises(BadInput) as caught:
        run(given)
    assert str(caught.value) == (
        f"model.path={folder}: its weight {name} holds {value} in precision.dtype=fp32; allowed "
        "are finite numbers: the file is damaged"
    )
    assert not given.folder.exists()


def test_a_number_too_large_for_fp16(folder):
    change(folder, lambda w: w * 1e9)
    loading.load_model(config(folder), "bf16", CPU)
    with pytest.raises(BadInput, match=r"holds -?inf in precision\.dtype=fp16; .*bf16 or fp32"):
        loading.load_model(config(folder), "fp16", CPU)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_largest_numbers_are_finite_and_weights_stay(dtype):
    model = torch.nn.Linear(3, 2).to(dtype)
    with torch.no_grad():
        model.weight.fill_(torch.finfo(dtype).max)
        model.weight[0] = torch.finfo(dtype).min
    model.empty = torch.nn.Parameter(torch.empty(0, dtype=dtype))
    before = model.weight.clone()
    check_finite("x", "fp32", model)
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("method=zero_shot",), "the dev loss at step 0 is nan"),
        (("method=mezo",), "the dev loss at step 0 is nan"),
        (("method=mezo", "train.eval_at_start=false"), "the loss of step 1 is nan"),
    ],
)
def test_before_the_first_update_the_learning_rate_is_not_blamed(
    tmp_path, monkeypatch, overrides, said
):
    """Where weights are finite and what the model makes of them is not."""
    load = loading.load_model

    def hot(*given):
        model = load(*given)
        with torch.no_grad():
            model.get_parameter("model.norm.weight").fill_(3e38)
        return model

    monkeypatch.setattr(loading, "load_model", hot)
    with pytest.raises(NonFiniteLoss) as caught:
        run(tiny_run.config(tmp_path, *overrides))
    assert said in str(caught.value)
    assert "no weight had been changed before it, so the cause is the model" in str(caught.value)
    assert "method.lr" not in str(caught.value)


# Adapters that a run saved


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_text(POINTER), "adapter_model.safetensors is a Git LFS pointer"),
        (cut, "adapter_model.safetensors is cut short"),
    ],
)
def test_a_damaged_adapter_is_named(tmp_path, damage, said):
    given = tiny_run.config(tmp_path, "method=zo_act", "train.save_model=true", "train.steps=2")
    run(given)
    damage(given.folder / "model" / "adapter_model.safetensors")
    with pytest.raises(BadInput) as caught:
        merge.merge(given.folder, tmp_path / "merged")
    assert str(caught.value).startswith(f"{given.folder / 'model'}: {said}")


def test_an_adapter_that_is_not_finite_is_not_merged(tmp_path):
    given = tiny_run.config(tmp_path, "method=zo_act", "train.save_model=true", "train.steps=2")
    run(given)
    path = given.folder / "model" / "adapter_model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"its weight .*lora_A.* holds nan"):
        merge.merge(given.folder, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


# Attention that an architecture or a machine has not


def test_attention_that_cannot_be_had_names_the_key_and_what_can(tmp_path):
    from text_models import VOCABULARY, byte_tokenizer
    from transformers import BloomConfig, BloomForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 16, "n_layer": 1, "n_head": 2}
    BloomForCausalLM(BloomConfig(**sizes)).save_pretrained(tmp_path / "bloom")
    byte_tokenizer().save_pretrained(tmp_path / "bloom")
    where = tmp_path / "bloom"
    with pytest.raises(BadInput) as caught:
        loading.load_model(config(where), "fp32", CPU)
    said = str(caught.value)
    assert said.startswith(f"model.attention=sdpa: {where} cannot be run with it (Bloom")
    assert said.endswith("; allowed is model.attention=eager")
    loading.load_model(config(where, attention="eager"), "fp32", CPU)
    with pytest.raises(BadInput, match=r"=flash_attention_2: .* model\.attention=sdpa or eager"):
        loading.load_model(
            config(tiny_run.world() / "model", attention="flash_attention_2"), "bf16", CPU
        )
