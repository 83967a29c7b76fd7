"""One run as a launcher sees it: its command line, its folder, and what it left there."""

from dataclasses import dataclass
from pathlib import Path

from experiments.config import RunConfig

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
