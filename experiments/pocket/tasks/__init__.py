"""The pocket world's tasks by name; a new one is a file here and a line in `TASKS`."""

from __future__ import annotations

from experiments.pocket.tasks.base import PocketTask, Row
from experiments.pocket.tasks.boolq import BOOLQ
from experiments.pocket.tasks.cb import CB
from experiments.pocket.tasks.copa import COPA
from experiments.pocket.tasks.drop import DROP
from experiments.pocket.tasks.multirc import MULTIRC
from experiments.pocket.tasks.record import RECORD
from experiments.pocket.tasks.rte import RTE
from experiments.pocket.tasks.squad import SQUAD
from experiments.pocket.tasks.sst2 import SST2
from experiments.pocket.tasks.wic import WIC
from experiments.pocket.tasks.wsc import WSC

TASKS: dict[str, PocketTask] = {
    task.name: task for task in (SST2, RTE, CB, BOOLQ, WSC, WIC, MULTIRC, COPA, RECORD, SQUAD, DROP)
}

__all__ = ["TASKS", "PocketTask", "Row"]
