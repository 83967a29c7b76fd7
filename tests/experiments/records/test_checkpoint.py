"""Checkpoints: what goes in comes out, ties once, no pickle; every kind of damage is named."""

import json
import math

import pytest
import torch
from torch import nn

from experiments.records import checkpoint
from experiments.records.checkpoint import CheckpointError

FILES = (checkpoint.WEIGHTS, checkpoint.OPTIMIZER, checkpoint.STATE, "manifest.json")


class Tied(nn.Module):
    """Two names for one weight, a buffer to keep and one to make anew."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("kept", torch.arange(3.0))
        self.register_buffer("remade", torch.arange(2.0), persistent=False)


def state():
    shared = torch.randn(4, 3)
    return {
        "state": {
            0: {"moment": shared, "step": torch.tensor(3.0)},
            1: {"moment": shared, "view": shared[:, 1]},
            "zo": {"step": 7, "stream": "1-cpu", "alive": torch.tensor(True), "none": None},
        },
        "param_groups": [{"lr": 0.1 + 0.2, "betas": (0.9, 0.999), "params": [0, 1]}],
    }


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b and type(a) is type(b)


@pytest.fixture
def saved(tmp_path):
    """A folder with the checkpoints of steps 2 and 4."""
    model = Tied()
    for step in (2, 4):
        checkpoint.save(tmp_path, step, model, state(), {"step": step})
    return tmp_path


def test_what_goes_in_comes_out(tmp_path):
    torch.manual_seed(0)
    model, other = Tied(), Tied()
    kept = state()
    checkpoint.save(tmp_path, 4, model, kept, {"rows": [{"loss": math.pi}]})
    found, progress = checkpoint.load(tmp_path, 4, other)
    assert equal(found, kept)
    assert found["state"][0]["moment"] is found["state"][1]["moment"]
    assert progress == {"rows": [{"loss": math.pi}]}
    assert torch.equal(other.head.weight, model.head.weight)
    assert other.head.weight is other.embedding.weight
    assert set(checkpoint.weights(model)) == {"embedding.weight", "kept"}


def test_only_whole_checkpoints_are_seen_and_leftovers_are_removed(saved):
    (saved / ".step-00000006.tmp").mkdir()
    assert checkpoint.steps(saved) == [2, 4]
    checkpoint.prune(saved, {4})
    assert sorted(path.name for path in saved.iterdir()) == ["step-00000004"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_damage_is_an_error_that_names_file_and_way_on(saved, file, damage):
    path = saved / "step-00000004" / file
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        where = content.index(b'sha256": {"') + 20 if file == "manifest.json" else len(content) - 3
        flipped = bytes([content[where] ^ 4])
        path.write_bytes(content[:where] + flipped + content[where + 1 :])
    else:
        path.unlink()
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(saved, 4, Tied())
    message = str(error.value)
    assert str(path) in message
    assert f"step-00000002) delete the folder {path.parent}" in message


def test_damage_without_an_older_checkpoint_says_to_start_again(saved):
    checkpoint.prune(saved, {2})
    (saved / "step-00000002" / checkpoint.WEIGHTS).write_bytes(b"")
    with pytest.raises(CheckpointError, match="no other checkpoint: delete"):
        checkpoint.load(saved, 2, Tied())


def test_weights_of_another_model_are_refused(saved):
    with pytest.raises(CheckpointError, match="holds other tensors"):
        checkpoint.load_weights(saved, 4, nn.Linear(2, 2))
    other = Tied()
    other.kept = torch.zeros(4)
    with pytest.raises(CheckpointError, match=r"kept is torch\.float32 \(3,\), the model's is"):
        checkpoint.load_weights(saved, 4, other)


def test_state_that_is_neither_tensor_nor_json_is_refused(tmp_path):
    with pytest.raises(TypeError, match="holds a set"):
        checkpoint.save(tmp_path, 1, Tied(), {"state": {1, 2}}, {})
    assert checkpoint.steps(tmp_path) == []


def test_nothing_is_pickled(saved):
    files = {path.name for path in (saved / "step-00000004").iterdir()}
    assert files == set(FILES)
    assert json.loads((saved / "step-00000004" / checkpoint.STATE).read_text())["step"] == 4
