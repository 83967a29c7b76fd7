"""Runs in worker processes: a few at once, each process doing many, none able to take down another.

A worker that dies (killed, out of memory, a crash in native code) costs the run it was doing, which
is reported as failed, and is replaced.
"""

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from experiments.plan import Job

LOG = "log.txt"  # what a run printed


@dataclass(frozen=True)
class End:
    """How a run ended (see worker.py for the kinds of status)."""

    job: Job
    status: str
    error: str | None
    seconds: float


class Worker:
    """One process of experiments.worker."""

    command: ClassVar[list[str]] = [sys.executable, "-m", "experiments.worker"]

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False

    def do(self, job: Job) -> End:
        """Do a run, starting the process if there is none."""
        job.folder.mkdir(parents=True, exist_ok=True)
        log = job.folder / LOG
        if self._process is None:
            # A session of its own: a Ctrl-C in the terminal reaches the suite, which asks each
            # worker once to stop (a second signal would stop it before its run is saved).
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        answer: dict[str, Any] | None = None
        try:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            order = {"overrides": job.overrides, "log": str(log)}
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline() or "null")
        except (BrokenPipeError, ValueError):
            pass
        if answer is None:
            code = self.close()
            status = "interrupted" if self._stopped else "failed"
            return End(job, status, f"the process died (exit code {code})", 0.0)
        if answer["status"] == "interrupted":
            self.close()
        return End(job, answer["status"], answer["error"], answer["seconds"])

    def close(self) -> int:
        """End the process and return its exit code."""
        if self._process is None:
            return 0
        process, self._process = self._process, None
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        return process.wait()

    def stop(self) -> None:
        """Ask the run in progress to save itself and stop."""
        self._stopped = True
        if self._process is not None:
            self._process.terminate()


class Pool:
    """Workers that take their next job from `next_job` and hand every end to `ended`.

    `next_job()` returns a job, or None when nothing can be done now; it is asked again after every
    end. Both are called under one lock.
    """

    def __init__(
        self, size: int, next_job: Callable[[], Job | None], ended: Callable[[End], None]
    ) -> None:
        self.next_job, self.ended = next_job, ended
        self.workers = [Worker() for _ in range(size)]
        self._changed = threading.Condition()
        self._running = 0
        self._stopping = False
        self._error: Exception | None = None

    def run(self) -> None:
        """Work until nothing is left; a Ctrl-C lets the runs in progress save themselves first.

        An error of `ended` lets them finish, and is raised.
        """
        threads = [
            threading.Thread(target=self._serve, args=(worker,), daemon=True)
            for worker in self.workers
        ]
        for thread in threads:
            thread.start()
        try:
            _wait_for(threads)
        except KeyboardInterrupt:
            with self._changed:
                self._stopping = True
                self._changed.notify_all()
            for worker in self.workers:
                worker.stop()
            _wait_for(threads)
            raise
        if self._error is not None:
            raise self._error

    def _serve(self, worker: Worker) -> None:
        while True:
            job = self._take()
            if job is None:
                worker.close()
                return
            end = worker.do(job)
            with self._changed:
                self._running -= 1
                try:
                    self.ended(end)
                except Exception as error:  # of the caller's: nothing new is begun, and it is told
                    self._error, self._stopping = error, True
                self._changed.notify_all()

    def _take(self) -> Job | None:
        with self._changed:
            while not self._stopping:
                job = self.next_job()
                if job is not None:
                    self._running += 1
                    return job
                if self._running == 0:
                    self._changed.notify_all()
                    return None
                self._changed.wait()
            return None


def _wait_for(threads: list[threading.Thread]) -> None:
    for thread in threads:
        while thread.is_alive():  # a join without a time limit would not see a Ctrl-C
            thread.join(0.2)
