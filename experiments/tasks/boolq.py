"""BoolQ: answer a yes/no question about a passage.

Source: the hub's aps/super_glue, configuration boolq; label 0 no, 1 yes. MeZO loads google/boolq,
the same questions with a bool `answer`; the prompt (the third of its three) and the order of the
options, Yes before No, are MeZO's, so label 1 is the first option.
"""

from experiments.tasks.base import Example, Row, Task
from experiments.tasks.hub_ids import SUPER_GLUE

WORDS = ("Yes", "No")


def make_example(row: Row) -> Example:
    """`<passage> <Question>?`, then `|Yes`; a question without capital or `?` is given them."""
    question = row["question"]
    if not question.endswith("?"):
        question += "?"
    question = question[0].upper() + question[1:]
    return Example(f"{row['passage']} {question}\n", WORDS, 1 - row["label"])


BOOLQ = Task(
    name="boolq",
    version=1,
    kind="options",
    loss="classification",
    metric="accuracy",
    fields={"question": str, "passage": str, "label": int},
    labels=(0, 1),
    hub=SUPER_GLUE.config("boolq"),
    make_example=make_example,
)
