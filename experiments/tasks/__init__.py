"""The tasks by name. A new one is a file beside these and a line in `TASKS`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from experiments.config.errors import BadInput
from experiments.tasks.base import DataError, Example, HubSource, Row, Task
from experiments.tasks.boolq import BOOLQ
from experiments.tasks.cb import CB
from experiments.tasks.copa import COPA
from experiments.tasks.custom import custom
from experiments.tasks.drop import DROP
from experiments.tasks.multirc import MULTIRC
from experiments.tasks.record import RECORD
from experiments.tasks.rte import RTE
from experiments.tasks.squad import SQUAD
from experiments.tasks.sst2 import SST2
from experiments.tasks.wic import WIC
from experiments.tasks.wsc import WSC

if TYPE_CHECKING:
    from experiments.config.schema import TaskConfig  # which needs hydra's packages

TASKS: dict[str, Task] = {
    task.name: task for task in (SST2, RTE, CB, BOOLQ, WSC, WIC, MULTIRC, COPA, RECORD, SQUAD, DROP)
}

__all__ = ["TASKS", "DataError", "Example", "HubSource", "Row", "Task", "get_task", "task_of"]


def get_task(name: str) -> Task:
    """Return the task of this name, or raise DataError listing the names there are."""
    if name not in TASKS:
        raise DataError(f"task={name!r} is unknown, allowed: {sorted(TASKS)}")
    return TASKS[name]


def task_of(config: TaskConfig) -> Task:
    """Return the task that a configuration names, at its revision, or writes out."""
    if config.prompt is None:
        task = get_task(config.name)
        if task.hub is not None and config.revision is not None:
            task = replace(task, hub=replace(task.hub, revision=config.revision))
        return task
    if config.name in TASKS:
        raise BadInput(
            f"task.name={config.name}: a task of the protocol has this name; allowed beside "
            "task.prompt is another"
        )
    return custom(config)
