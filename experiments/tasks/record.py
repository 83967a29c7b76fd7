"""ReCoRD: which entity of a news passage belongs into the gap of a query (SuperGLUE).

Source: the hub's aps/super_glue, configuration record. Prompt (after GPT-3) and loss are MeZO's: an
option is the whole query with an entity in its gap, so all of its tokens are scored; trained with
the language-model loss on the first answer, and right is an entity that is any of the answers. An
entity listed twice is one option here and two in MeZO, which changes no score. A query without a
gap, whose options would all be equal, is an error here.
"""

from experiments.config.shorten import shortened
from experiments.tasks.base import Example, Row, Task
from experiments.tasks.fields import texts
from experiments.tasks.hub_ids import SUPER_GLUE

GAP = "@placeholder"


def make_example(row: Row) -> Example:
    """`<passage with its highlights as "- " lines>`, `-| <query with an entity in the gap>`."""
    entities = tuple(dict.fromkeys(texts(row, "entities")))  # first occurrences, in order
    answers = texts(row, "answers")
    for answer in answers:
        if answer not in entities:
            raise ValueError(
                f"field 'answers' holds {shortened(answer)}, allowed: entities, "
                f"{shortened(entities)}"
            )
    if GAP not in row["query"]:
        raise ValueError(f"field 'query' is {shortened(row['query'])}, allowed: text with {GAP}")
    passage = row["passage"].replace("@highlight\n", "- ")
    return Example(
        prompt=f"{passage}\n-",
        options=tuple(f" {row['query'].replace(GAP, entity)}" for entity in entities),
        label=entities.index(answers[0]),
        correct=tuple(index for index, entity in enumerate(entities) if entity in answers),
    )


RECORD = Task(
    name="record",
    version=1,
    kind="options",
    loss="lm",
    metric="accuracy",
    fields={"passage": str, "query": str, "entities": list, "answers": list},
    labels=(),
    hub=SUPER_GLUE.config("record"),
    make_example=make_example,
)
