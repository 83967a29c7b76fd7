"""One run as a launcher sees it: its command line, its folder, and what it left there."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.config.composed import changes
from experiments.config.errors import BadInput
from experiments.config.schema import RunConfig
from experiments.records import record
from experiments.records.provenance import changes_since

LOG = "log.txt"  # in a run's folder: what it printed
SUBMITTED = "submitted.json"  # in a run's folder: the job of a cluster that does it


@dataclass(frozen=True)
class Run:
    """A run to be done by some process."""

    overrides: tuple[str, ...]
    config: RunConfig

    @property
    def task(self) -> str:
        """The name of its task."""
        return self.config.task.name

    @property
    def folder(self) -> Path:
        """Where its result will be."""
        return self.config.folder

    @property
    def name(self) -> str:
        """Model, task, method with its variant, and seed."""
        return "/".join(self.folder.parts[-4:])


@dataclass
class State:
    """How a run stands: finished, diverged, missing; once tried also failed, busy, interrupted."""

    status: str
    dev: dict[str, Any] | None = None
    error: str | None = None
    seconds: float | None = None  # that a finished run took


def look(job: Run) -> State:
    """Return how a run stands on disk.

    Raises BadInput for a result that cannot be read, or one of another configuration, version of
    its task, data, or model.
    """
    path = job.folder / record.RESULT
    if path.is_file():
        result = _read(path)
        changed = changes(result["config"], job.config.as_dict())
        changed += changes_since(job.config, result)
        if changed:
            raise BadInput(
                f"{path}: a result of another configuration stands in this cell:\n  "
                + "\n  ".join(changed)
                + "\nremove its folder to run the cell anew, or give the suite another out=..."
            )
        return State("finished", dict(result["dev"]), seconds=result.get("total_seconds"))
    path = job.folder / record.FAILED
    if path.is_file():
        failure = _read(path)
        if failure.get("diverged") and not _outdated(job.config, failure):
            return State("diverged", error=str(failure.get("error")))
    return State("missing")


def _outdated(config: RunConfig, failure: dict[str, Any]) -> bool:
    """Tell whether a failure is of another configuration, or of files that have changed since.

    An older one does not say what it was made from: its files count as unchanged where they lie.
    """
    if changes(failure.get("config", {}), config.as_dict(), may_move=False):
        return True
    return "task_version" in failure and bool(changes_since(config, failure))


def _read(path: Path) -> dict[str, Any]:
    """Read a result or a failure, checking what is used of it."""
    try:
        found = json.loads(path.read_text())
        if not isinstance(found, dict):
            raise ValueError("not an object")
        if path.name == record.RESULT:
            if found.get("status") != "finished" or not isinstance(found.get("config"), dict):
                raise ValueError("status or config is missing")
            if not math.isfinite(found["dev"]["loss"]):
                raise ValueError(f"dev.loss is {found['dev']['loss']}")
    except (ValueError, TypeError, KeyError) as error:
        raise BadInput(
            f"{path}: truncated or damaged ({error!r}); remove it to do this run again"
        ) from error
    return found
