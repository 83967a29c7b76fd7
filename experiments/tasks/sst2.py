"""SST-2: is a sentence of a film review negative or positive (GLUE; prompt as in MeZO)."""

from experiments.tasks.base import Example, HubSource, Row, Task

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
    hub=HubSource("nyu-mll/glue", "sst2"),
    make_example=make_example,
)
