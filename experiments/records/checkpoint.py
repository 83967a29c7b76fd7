"""Checkpoints that survive a kill at any moment, and say so when they are damaged.

    <run>/checkpoints/step-00000400/weights.safetensors     parameters that are not frozen (of an
                                                            adapter: its own), persistent buffers
                                    optimizer.safetensors   the tensors of its state
                                    state.json              the rest of it, and the run's progress
                                    manifest.json           SHA-256 of each file above

A checkpoint is written under a temporary name, flushed to disk, and renamed: a folder with its
final name is complete. Nothing is pickled. The two newest are kept, and the ones that hold the best
weights they refer to.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from experiments.config.files import file_sha256

KEEP = 2
FORMAT = 1
WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read; the message names the file and how to go on."""


def name(step: int) -> str:
    """Return the folder name of a step's checkpoint."""
    return f"step-{step:08d}"


def steps(folder: Path) -> list[int]:
    """List the steps that have a complete checkpoint, ascending."""
    return sorted(int(path.name[5:]) for path in folder.glob("step-*") if path.is_dir())


def save(
    folder: Path, step: int, model: nn.Module, optimizer: dict[str, Any], progress: dict[str, Any]
) -> Path:
    """Write the checkpoint of a step; one that is already there is left as it is.

    Raises OSError, with nothing left behind, where it cannot be written.
    """
    final = folder / name(step)
    if final.exists():
        return final
    temporary = folder / f".{name(step)}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        _write(temporary, step, model, optimizer, progress)
        temporary.rename(final)
    except SafetensorError as error:  # of a full disk too
        raise OSError(f"{temporary}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # its space may be what the next needs
    _flush(folder)
    return final


def _write(
    temporary: Path,
    step: int,
    model: nn.Module,
    optimizer: dict[str, Any],
    progress: dict[str, Any],
) -> None:
    """Write the files of a checkpoint and flush them to disk."""
    tensors: dict[str, Tensor] = {}
    structure = pack(optimizer, tensors, {})
    save_file({key: value.detach() for key, value in weights(model).items()}, temporary / WEIGHTS)
    save_file(tensors, temporary / OPTIMIZER)
    state = {"step": step, "progress": progress, "optimizer": structure}
    (temporary / STATE).write_text(json.dumps(state))
    hashes = {file: file_sha256(temporary / file) for file in (WEIGHTS, OPTIMIZER, STATE)}
    (temporary / "manifest.json").write_text(json.dumps({"format": FORMAT, "sha256": hashes}))
    for path in temporary.iterdir():
        _flush(path)
    _flush(temporary)


def load(folder: Path, step: int, model: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a checkpoint into the model; return the optimizer's state (on the CPU) and progress."""
    path = verify(folder, step)
    try:
        state = json.loads((path / STATE).read_text())
        load_weights(folder, step, model)
        with safe_open(path / OPTIMIZER, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        return unpack(state["optimizer"], tensors), state["progress"]
    except (ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: its files are whole and not what this program writes ({error})"
        ) from error


def load_weights(folder: Path, step: int, model: nn.Module) -> None:
    """Read only the weights of a step's checkpoint into the model."""
    path = verify(folder, step) / WEIGHTS
    own = weights(model)
    with safe_open(path, "pt") as file, torch.no_grad():
        keys = set(file.keys())
        if keys != set(own):
            raise CheckpointError(f"{path}: holds other tensors: {sorted(keys ^ set(own))[:3]}")
        for key, value in own.items():
            saved = file.get_tensor(key)
            if saved.shape != value.shape or saved.dtype != value.dtype:
                raise CheckpointError(
                    f"{path}: {key} is {saved.dtype} {tuple(saved.shape)}, the model's is "
                    f"{value.dtype} {tuple(value.shape)}"
                )
            value.copy_(saved)


def verify(folder: Path, step: int) -> Path:
    """Check every file of a checkpoint against its manifest; return its folder."""
    path = folder / name(step)
    older = [other for other in steps(folder) if other < step]
    way_on = (
        f"to go on from the checkpoint before it ({name(older[-1])}) delete the folder {path}"
        if older
        else f"there is no other checkpoint: delete {folder.parent} to start the run again"
    )
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        version = manifest["format"]
        wanted = {file: manifest["sha256"][file] for file in (WEIGHTS, OPTIMIZER, STATE)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / 'manifest.json'}: damaged ({error!r}); {way_on}") from error
    if version != FORMAT:
        raise CheckpointError(
            f"{path / 'manifest.json'}: format={version!r}, written by another version of this "
            f"program; allowed is {FORMAT}: go on with that version, or {way_on}"
        )
    for file, sha256 in wanted.items():
        if not (path / file).is_file():
            raise CheckpointError(f"{path / file}: missing; {way_on}")
        found = file_sha256(path / file)
        if found != sha256:
            raise CheckpointError(
                f"{path / file}: damaged: SHA-256 is {found[:12]}, the manifest says "
                f"{str(sha256)[:12]}; {way_on}"
            )
    return path


def prune(folder: Path, keep: set[int]) -> None:
    """Delete all checkpoints but those of the steps in `keep`, and half-written ones."""
    for step in steps(folder):
        if step not in keep:
            shutil.rmtree(folder / name(step))
    for path in folder.glob(".step-*.tmp"):
        shutil.rmtree(path)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Name what a run may change: parameters that require grad, and persistent buffers.

    A tied one comes once, under its first name. Frozen weights are those of the model that was
    loaded, which a run's origin identifies.
    """
    found: dict[str, Tensor] = {k: p for k, p in model.named_parameters() if p.requires_grad}
    persistent = model.state_dict(keep_vars=True).keys()
    return found | {key: value for key, value in model.named_buffers() if key in persistent}


def pack(node: Any, tensors: dict[str, Tensor], seen: dict[int, str]) -> Any:
    """Turn a nested state into JSON; tensors go to `tensors`, one that occurs twice only once."""
    if isinstance(node, Tensor):
        if id(node) not in seen:
            seen[id(node)] = f"t{len(seen)}"
            whole = node.untyped_storage().nbytes() == node.numel() * node.element_size()
            own = node.is_contiguous() and whole  # safetensors takes no views of other tensors
            tensors[seen[id(node)]] = node.detach() if own else node.detach().clone().contiguous()
        return {"tensor": seen[id(node)]}
    if isinstance(node, dict):
        return {"dict": [[key, pack(value, tensors, seen)] for key, value in node.items()]}
    if isinstance(node, list | tuple):
        return {type(node).__name__: [pack(value, tensors, seen) for value in node]}
    if node is None or isinstance(node, bool | int | float | str):
        return node
    raise TypeError(f"optimizer state holds a {type(node).__name__}; allowed: tensors and JSON")


def unpack(node: Any, tensors: dict[str, Tensor]) -> Any:
    """Undo `pack`."""
    if not isinstance(node, dict):
        return node
    ((kind, value),) = node.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: unpack(item, tensors) for key, item in value}
    items = [unpack(item, tensors) for item in value]
    return tuple(items) if kind == "tuple" else items


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
