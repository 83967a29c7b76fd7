"""CB: does a premise entail or contradict a hypothesis, or neither (SuperGLUE).

Source: the hub's aps/super_glue, configuration cb; 0 entailment, 1 contradiction, 2 neutral. Prompt
and splits are MeZO's: with 250 training rows its dev split is 100 and 150 are left to train on.
"""

from experiments.tasks.base import Example, Row, Task
from experiments.tasks.hub_ids import SUPER_GLUE

WORDS = ("Yes", "No", "Maybe")


def make_example(row: Row) -> Example:
    """`Suppose <premise> Can we infer that "<hypothesis>"? Yes, No, or Maybe?`, then `|Yes`."""
    question = f'Can we infer that "{row["hypothesis"]}"? Yes, No, or Maybe?'
    return Example(f"Suppose {row['premise']} {question}\n", WORDS, row["label"])


CB = Task(
    name="cb",
    version=1,
    kind="options",
    loss="classification",
    metric="accuracy",
    fields={"premise": str, "hypothesis": str, "label": int},
    labels=(0, 1, 2),
    hub=SUPER_GLUE.config("cb"),
    make_example=make_example,
    max_dev=100,
)
