"""Long runs: thousands of pocket steps with no growth of memory, open files or step time.

AGZO_SOAK_STEPS sets how many (default 20,000). The figures are printed (pytest -s).
"""

import gc
import itertools
import json
import os
import time
from pathlib import Path

import pytest

from experiments.config.composed import compose
from experiments.training import parts as parts_of_a_run
from experiments.training.session import run

STEPS = int(os.environ.get("AGZO_SOAK_STEPS", "20000"))
PARTS = 20


def resident() -> int:
    """Return the bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.parametrize("method", ["agzo", "lozo_m"])
def test_nothing_grows(tmp_path, monkeypatch, method):
    each = STEPS // PARTS
    samples = []
    real, calls = parts_of_a_run.sample_batch, []

    def sample(*arguments):
        if len(calls) % each == 0:
            gc.collect()
            files, objects = len(os.listdir("/proc/self/fd")), len(gc.get_objects())
            samples.append((time.process_time(), resident(), files, objects))
        calls.append(1)
        return real(*arguments)

    monkeypatch.setattr(parts_of_a_run, "sample_batch", sample)
    config = compose([
        "model=pocket", "data=pocket", "task=sst2", f"method={method}", f"out={tmp_path}",
        "tracking=disabled", "device=cpu", "threads=1", f"train.steps={STEPS}", "train.evals=4",
        "train.log_every=50", f"train.checkpoint_every={max(1, STEPS // 100)}",
        "train.num_train=64", "train.num_dev=16", "train.num_eval=16", "train.batch_size=2",
        "method.lr=1e-7", *(["method.large_state=true"] if method == "lozo_m" else []),
    ])  # fmt: skip
    result = run(config)
    assert result["steps"] == len(calls) == STEPS
    warm = samples[2:]  # the first parts fill caches and allocate
    megabytes = [size / 2**20 for _, size, _, _ in warm]
    seconds = [after[0] - before[0] for before, after in itertools.pairwise(warm)]
    half = len(seconds) // 2
    early, late = min(seconds[:half]), min(seconds[half:])  # neighbours on the machine only add
    figures = {
        "method": method, "steps": STEPS, "resident_mib": [megabytes[0], megabytes[-1]],
        "open_files": [warm[0][2], warm[-1][2]], "objects": [warm[0][3], warm[-1][3]],
        "cpu_ms_per_step": [1000 * early / each, 1000 * late / each],
        "run_folder_mib": sum(p.stat().st_size for p in config.folder.rglob("*")) / 2**20,
        "trajectory_bytes_per_step": (config.folder / "trajectory.jsonl").stat().st_size / STEPS,
        "peak_memory_gib": result["peak_memory_gib"], "machine": result["machine"],
    }  # fmt: skip
    print(json.dumps(figures))
    assert warm[-1][2] == warm[0][2], "open files"
    assert megabytes[-1] < megabytes[0] + 8.0, "resident memory"
    assert late < 1.15 * early, "CPU time of a step"
