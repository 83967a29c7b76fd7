"""What the numbers stand on: commit, versions, machine, and the peak memory of a piece of work.

Imports torch, agzo and the standard library only, so that the benchmark runs on a bare GPU machine.
"""

import ctypes
import functools
import os
import platform
import resource
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from agzo import kernels

PACKAGES = (
    "torch",
    "transformers",
    "safetensors",
    "tokenizers",
    "datasets",
    "numpy",
    "hydra-core",
    "peft",
)
GIB = 2**30
COMMIT = "AGZO_COMMIT"
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's numbers for mallopt
_CLEAR = Path("/proc/self/clear_refs")  # Linux: "5" sets the high-water mark to the present size


def git_state() -> dict[str, Any]:
    """Return the commit of the code and whether files differ from it; null outside a checkout.

    Git is asked once in a process. Who asks before the work names the code that runs, whatever is
    committed while it runs.

    A copy without a checkout, on a bare GPU machine, is told its commit by the environment variable
    AGZO_COMMIT; whoever sets it answers for the copy being that commit's.
    """
    return dict(_git_state(Path(__file__).resolve().parents[2], os.environ.get(COMMIT)))


@functools.cache
def _git_state(root: Path, told: str | None) -> dict[str, Any]:
    def git(*arguments: str) -> str | None:
        try:
            command = ["git", "-C", str(root), *arguments]
            return subprocess.run(
                command, capture_output=True, text=True, check=True, timeout=20
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None

    commit = git("rev-parse", "HEAD")
    if commit is None and told:
        return {"git_commit": told, "git_dirty": False}
    changed = git("status", "--porcelain", "--untracked-files=no")
    return {
        "git_commit": commit,
        "git_dirty": None if changed is None else bool(changed),
    }


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of the libraries that the numbers stand on."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def about(device: torch.device) -> dict[str, Any]:
    """Return what the run ran on; no host or user name."""
    cuda = device.type == "cuda"
    return {
        "device": device.type,
        "noise": kernels.kind(device),
        "device_name": torch.cuda.get_device_name(device) if cuda else _processor(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "cuda": torch.version.cuda if cuda else None,
    }


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return "can't allocate memory" in str(error)  # torch's allocator of the CPU


def first_line(error: BaseException) -> str:
    """Return what a table can hold of an error."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def keep_freed_memory() -> None:
    """Have the C library keep freed memory for the next step, in a program of its own.

    glibc may give the top of its heap back whenever a step's activations are freed, and the next
    step faults the same pages in again. Measured with 60M parameters at 16 x 64, four processes
    each: no faults where there were up to 138,000 in two forwards, and these in 1.73 s for 1.78 s.
    Without glibc nothing happens.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)  # alone it would fix the other at 128 KiB
        mallopt(_MMAP_THRESHOLD, 2**25)  # the largest there may be


def _give_freed_back() -> None:
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class PeakMemory:
    """Peak memory since this object was made.

    CUDA: bytes the allocator handed out, and reserved. CPU: the largest resident set, which holds
    Python and the libraries as well. Linux lets a process set its high-water mark back, so each of
    several runs in one process gets its own; elsewhere the mark is that of the whole process, and
    `peak_memory_kind` says so.

    What libraries keep for the process counts for later runs too: of bfloat16 products oneDNN keeps
    up to 1,024 kernels by shape, which was 70 MiB in a second run and 12 in each further one of
    SmolLM2-135M (4 with ONEDNN_PRIMITIVE_CACHE_CAPACITY=32).
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._own_mark = False
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        _give_freed_back()  # what was before is not this one's
        try:
            _CLEAR.write_text("5")
            self._own_mark = _high_water() is not None
        except OSError:
            pass  # not Linux, or not allowed: the whole process's mark is reported, and named so

    def gib(self) -> float:
        """Return the peak in GiB."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / GIB
        mark = _high_water() if self._own_mark else None
        if mark is None:
            unit = 1 if platform.system() == "Darwin" else 1024
            mark = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return mark / GIB

    def about(self) -> dict[str, Any]:
        """Return the peak and what it is, for a result."""
        peak: dict[str, Any] = {"peak_memory_gib": self.gib()}
        if self.device.type == "cuda":
            peak["peak_reserved_gib"] = torch.cuda.max_memory_reserved(self.device) / GIB
            return peak | {"peak_memory_kind": "cuda allocated"}
        whose = "this run" if self._own_mark else "the whole process"
        return peak | {"peak_memory_kind": f"resident set of {whose}"}


def _high_water() -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(x.split()[1]) * 1024 for x in lines if x.startswith("VmHWM:")), None)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "")
