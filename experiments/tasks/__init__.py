"""The tasks by name. A new one is a file beside these and a line in `TASKS`."""

from experiments.tasks.base import DataError, Example, HubSource, Row, Task
from experiments.tasks.rte import RTE
from experiments.tasks.squad import SQUAD
from experiments.tasks.sst2 import SST2

TASKS: dict[str, Task] = {task.name: task for task in (SST2, RTE, SQUAD)}

__all__ = ["TASKS", "DataError", "Example", "HubSource", "Row", "Task", "get_task"]


def get_task(name: str) -> Task:
    """Return the task of this name, or raise DataError listing the names there are."""
    if name not in TASKS:
        raise DataError(f"task={name!r} is unknown, allowed: {sorted(TASKS)}")
    return TASKS[name]
