"""RTE: does a premise entail a hypothesis (SuperGLUE).

Source: the hub's aps/super_glue, configuration rte; 0 entailment, 1 not. Data and prompt are
MeZO's.
"""

from experiments.tasks.base import Example, Row, Task
from experiments.tasks.hub_ids import SUPER_GLUE

WORDS = ("Yes", "No")


def make_example(row: Row) -> Example:
    """`<premise>`, then `Does this mean that "<hypothesis>" is true? Yes or No?`, then `|Yes`."""
    question = f'Does this mean that "{row["hypothesis"]}" is true? Yes or No?'
    return Example(prompt=f"{row['premise']}\n{question}\n", options=WORDS, label=row["label"])


RTE = Task(
    name="rte",
    version=1,
    kind="options",
    loss="classification",
    metric="accuracy",
    fields={"premise": str, "hypothesis": str, "label": int},
    labels=(0, 1),
    hub=SUPER_GLUE.config("rte"),
    make_example=make_example,
)
