"""WSC: does a pronoun refer to a given person or thing (SuperGLUE).

Source: the hub's aps/super_glue, configuration wsc.fixed (MeZO's too); 0 no, 1 yes. The prompt is
MeZO's. The 554 training rows less a dev split of 500 leave 54 to train on, in MeZO as here.
"""

from experiments.tasks.base import Example, Row, Task
from experiments.tasks.hub_ids import SUPER_GLUE

WORDS = ("No", "Yes")


def make_example(row: Row) -> Example:
    """`<text>`, then `... does the pronoun "<span2>" refer to <span1>? Yes or No?`, then `|No`."""
    question = (
        f'In the previous sentence, does the pronoun "{row["span2_text"].lower()}" '
        f"refer to {row['span1_text']}? Yes or No?"
    )
    return Example(f"{row['text']}\n{question}\n", WORDS, row["label"])


WSC = Task(
    name="wsc",
    version=1,
    kind="options",
    loss="classification",
    metric="accuracy",
    fields={"text": str, "span1_text": str, "span2_text": str, "label": int},
    labels=(0, 1),
    hub=SUPER_GLUE.config("wsc.fixed"),
    make_example=make_example,
)
