"""The W&B mirror of a run. Nothing reads it back; metrics.jsonl and result.json are the record.

A mirror that fails must not stop a run: it says so once, and the result says it too.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.config import FREE_KEYS, RunConfig, flatten


def run_id(config: dict[str, Any]) -> str:
    """Return the fixed id of a run: a hash of what makes its numbers and its place."""
    flat = {k: v for k, v in flatten(config).items() if not k.startswith(FREE_KEYS)}
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()[:16]


def resolve_mode(mode: str) -> str:
    """Return online, offline or disabled: auto is online where a key is set, else offline."""
    if mode != "auto":
        return mode
    return "online" if os.environ.get("WANDB_API_KEY") else "offline"


class Tracker:
    """Mirrors rows to W&B under the run folder, or does nothing."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self.mode = resolve_mode(config.tracking.mode)
        self.id = run_id(config.as_dict())
        self.error: str | None = None
        self._run: Any = None
        if self.mode != "disabled":
            self._attempt(lambda: self._start(config, folder))

    def log(self, row: dict[str, Any]) -> None:
        """Mirror one row of metrics.jsonl at its step."""
        if self._run is not None:
            flat = {key: value for key, value in flatten(row).items() if value is not None}
            self._attempt(lambda: self._run.log(flat, step=row["step"]))

    def finish(self, summary: dict[str, Any] | None = None, failed: bool = False) -> None:
        """Close the mirror, with the run's final numbers if it has them."""
        if self._run is None:
            return
        if summary is not None:
            self._attempt(lambda: self._run.summary.update(flatten(summary)))
        if self._run is not None:
            self._attempt(lambda: self._run.finish(exit_code=int(failed)))
        self._run = None

    def about(self) -> dict[str, Any]:
        """Return what the result says of the mirror."""
        return {"mode": self.mode, "id": self.id, "error": self.error}

    def _start(self, config: RunConfig, folder: Path) -> None:
        import wandb

        # reinit: a sweep has several runs in one process. Offline runs sync later under this id.
        with _environment(WANDB_CACHE_DIR=folder / "wandb", WANDB_DATA_DIR=folder / "wandb"):
            self._run = wandb.init(
                project=config.tracking.project,
                entity=config.tracking.entity,
                id=self.id,
                resume="allow" if self.mode == "online" else None,
                name=str(config.folder.relative_to(config.out)),
                group=config.suite,
                config=config.as_dict(),
                dir=str(folder),
                mode=self.mode,  # pyright: ignore[reportArgumentType]
                reinit="finish_previous",
                settings=wandb.Settings(
                    silent=True, console="off", disable_git=True, save_code=False, disable_code=True
                ),
            )

    def _attempt(self, action: Any) -> None:
        try:
            action()
        except Exception as error:  # whatever the mirror's client raises, the run goes on
            self.error = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            self._run = None
            print(
                f"tracking.mode={self.mode}: W&B failed ({self.error}); the run goes on, "
                "metrics.jsonl is the record",
                file=sys.stderr,
            )


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
