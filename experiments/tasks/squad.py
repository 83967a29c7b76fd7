"""SQuAD v1.1: answer a question about a paragraph in free text.

Source: the hub's rajpurkar/squad, as in MeZO. Prompt, loss and metric are MeZO's: trained with the
language-model loss on the first gold answer; scored by token F1 over all golds.
"""

from experiments.tasks.base import Example, Row, Task
from experiments.tasks.fields import texts
from experiments.tasks.hub_ids import SQUAD_V1


def make_example(row: Row) -> Example:
    """`Title: ...`, `Context: ...`, `Question: ...`, `Answer:| <first gold>` and a newline."""
    answers = texts(row, "answers", inside="text")
    lines = (
        f"Title: {row['title']}",
        f"Context: {row['context']}",
        f"Question: {row['question'].strip()}",
        "Answer:",
    )
    return Example("\n".join(lines), (f" {answers[0]}\n",), None, answers)


SQUAD = Task(
    name="squad",
    version=1,
    kind="generation",
    loss="lm",
    metric="f1",
    fields={"title": str, "context": str, "question": str, "answers": dict},
    labels=(),
    hub=SQUAD_V1,
    make_example=make_example,
)
