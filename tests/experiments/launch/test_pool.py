"""Runs in worker processes: shared, replaced when they die, asked to stop and waited for."""

import signal
import sys
import time
from pathlib import Path

import pytest

from experiments.launch import pool


class Job:
    """What the pool needs of a job."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.folder, self.overrides, self.name = folder, overrides, folder.name


FAKE = """
import json, os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1.5), say("interrupted"), os._exit(0)))
def say(status):
    print(json.dumps({"status": status, "error": None, "seconds": 0.0}), flush=True)
for line in sys.stdin:
    word = json.loads(line)["overrides"][0]
    if word == "die": os._exit(9)
    if word == "sleep": time.sleep(60)
    say(f"{word} by {os.getpid()} on {os.environ.get('CUDA_VISIBLE_DEVICES')}")
"""


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(pool.Worker, "command", [sys.executable, "-c", FAKE])


def serve(jobs: list[Job], size: int) -> dict[str, pool.End]:
    left, ends = list(jobs), {}
    pool.Pool(
        [pool.Worker() for _ in range(size)],
        lambda: left.pop(0) if left else None,  # pyright: ignore
        lambda end: ends.setdefault(end.job.name, end),
    ).run()
    return ends


def test_runs_share_a_process_and_one_that_dies_costs_its_own_run_only(fake, tmp_path):
    words = ["ok", "ok", "die", "ok", "ok"]
    ends = serve([Job(tmp_path / str(i), word) for i, word in enumerate(words)], 1)
    assert ends["2"].status == "failed"
    assert "process died (exit code 9)" in str(ends["2"].error)
    served = [ends[str(i)].status for i in (0, 1, 3, 4)]
    assert served[0] == served[1] != served[2] == served[3]


def test_fresh_workers_are_a_process_per_run_and_see_their_own_gpu(fake, tmp_path):
    left, ends = [Job(tmp_path / str(i), "ok") for i in range(6)], []
    workers = [pool.Worker(gpu, fresh=True) for gpu in ("0", "1")]
    pool.Pool(workers, lambda: left.pop() if left else None, ends.append).run()  # pyright: ignore
    processes = [end.status.split()[2] for end in ends]
    assert len(set(processes)) == 6
    assert {end.status.split()[4] for end in ends} == {"0", "1"}


def test_a_pool_waits_for_jobs_that_a_running_one_may_bring(fake, tmp_path):
    ready, done = [Job(tmp_path / "first", "ok")], []

    def ended(end):
        done.append(end.job.name)
        if end.job.name == "first":
            ready.extend(Job(tmp_path / name, "ok") for name in ("second", "third"))

    pool.Pool(
        [pool.Worker() for _ in range(3)], lambda: ready.pop() if ready else None, ended
    ).run()  # pyright: ignore
    assert sorted(done) == ["first", "second", "third"]


def test_an_error_in_taking_note_of_an_end_is_raised(fake, tmp_path):
    jobs = [Job(tmp_path / str(i), "ok") for i in range(9)]

    def ended(end):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        pool.Pool([pool.Worker()], lambda: jobs.pop(), ended).run()  # pyright: ignore
    assert len(jobs) == 8


def test_a_run_whose_folder_cannot_be_made_is_a_failure(fake, tmp_path):
    (tmp_path / "file").write_text("in the way")
    ends = serve([Job(tmp_path / "file" / "run", "ok"), Job(tmp_path / "other", "ok")], 2)
    assert ends["run"].status == "failed"
    assert "NotADirectoryError" in str(ends["run"].error)
    assert ends["other"].status.startswith("ok")


def test_a_stopped_worker_begins_nothing(fake, tmp_path):
    worker = pool.Worker()
    worker.stop()
    assert worker.do(Job(tmp_path / "late", "ok")).status == "interrupted"  # pyright: ignore


@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.slow
def test_an_interrupt_asks_every_worker_once_and_waits(fake, tmp_path, size):
    ends: dict[str, str] = {}
    jobs = [Job(tmp_path / str(i), "sleep") for i in range(4)]
    running = pool.Pool(
        [pool.Worker() for _ in range(size)],
        lambda: jobs.pop() if jobs else None,  # pyright: ignore
        lambda end: ends.setdefault(end.job.name, end.status),
    )
    begin = time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            running.run()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert time.perf_counter() - begin < 20
    assert list(ends.values()) == ["interrupted"] * size
    assert len(jobs) == 4 - size  # nothing new was begun
