"""GGUF files as a model source: weights in blocks of few bits, taken out into plain floats.

transformers reads the file: configuration, weights and tokenizer lie in it. What it returns still
calls itself quantised, although every weight is a float, and refuses to be saved. `plain` takes
those marks away, so that the model is one like any other: it can be tuned, saved and loaded again.

Dequantised values are made in float32 and rounded once to the run's dtype.
"""

import importlib.util
from pathlib import Path
from typing import Any

from experiments.config.errors import BadInput
from experiments.models.weight_files import Damaged, refuse_pointer

SUFFIX = ".gguf"
MAGIC = b"GGUF"
MARKS = ("hf_quantizer", "is_quantized", "quantization_method")  # attributes of the loaded model


def is_gguf(path: Path) -> bool:
    """Tell whether a path names a GGUF file rather than a model folder."""
    return path.suffix.lower() == SUFFIX


def check(path: Path) -> None:
    """Raise BadInput for a file that cannot be a GGUF file, or where the package is missing."""
    if not path.is_file():
        raise BadInput(f"model.path={path}: no such file; allowed is a {SUFFIX} file, or a folder")
    try:
        refuse_pointer(path)
    except Damaged as damage:
        raise BadInput(f"model.path={path}: {damage}") from damage
    with path.open("rb") as file:
        start = file.read(len(MAGIC))
    if start != MAGIC:
        raise BadInput(
            f"model.path={path}: no GGUF file: it begins with {start!r}, allowed is {MAGIC!r}"
        )
    if importlib.util.find_spec("gguf") is None:
        raise BadInput(
            f"model.path={path}: the Python package gguf, which reads such files, is not "
            "installed; install it with: pip install gguf"
        )


def keywords(path: Path, weights: bool) -> dict[str, Any]:
    """Return what transformers' from_pretrained needs beside the file's folder."""
    found: dict[str, Any] = {"gguf_file": path.name}
    if weights:
        from transformers.utils import quantization_config

        # Older versions of transformers have no such class: they always take weights out.
        settings = getattr(quantization_config, "GgufConfig", None)
        if settings is not None:
            found["quantization_config"] = settings(dequantize=True)
    return found


def plain(model: Any) -> Any:
    """Make the model one of plain floats in its own eyes as well."""
    for mark in MARKS:
        if mark in vars(model):
            delattr(model, mark)
    for mark in ("quantization_config", "_is_quantized"):
        if mark in vars(model.config):
            delattr(model.config, mark)
    return model


def explain(path: Path, error: Exception) -> str:
    """Say in one line why transformers could not read a file."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    if "not supported" in reason or "Unknown gguf model_type" in reason:
        return (
            f"model.path={path}: its architecture is none that transformers reads from GGUF "
            f"({reason}); allowed are those it lists, or the model in its own format"
        )
    return f"model.path={path}: damaged, or no file that gguf can read ({reason})"
