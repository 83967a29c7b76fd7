"""Fixtures of all tests: one torch thread, signals, the optional folder of real data and models."""

import os
import signal
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _interrupts():
    """Let SIGINT interrupt, as in a terminal: a shell starts background jobs that ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real data and models (AGZO_SHARED, else ../shared); tests skip without it."""
    beside = Path(__file__).resolve().parents[1].parent / "shared"
    folder = Path(os.environ.get("AGZO_SHARED", beside))
    if not folder.is_dir():
        pytest.skip("no folder with real data and models (set AGZO_SHARED)")
    return folder


@pytest.fixture
def program(tmp_path):
    """Run the real program in a child, on runs of the tiny world under tmp_path/out."""
    import real_run
    import tiny_run

    tiny_run.world()

    def call(*overrides, **options):
        return real_run.fork(tmp_path / "out", *overrides, **options)

    return call
