"""SST-2: is a sentence of a film review negative or positive (GLUE).

Source: the hub's nyu-mll/glue, configuration sst2; 0 negative, 1 positive. Data and prompt are
MeZO's.
"""

from experiments.tasks.base import Example, Row, Task
from experiments.tasks.hub_ids import GLUE

WORDS = ("terrible", "great")


def make_example(row: Row) -> Example:
    """`<sentence> It was| terrible`."""
    return Example(
        prompt=f"{row['sentence'].strip()} It was",
        options=tuple(f" {word}" for word in WORDS),
        label=row["label"],
    )


SST2 = Task(
    name="sst2",
    version=1,
    kind="options",
    loss="classification",
    metric="accuracy",
    fields={"sentence": str, "label": int},
    labels=(0, 1),
    hub=GLUE.config("sst2"),
    make_example=make_example,
)
