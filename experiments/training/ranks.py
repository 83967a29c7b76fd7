"""The processes of a run: those that torchrun started, or this one alone.

    torchrun --nproc-per-node=4 -m experiments.run method=agzo task=sst2

Process 0 writes, prints and evaluates; the others say nothing but their errors. Each process has
the CUDA device of its LOCAL_RANK.
"""

import os
import sys

import torch

from agzo.distributed.group import ALONE, Group
from agzo.distributed.processes import Processes
from experiments.config.errors import BadInput

_joined: list[Group] = []


def join(device: str, peer_timeout: float) -> Group:
    """Return the group of this process, which stays the same for all its runs."""
    if not _joined:
        _joined.append(_start(device, peer_timeout) if several() else ALONE)
    return _joined[0]


def several() -> bool:
    """Tell whether this process was started as one of several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def mine() -> str:
    """Return what errors of this process begin with: nothing, or which of several it is."""
    return f"process {os.environ['RANK']}: " if several() else ""


def leave() -> None:
    """Part from the others, when all runs are done."""
    while _joined:
        _joined.pop().leave()


def _start(device: str, peer_timeout: float) -> Group:
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if cuda:
        local, here = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= here:
            raise BadInput(
                f"--nproc-per-node: this machine has {here} CUDA device(s), and process "
                f"{os.environ['RANK']} wants number {local}; allowed are at most {here} processes"
            )
        torch.cuda.set_device(local)
    if os.environ["RANK"] != "0":
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for as long as the process lives)
    return Processes(cuda, peer_timeout)
