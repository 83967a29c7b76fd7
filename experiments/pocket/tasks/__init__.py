"""The pocket world's tasks by name; a new one is a file here and a line in `TASKS`."""

from __future__ import annotations

from experiments.pocket.tasks.base import PocketTask, Row
from experiments.pocket.tasks.rte import RTE
from experiments.pocket.tasks.squad import SQUAD
from experiments.pocket.tasks.sst2 import SST2

TASKS: dict[str, PocketTask] = {task.name: task for task in (SST2, RTE, SQUAD)}

__all__ = ["TASKS", "PocketTask", "Row"]
