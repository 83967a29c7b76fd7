"""One task of a Slurm array: do its run; when the machine is taken away, save and queue again.

    SIGUSR2   (time-out near, preemption): checkpoint, `scontrol requeue`, and the run goes on from
              there in the same folder, bit for bit. Not more than AGZO_MAX_RESTARTS times.
    SIGTERM   (scancel, or preemption where Slurm itself requeues): checkpoint and end.

A folder that a task of a dead node left locked is free again after a while (lock.py): it is waited
for. Exit codes: 0 done or queued again, 1 failed, 130 stopped.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from experiments.records.interrupt import SIGNALS, Interrupted

MOST = "AGZO_MAX_RESTARTS"


def main(arguments: list[str]) -> int:
    """Do the run of the given index in the given jobs.json."""
    for number in SIGNALS:  # from here on; a run has its own while it trains
        signal.signal(number, _stop)
    try:
        from experiments.launch.job import LOG  # seconds, in which a signal may come
        from experiments.launch.worker import serve

        jobs, index = Path(arguments[0]), int(arguments[1])
        job = json.loads(jobs.read_text())[index]
        folder = Path(job["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        _wait(folder)
        answer = serve({"overrides": job["overrides"], "log": str(folder / LOG)})
    except Interrupted as stopped:  # there is nothing to save yet
        answer = {"status": "interrupted", "error": "not begun", "signal": stopped.number}
    if answer["status"] == "interrupted":
        print(answer["error"], flush=True)
        return _again() if answer["signal"] == signal.SIGUSR2 else 130
    if answer["status"] in ("finished", "diverged"):
        return 0
    print(f"error: {answer['error']}", file=sys.stderr, flush=True)
    return 1


def _stop(number: int, frame: FrameType | None) -> None:
    _ignore()
    raise Interrupted(number=number)


def _ignore() -> None:
    for each in SIGNALS:
        signal.signal(each, lambda *_: None)  # not SIG_IGN: one may be on its way to Python


def _wait(folder: Path) -> None:
    from experiments.records.lock import STALE, holder

    deadline = time.monotonic() + STALE + 30
    while (busy := holder(folder)) and time.monotonic() < deadline:
        print(f"{folder}: waiting for {busy}", flush=True)
        time.sleep(10)


def _again() -> int:
    """Put this task back into the queue."""
    _ignore()  # requeueing ends this very process
    count, most = (int(os.environ.get(key, "0")) for key in ("SLURM_RESTART_COUNT", MOST))
    if count >= most:
        print(f"error: restarted {count} times; allowed are {most} (max_restarts)", file=sys.stderr)
        return 1
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    name = f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
    done = subprocess.run(["scontrol", "requeue", name], capture_output=True, text=True)
    if done.returncode > 0:  # Slurm may have queued it again itself
        said = done.stderr.strip() or f"exit code {done.returncode}"
        print(f"scontrol requeue {name}: {said}", file=sys.stderr, flush=True)
        return 1
    # Below 0 a signal ended scontrol: the requeue's own, which ends all that the task started.
    print(f"{name}: queued again (restart {count + 1})", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
