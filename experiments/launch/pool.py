"""Runs in worker processes: a few at once, each process doing many, none able to take down another.

A worker that dies (killed, out of memory, a crash in native code) costs the run it was doing, which
is reported as failed, and is replaced.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from experiments.launch.job import LOG, Run


@dataclass(frozen=True)
class End:
    """How a run ended (see worker.py for the kinds of status)."""

    job: Run
    status: str
    error: str | None
    seconds: float


class Worker:
    """One process of experiments.launch.worker, or with `fresh` a new one for every run.

    `gpu` is the only one that it sees, None leaves it all.
    """

    command: ClassVar[list[str]] = [sys.executable, "-m", "experiments.launch.worker"]

    def __init__(self, gpu: str | None = None, fresh: bool = False) -> None:
        self.environment = os.environ | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})
        self.fresh = fresh
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False
        self._lock = threading.Lock()  # of the two above

    def do(self, job: Run) -> End:
        """Do a run, starting the process if there is none; never raises."""
        try:
            job.folder.mkdir(parents=True, exist_ok=True)
            answer = self._ask({"overrides": job.overrides, "log": str(job.folder / LOG)})
        except (OSError, ValueError) as error:
            return End(job, "failed", f"{type(error).__name__}: {error}", 0.0)
        if answer is None:
            code = self.close()
            status = "interrupted" if self._stopped else "failed"
            return End(job, status, f"the process died (exit code {code})", 0.0)
        if answer["status"] == "interrupted" or self.fresh:
            self.close()
        return End(job, answer["status"], answer["error"], answer["seconds"])

    def _ask(self, order: dict[str, Any]) -> dict[str, Any] | None:
        """Send an order and wait for its answer, None if the process dies over it."""
        with self._lock:
            if self._stopped:
                return {"status": "interrupted", "error": "not begun", "seconds": 0.0}
            if self._process is None:
                # A session of its own: a Ctrl-C in the terminal reaches the suite, which asks each
                # worker once to stop (a second signal would stop it before its run is saved).
                self._process = subprocess.Popen(
                    self.command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    start_new_session=True,
                    env=self.environment,
                )
            process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            return None
        return json.loads(process.stdout.readline() or "null")

    def close(self) -> int:
        """End the process and return its exit code."""
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return 0
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        return process.wait()

    def stop(self) -> None:
        """Ask the run in progress to save itself and stop; nothing new is begun."""
        with self._lock:
            self._stopped = True
            if self._process is not None:
                self._process.terminate()


class Pool:
    """Workers that take their next job from `next_job` and hand every end to `ended`.

    `next_job()` returns a job, or None when nothing can be done now; it is asked again after every
    end. Both are called under one lock; an error in either lets the runs in progress finish, and is
    raised.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        next_job: Callable[[], Run | None],
        ended: Callable[[End], None],
    ) -> None:
        self.next_job, self.ended = next_job, ended
        self.workers = workers
        self._changed = threading.Condition()
        self._serving = len(workers)  # those that may still take a job
        self._running = 0
        self._stopping = False
        self._error: Exception | None = None

    def run(self) -> None:
        """Work until nothing is left; a Ctrl-C lets the runs in progress save themselves first."""
        for worker in self.workers:
            threading.Thread(target=self._serve, args=(worker,), daemon=True).start()
        try:
            self._wait()
        except KeyboardInterrupt:
            with self._changed:
                self._stopping = True
                self._changed.notify_all()
            for worker in self.workers:
                worker.stop()
            self._wait()
            raise
        if self._error is not None:
            raise self._error

    def _wait(self) -> None:
        # Not Thread.join: interrupted, it takes a living thread for a dead one (CPython < 3.13).
        with self._changed:
            while self._serving:
                self._changed.wait(0.2)  # without a time limit it would not see a Ctrl-C

    def _serve(self, worker: Worker) -> None:
        try:
            while (job := self._take()) is not None:
                end = worker.do(job)
                with self._changed:
                    self._running -= 1
                    self._guard(lambda end=end: self.ended(end))
                    self._changed.notify_all()
            worker.close()
        finally:
            with self._changed:
                self._serving -= 1
                self._changed.notify_all()

    def _take(self) -> Run | None:
        with self._changed:
            while not self._stopping:
                job = self._guard(self.next_job)
                if job is not None:
                    self._running += 1
                    return job
                if self._running == 0:
                    break
                self._changed.wait()
            return None

    def _guard(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            self._error, self._stopping = error, True
            return None
