"""The hub data sets of all tasks, each pinned to one commit.

Several tasks are configurations of one data set, so id and commit stand here once. A result made
from the pin stays comparable when the hub's data set changes; a commit of your own choice goes into
`task.revision`.
"""

from experiments.tasks.base import HubSource

GLUE = HubSource("nyu-mll/glue", revision="bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c")
SUPER_GLUE = HubSource("aps/super_glue", revision="3de24cf8022e94f4ee4b9d55a6f539891524d646")
SQUAD_V1 = HubSource("rajpurkar/squad", revision="7b6d24c440a36b6815f21b70d25016731768db1f")
DROP_V1 = HubSource("ucinlp/drop", revision="95cda593fae71b60b5b19f82de3fcf3298c1239c")
