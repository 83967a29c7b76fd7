"""No input file can execute code: not a model, adapter, checkpoint, configuration, result or data.

What the tree may call is checked on its syntax; what a hostile file does, on the program.
"""

import ast
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import tiny_run
import torch
from safetensors.torch import load_file

from experiments import merge, replay
from experiments.config.composed import compose, read_yaml
from experiments.config.errors import BadInput
from experiments.config.files import file_sha256
from experiments.config.schema import ModelConfig
from experiments.models import adapters
from experiments.records import checkpoint
from experiments.records.trajectory import TRAJECTORY
from experiments.training.session import run

ROOT = Path(__file__).resolve().parents[3]
FILES = [p for folder in ("agzo", "baselines", "experiments", "analysis")
         for p in sorted((ROOT / folder).rglob("*.py"))]  # fmt: skip
UNSAFE_MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "read_pickle", "unsafe_load", "full_load"}
SAFE_IF = {"torch.load": "weights_only", "np.load": None, "numpy.load": None, "hub.load": None}


def unsafe(tree):
    """Name each construct of a module that could run what a file holds."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            unsafe = UNSAFE_MODULES - ({"yaml"} if isinstance(node, ast.Import) else set())
            yield from (f"import {n}" for n in names if n.split(".")[0] in unsafe)
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if called == "yaml.load" and [ast.unparse(a) for a in node.args[1:]] != ["yaml.BaseLoader"]:
            yield "yaml.load() with another loader than BaseLoader, which makes texts alone"
        if called in UNSAFE_CALLS or called.rpartition(".")[2] in UNSAFE_CALLS - {
            "eval",
            "compile",
        }:
            yield f"{called}()"
        for name, keyword in SAFE_IF.items():
            if called.endswith(name) and given.get(keyword) != "True":
                yield f"{called}() without {keyword}=True"
        yield from (f"{called}({k}=True)" for k in ("trust_remote_code", "allow_pickle")
                    if given.get(k) == "True")  # fmt: skip
        if called.endswith("AutoModelForCausalLM.from_pretrained"):
            yield from () if given.get("weights_only") == "True" else [f"{called}: weights_only"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_can_run_what_a_file_holds(path):
    assert list(unsafe(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from yaml import load", "torch.load(f)", "exec(text)",
        "yaml.load(f)", "yaml.load(f, yaml.Loader)",
        "pd.read_pickle(f)",
        "torch.load(f, weights_only=False)", "np.load(f, allow_pickle=True)", "builtins.exec(text)",
        "AutoTokenizer.from_pretrained(f, trust_remote_code=True)", "eval(text)",
    ],
)  # fmt: skip
def test_the_check_finds(text):
    assert list(unsafe(ast.parse(text)))


class Bomb:
    """A pickle of this makes a file when it is loaded."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.fixture
def mark(tmp_path):
    """A path that is there if hostile code has run."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists(), "code from an input file was executed"


def test_the_bomb_works(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "on purpose")))
    assert (tmp_path / "on purpose").is_dir()


def test_a_model_in_a_hostile_pickle(tmp_path, mark):
    folder = shutil.copytree(tiny_run.world() / "model", tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({**weights, "extra": Bomb(mark)}, folder / "pytorch_model.bin")
    config = tiny_run.config(tmp_path / "out", "method=mezo", f"model.path={folder}")
    with pytest.raises(BadInput, match=r"model\.path=.*cannot be loaded"):
        run(config)


def test_an_adapter_in_a_hostile_pickle(tmp_path, mark):
    config = tiny_run.config(tmp_path, "method=zo_act", "train.save_model=true")
    run(config)
    folder = config.folder / "model"
    weights = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save({**weights, "extra": Bomb(mark)}, folder / "adapter_model.bin")
    with pytest.raises(BadInput, match=r"holds no adapter_model\.safetensors"):
        merge.merge(config.folder, tmp_path / "merged")
    assert adapters.SAFETENSORS_WEIGHTS_NAME == "adapter_model.safetensors"


def test_a_checkpoint_with_hostile_pickles(tmp_path, mark):
    model = torch.nn.Linear(2, 2)
    path = checkpoint.save(tmp_path, 1, model, {"state": {}, "param_groups": []}, {})
    manifest = json.loads((path / "manifest.json").read_text())
    for name in (checkpoint.WEIGHTS, checkpoint.OPTIMIZER, checkpoint.STATE):
        (path / name).write_bytes(pickle.dumps(Bomb(mark)))
        manifest["sha256"][name] = file_sha256(path / name)
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(checkpoint.CheckpointError, match="step-00000001: its files are whole and"):
        checkpoint.load(tmp_path, 1, model)
    (path / "manifest.json").write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(checkpoint.CheckpointError):
        checkpoint.load(tmp_path, 1, model)


YAML = """method: !!python/object/apply:os.mkdir ["{mark}"]
seed: !!python/object/new:os.mkdir ["{mark}"]
"""


def test_a_hostile_configuration(tmp_path, mark):
    path = tmp_path / "config.yaml"
    path.write_text(YAML.format(mark=mark))
    with pytest.raises(Exception, match="could not determine a constructor"):
        read_yaml(path)
    (tmp_path / "origin.json").write_text("{}")
    with pytest.raises(BadInput, match="no folder of a run"):
        replay.replay(tmp_path)


def test_overrides_make_no_objects(mark):
    given = [f"+method._target_=os.mkdir", f"+method.path={mark}"]  # noqa: F541
    config = compose(["method=mezo", *given])
    with pytest.raises(BadInput, match=r"method\._target_"):
        run(config)


@pytest.mark.parametrize("file", ["config.yaml", "origin.json", "result.json", TRAJECTORY])
def test_the_record_of_a_run_with_hostile_pickles(tmp_path, mark, file):
    config = tiny_run.config(tmp_path, "method=mezo", "train.steps=2")
    run(config)
    (config.folder / file).write_bytes(pickle.dumps(Bomb(mark)))
    if file in ("config.yaml", "result.json"):
        with pytest.raises(BadInput, match=file):
            run(config)
    if file != "result.json":
        with pytest.raises(BadInput):
            replay.replay(config.folder)


def remote(folder):
    """A model whose own code leaves a mark when it is imported."""
    shutil.copytree(tiny_run.world() / "model", folder)
    about = json.loads((folder / "config.json").read_text())
    about |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.M"},
    }
    (folder / "config.json").write_text(json.dumps(about))
    (folder / "own.py").write_text(f"import os\nos.mkdir({str(folder.parent / 'executed')!r})\n")
    return folder


def test_code_that_comes_with_a_model(tmp_path, mark):
    folder = remote(tmp_path / "model")
    config = tiny_run.config(tmp_path / "out", "method=mezo", f"model.path={folder}")
    with pytest.raises(BadInput, match=r"model\.trust_remote_code=false"):
        run(config)


@pytest.mark.parametrize("program", [merge.merge, replay.replay])
def test_a_run_of_somebody_elses_cannot_opt_in(tmp_path, mark, program):
    method = "method=zo_act" if program is merge.merge else "method=mezo"
    config = tiny_run.config(tmp_path / "out", method, "train.steps=2", "train.save_model=true")
    run(config)
    path = config.folder / "config.yaml"
    text = path.read_text().replace("trust_remote_code: false", "trust_remote_code: true")
    path.write_text(text.replace(str(tiny_run.world() / "model"), str(remote(tmp_path / "model"))))
    rest = [tmp_path / "merged"] if program is merge.merge else []
    with pytest.raises(BadInput, match="give --trust-remote-code to allow it"):
        program(config.folder, *rest)
    assert isinstance(ModelConfig(**read_yaml(path)["model"]).trust_remote_code, bool)
