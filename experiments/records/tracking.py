"""The W&B mirror of a run. Nothing reads it back; metrics.jsonl and result.json are the record.

A mirror that fails must not stop a run, or hold it up for long: it says so once, and the result
says it too. At the end of such a run the whole mirror is written again, offline.
"""

import hashlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from experiments.config.composed import FREE_KEYS, flatten, is_place
from experiments.config.errors import BadInput
from experiments.config.schema import RunConfig
from experiments.config.shorten import shortened

# What W&B's variable WANDB_MODE can say, its old words among them.
MODES = {
    **{"online": "online", "offline": "offline", "disabled": "disabled"},
    **{"run": "online", "dryrun": "offline", "shared": "online"},
}
YES = ("1", "true", "yes", "on")  # in WANDB_DISABLED

INIT_SECONDS, CLOSE_SECONDS = 30.0, 60.0  # how long a service that does not answer is waited for


def run_id(config: dict[str, Any], placed: bool = True) -> str:
    """Return the fixed id of a run: a hash of what makes its numbers and its place.

    Args:
        config: the run's, as a tree.
        placed: where data, model and text lie counts too, which may change when a run goes on.
    """
    flat = {k: v for k, v in flatten(config).items() if not k.startswith(FREE_KEYS)}
    if not placed:
        flat = {key: value for key, value in flat.items() if not is_place(key, flat)}
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()[:16]


def resolve_mode(mode: str) -> str:
    """Return online, offline or disabled.

    auto is what W&B's own variables say; where they say nothing, online with a key and offline
    without one.
    """
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_DISABLED", "").lower() in YES:
        return "disabled"
    said = os.environ.get("WANDB_MODE", "").lower()
    if not said:
        return "online" if os.environ.get("WANDB_API_KEY") else "offline"
    if said not in MODES:
        raise BadInput(f"WANDB_MODE={shortened(said)}: allowed are {', '.join(MODES)}")
    return MODES[said]


class Tracker:
    """Mirrors rows to W&B under the run folder, or does nothing."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self.mode = resolve_mode(config.tracking.mode)
        self.id = run_id(config.as_dict())
        self.error: str | None = None
        self.complete = False  # whether the mirror that was finished has every row
        self._config, self._folder = config, folder
        self._rows: list[dict[str, Any]] = []
        self._run: Any = None
        if self.mode != "disabled":
            self._attempt(lambda: self._start(self.mode))

    def log(self, row: dict[str, Any]) -> None:
        """Mirror one row of metrics.jsonl at its step."""
        self._rows.append(row)
        if self._run is not None:
            self._attempt(lambda: self._log(row))

    def finish(self, summary: dict[str, Any] | None = None, failed: bool = False) -> None:
        """Close the mirror, with the run's final numbers if it has them."""
        if self.mode == "disabled":
            return
        if self._run is not None:
            self._attempt(lambda: within(CLOSE_SECONDS, lambda: self._close(summary, failed)))
        if self.error is None:
            self.complete = True
        elif summary is not None:  # the run is done: no later one will complete the mirror
            self.complete = self._attempt(
                lambda: within(CLOSE_SECONDS, lambda: self._write_again(summary))
            )
        self._run = None

    def about(self) -> dict[str, Any]:
        """Return what the result says of the mirror."""
        about = {"mode": self.mode, "id": self.id, "error": self.error, "complete": self.complete}
        return about | {"folder": str(self._folder / "wandb")} if self.error else about

    def _log(self, row: dict[str, Any]) -> None:
        flat = {key: value for key, value in flatten(row).items() if value is not None}
        self._run.log(flat, step=row["step"])

    def _close(self, summary: dict[str, Any] | None, failed: bool) -> None:
        if summary is not None:
            self._run.summary.update(flatten(summary))
        self._run.finish(exit_code=int(failed))

    def _write_again(self, summary: dict[str, Any]) -> None:
        """Write every row into a new offline mirror under the same id."""
        import wandb

        with suppress(Exception):  # of a service that was killed: a new one is started
            wandb.teardown()
        self._start("offline")
        for row in self._rows:
            self._log(row)
        self._close(summary, failed=False)

    def _start(self, mode: str) -> None:
        import wandb

        config, folder = self._config, self._folder

        # reinit: a sweep has several runs in one process. Offline runs sync later under this id.
        with _environment(WANDB_CACHE_DIR=folder / "wandb", WANDB_DATA_DIR=folder / "wandb"):
            self._run = wandb.init(
                project=config.tracking.project,
                entity=config.tracking.entity,
                id=self.id,
                resume="allow" if mode == "online" else None,
                name=str(config.folder.relative_to(config.out)),
                group=config.suite,
                config=config.as_dict(),
                dir=str(folder),
                mode=mode,  # pyright: ignore[reportArgumentType]
                reinit="finish_previous",
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    disable_git=True,
                    save_code=False,
                    disable_code=True,
                    init_timeout=INIT_SECONDS,
                ),
            )

    def _attempt(self, action: Callable[[], object]) -> bool:
        """Call `action`; the first that fails is said, and ends the mirror."""
        try:
            action()
        except Exception as error:  # whatever the mirror's client raises, the run goes on
            self._run = None
            if self.error is None:
                self.error = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                print(
                    f"tracking.mode={self.mode}: W&B failed ({self.error}); the run goes on, "
                    "metrics.jsonl is the record",
                    file=sys.stderr,
                )
            return False
        return True


def within(seconds: float, action: Callable[[], object]) -> None:
    """Call `action` in a thread; TimeoutError if it has not returned after so many seconds."""
    failure: list[Exception] = []

    def call() -> None:
        try:
            action()
        except Exception as error:
            failure.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer in {seconds:.0f} s")
    if failure:
        raise failure[0]


@contextmanager
def _environment(**values: Path) -> Iterator[None]:
    """Set environment variables that are not set, for a while."""
    new = {name: str(value) for name, value in values.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            del os.environ[name]
