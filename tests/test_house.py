"""Limits that the house has set itself: lines of a file, and files on the path of a plain step."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from agzo import AGZO
from baselines import LOZO, MeZO

ROOT = Path(__file__).resolve().parents[1]
LINES = 300
LONGER = {"agzo/kernels/cuda.py"}  # Triton compiles it as one: it has no modules
STEP = {AGZO: (31, 4800), LOZO: (27, 4250), MeZO: (23, 3600)}  # files and their lines, at most


def test_no_file_is_too_long():
    packages = ("agzo", "baselines", "experiments", "analysis")
    files = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    long = {
        str(path.relative_to(ROOT)): lines
        for path in files
        if (lines := len(path.read_text().splitlines())) > LINES
    }
    assert set(long) <= LONGER, long


@pytest.mark.parametrize("method", STEP)
def test_a_plain_step_runs_through_few_files(method):
    """Streams, compiled layers, several processes and micro-batches are not on its path."""
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4)).eval()
    x = torch.ones(8, 16)
    optimizer = method(model, lr=1e-3, eps=1e-3)

    def closure() -> torch.Tensor:
        return model(x).square().mean()

    optimizer.step(closure)
    seen: set[Path] = set()

    def look(frame, event, argument):
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT / "agzo") or path.is_relative_to(ROOT / "baselines"):
            seen.add(path)

    sys.setprofile(look)
    optimizer.step(closure)
    sys.setprofile(None)
    files, lines = STEP[method]
    assert len(seen) <= files, sorted(path.name for path in seen)
    assert sum(len(path.read_text().splitlines()) for path in seen) <= lines
    never = {"stream.py", "compiled.py", "lockstep.py", "slots.py", "batched.py", "cuda.py"}
    never |= {
        "processes.py",
        "prefix.py",
        "loss_check.py",
        "observed.py",
        "preparing.py",
        "looking.py",
    }
    assert not {path.name for path in seen} & never
