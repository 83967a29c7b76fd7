"""SQuAD v1.1: answer a question about a paragraph in free text (prompt as in MeZO).

Trained with the language-model loss on the first gold answer; scored by token F1 over all golds.
"""

from experiments.tasks.base import Example, HubSource, Row, Task


def make_example(row: Row) -> Example:
    """`Title: ...`, `Context: ...`, `Question: ...`, `Answer:| <first gold>` and a newline."""
    answers = row["answers"].get("text")
    if not isinstance(answers, (list, tuple)) or not answers:
        raise ValueError(
            f"field 'answers' is {row['answers']!r}, "
            "allowed: an object whose 'text' lists at least one answer"
        )
    for answer in answers:
        if not isinstance(answer, str) or not answer.strip():
            raise ValueError(f"field 'answers' holds {answer!r}, allowed: text")
    lines = (
        f"Title: {row['title']}",
        f"Context: {row['context']}",
        f"Question: {row['question'].strip()}",
        "Answer:",
    )
    return Example("\n".join(lines), (f" {answers[0]}\n",), None, tuple(answers))


SQUAD = Task(
    name="squad",
    version=1,
    kind="generation",
    loss="lm",
    metric="f1",
    fields={"title": str, "context": str, "question": str, "answers": dict},
    labels=(),
    hub=HubSource("rajpurkar/squad"),
    make_example=make_example,
)
