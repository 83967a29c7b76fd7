"""What a program does with memory that was freed: kept for the next step, given back for a peak."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from experiments.records import machine

if sys.argv[1] == "keep":
    machine.keep_freed_memory()

def step():  # activations of several sizes up to 24 MiB, all freed at the end
    return len([torch.ones(size << 18) for size in (4, 8, 16, 24) * 3])

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(3):
    step()
before = faults()
for _ in range(5):
    step()
made = faults() - before
torch.ones(64 << 20)  # freed
peak = machine.PeakMemory(torch.device("cpu"))
print(made, peak.gib())
"""


def measured(how: str) -> tuple[int, float]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
    )
    made, peak = done.stdout.split()
    return int(made), float(peak)


@pytest.mark.skipif(sys.platform != "linux", reason="a matter of Linux and glibc")
@pytest.mark.slow
def test_freed_memory_is_kept_for_the_next_step_and_is_no_part_of_the_next_peak():
    import ctypes

    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("a C library without mallopt")
    (_, peak), (kept, peak_of_kept) = measured("plain"), measured("keep")
    pages = 5 * 3 * (4 + 8 + 16 + 24) * 256  # of 4 KiB, that the five steps touch
    assert kept < pages / 100
    assert peak_of_kept < peak + 0.03  # 156 MiB were kept until then
