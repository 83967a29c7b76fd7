"""MultiRC: is this a correct answer to a question about a paragraph (SuperGLUE).

Source: the hub's aps/super_glue, configuration multirc: one row for each proposed answer; 0 wrong,
1 correct. Prompt and metric are MeZO's: accuracy over rows, not the F1 over a question's answers
that SuperGLUE ranks by.
"""

from experiments.tasks.base import Example, Row, Task
from experiments.tasks.hub_ids import SUPER_GLUE

WORDS = ("No", "Yes")


def make_example(row: Row) -> Example:
    """`<paragraph>`, `Question: ...`, `I found this answer "<answer>". ...`, then `|No`."""
    lines = (
        row["paragraph"],
        f"Question: {row['question']}",
        f'I found this answer "{row["answer"]}". Is that correct? Yes or No?',
    )
    return Example("\n".join(lines) + "\n", WORDS, row["label"])


MULTIRC = Task(
    name="multirc",
    version=1,
    kind="options",
    loss="classification",
    metric="accuracy",
    fields={"paragraph": str, "question": str, "answer": str, "label": int},
    labels=(0, 1),
    hub=SUPER_GLUE.config("multirc"),
    make_example=make_example,
)
