"""Damage to the files of a model folder, and to the weights in them: one line with the file's name.

    pointer        Git LFS left its note in place of a file (`git lfs pull` was not run)
    cut short      a download that ended early: a safetensors file says in its header how long it is
    whole numbers  weights in integers or float8, without the scales that give them a meaning
    not finite     a NaN or an infinity among the weights: every loss would be one, at any lr

The first three are found in seconds, in the headers, before anything is loaded.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.config.errors import BadInput
from experiments.config.shorten import clipped, shortened

POINTER = b"version https://git-lfs"
BESIDE = ("*.json", "*.txt", "*.model", "*.jinja")  # what a folder has beside its weights
READ = (  # of these, what transformers reads or, where it cannot, silently leaves out
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.json", "vocab.json"),
)
NAMES = ("model.safetensors", "pytorch_model.bin")  # in the order in which they are looked for
FLOATS = {"F64", "F32", "F16", "BF16"}  # in the words of safetensors
LONGEST_HEADER = 100_000_000  # bytes; safetensors' own limit


class Damaged(BadInput):
    """A file that is not what its name says; the message begins with its name in its folder."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path.name} {what}")


def check_folder(folder: Path) -> None:
    """Refuse a model folder in which a file that is read is damaged."""
    for path in sorted(path for kind in BESIDE for path in folder.glob(kind)):
        refuse_pointer(path)
    found = {name: _json(folder / name) for name in READ if (folder / name).is_file()}
    for path in _weights(folder):
        check_weights(path, "quantization_config" in found.get("config.json", {}))


def check_weights(path: Path, scaled: bool = False) -> None:
    """Refuse a file of weights that is cut short, or whose numbers are not plain floats.

    `scaled`: its configuration says how its integers are to be read.
    """
    refuse_pointer(path)
    tensors = _header(path) if path.suffix == ".safetensors" else _pickled(path)
    for name, dtype in tensors.items():
        if not scaled and name.rpartition(".")[2] == "weight" and dtype not in FLOATS:
            raise Damaged(
                path,
                f"holds {name} as {dtype}, and config.json has no quantization_config that says "
                f"what that means; allowed are {', '.join(sorted(FLOATS))}",
            )


def check_finite(what: str, dtype: str, model: nn.Module) -> None:
    """Refuse a model whose weights are not all finite; reads each once, and makes no copy.

    `what` says which model it is, `dtype` what its numbers were read as.
    """
    for name, weight in model.named_parameters():
        if weight.is_meta or not weight.is_floating_point() or not weight.numel():
            continue
        low, high = (float(end) for end in torch.aminmax(weight.detach()))
        if not (math.isfinite(low) and math.isfinite(high)):
            found = low if not math.isfinite(low) else high
            why = "the file is damaged"
            if dtype == "fp16" and math.isinf(found):
                why += ", or its numbers are too large for fp16 (then bf16 or fp32 will do)"
            raise BadInput(
                f"{what}: its weight {name} holds {found} in precision.dtype={dtype}; allowed are "
                f"finite numbers: {why}"
            )


def _weights(folder: Path) -> Iterator[Path]:
    """Yield the files of weights that are loaded: one, or the shards that an index lists."""
    for name in NAMES:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            yield folder / name
        elif index.is_file():
            refuse_pointer(index)
            listed = _json(index).get("weight_map")
            if not listed or not isinstance(listed, dict):
                raise Damaged(index, f"has {shortened(listed)} as weight_map, allowed is a list "
                              "of tensors and the files they are in")  # fmt: skip
            for shard in sorted(set(map(str, listed.values()))):
                if not (folder / shard).is_file():
                    raise Damaged(index, f"lists {shard}, which is not there")
                yield folder / shard
        else:
            continue
        return


def refuse_pointer(path: Path) -> None:
    """Refuse what Git LFS leaves in place of a file."""
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise Damaged(
                path, "is a Git LFS pointer, not the file itself; get it with: git lfs pull"
            )


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Damaged(path, f"is no JSON ({clipped(str(error))})") from error
    if not isinstance(found, dict):
        raise Damaged(path, f"holds {shortened(found)}, allowed is a JSON object")
    return found


def _header(path: Path) -> dict[str, str]:
    """Return the dtype of each tensor of a safetensors file that is as long as it says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > LONGEST_HEADER:
            raise Damaged(path, f"is no safetensors file: {size} bytes, beginning with {start!r}")
        text = file.read(length)
    if len(text) < length:
        raise Damaged(path, f"is cut short: it has {size} bytes, its header alone {length + 8}")
    try:
        header = json.loads(text)
        tensors = {name: about for name, about in header.items() if name != "__metadata__"}
        end = max((about["data_offsets"][1] for about in tensors.values()), default=0)
        dtypes = {name: str(about["dtype"]) for name, about in tensors.items()}
    except (ValueError, RecursionError, AttributeError, TypeError, LookupError) as error:
        raise Damaged(path, f"has no header of safetensors ({clipped(str(error))})") from error
    if size != length + 8 + end:
        how = "is cut short" if size < length + 8 + end else "is longer than it should be"
        raise Damaged(path, f"{how}: it has {size} bytes, its header says {length + 8 + end}")
    return dtypes


def _pickled(path: Path) -> dict[str, str]:
    """Return the dtype of each tensor of a .bin file, whose numbers are not read."""
    with path.open("rb") as file:
        start = file.read(4)
    if start[:1] == b"\x80":  # as torch wrote before version 1.6: it cannot be looked into
        return {}
    if start[:2] != b"PK":
        raise Damaged(path, f"is no file of torch: it begins with {start!r}")
    try:
        tensors = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        items = [(str(name), tensor.dtype) for name, tensor in tensors.items()]
    except Exception as error:  # torch, pickle and zipfile raise many kinds
        reason = f"{type(error).__name__}: {clipped(str(error))}"
        raise Damaged(path, f"cannot be loaded: it is cut short or damaged ({reason})") from error
    words = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16"}
    words |= {torch.bfloat16: "BF16"}
    return {name: words.get(dtype, str(dtype).removeprefix("torch.")) for name, dtype in items}
