"""WiC: does a word mean the same in two sentences (SuperGLUE).

Source: the hub's aps/super_glue, configuration wic; 0 different, 1 the same. The prompt is MeZO's
and does not use the word's places in the sentences.
"""

from experiments.tasks.base import Example, Row, Task
from experiments.tasks.hub_ids import SUPER_GLUE

WORDS = ("No", "Yes")


def make_example(row: Row) -> Example:
    """`Does the word "<word>" have the same meaning ...`, both sentences, then `|No`."""
    question = (
        f'Does the word "{row["word"]}" have the same meaning in these two sentences? Yes, No?'
    )
    return Example(f"{question}\n{row['sentence1']}\n{row['sentence2']}\n", WORDS, row["label"])


WIC = Task(
    name="wic",
    version=1,
    kind="options",
    loss="classification",
    metric="accuracy",
    fields={"word": str, "sentence1": str, "sentence2": str, "label": int},
    labels=(0, 1),
    hub=SUPER_GLUE.config("wic"),
    make_example=make_example,
)
