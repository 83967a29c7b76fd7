"""COPA: which of two sentences is the cause, or the effect, of a premise (SuperGLUE).

Source: the hub's aps/super_glue, configuration copa; label 0 choice1, 1 choice2. Prompt, loss and
splits are MeZO's: trained with the language-model loss on the right choice; with 400 training rows
the dev split is 100. As in MeZO a choice loses the capital of what stands before its first space,
unless that is `I`; a choice that begins with a space (one training row does) keeps both.
"""

from experiments.config.shorten import shortened
from experiments.tasks.base import Example, Row, Task
from experiments.tasks.hub_ids import SUPER_GLUE

CONJUNCTIONS = {"cause": "because", "effect": "so"}


def make_example(row: Row) -> Example:
    """`<premise without full stop> because| <choice>`."""
    conjunction = CONJUNCTIONS.get(row["question"])
    if conjunction is None:
        asked = shortened(row["question"])
        raise ValueError(f"field 'question' is {asked}, allowed: {list(CONJUNCTIONS)}")
    premise = row["premise"].rstrip().removesuffix(".")
    options = tuple(f" {_uncapitalised(row[field])}" for field in ("choice1", "choice2"))
    if options[0].rstrip(" ") == options[1].rstrip(" "):
        first, second = shortened(row["choice1"]), shortened(row["choice2"])
        raise ValueError(
            f"field 'choice2' is {second}, the same continuation as 'choice1', {first}; allowed: "
            "two choices that differ in more than a first capital"
        )
    return Example(f"{premise} {conjunction}", options, row["label"])


def _uncapitalised(choice: str) -> str:
    first, space, rest = choice.partition(" ")
    return (first if first == "I" else first.lower()) + space + rest


COPA = Task(
    name="copa",
    version=1,
    kind="options",
    loss="lm",
    metric="accuracy",
    fields={"premise": str, "choice1": str, "choice2": str, "question": str, "label": int},
    labels=(0, 1),
    hub=SUPER_GLUE.config("copa"),
    make_example=make_example,
    max_dev=100,
)
