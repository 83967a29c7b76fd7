"""DROP: answer a question about a passage that needs counting, sorting or arithmetic, in free text.

Source: the hub's ucinlp/drop, of whose `answers_spans` the `spans` are read. Prompt, loss and
metric are MeZO's: trained with the language-model loss on the first span, spaces in it included
(some spans begin or end with them); scored by token F1 over all spans as alternatives, which is not
DROP's own metric: that one asks for every span of an answer and treats numbers apart.
"""

from experiments.tasks.base import Example, Row, Task
from experiments.tasks.fields import texts
from experiments.tasks.hub_ids import DROP_V1


def make_example(row: Row) -> Example:
    """`Passage: ...`, `Question: ...`, `Answer:| <first span>` and a newline."""
    answers = texts(row, "answers_spans", inside="spans")
    lines = (f"Passage: {row['passage']}", f"Question: {row['question'].strip()}", "Answer:")
    return Example("\n".join(lines), (f" {answers[0]}\n",), None, answers)


DROP = Task(
    name="drop",
    version=1,
    kind="generation",
    loss="lm",
    metric="f1",
    fields={"passage": str, "question": str, "answers_spans": dict},
    labels=(),
    hub=DROP_V1,
    make_example=make_example,
)
