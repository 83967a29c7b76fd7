"""What a task is: plain data and one function that turns a row of a data set into an example.

A task file holds no code that loads, tokenises or scores; it says which fields a row has, which
labels are allowed, how prompt and options read, and which loss and metric are MeZO's for it. Its
`version` goes into every result and grows whenever a prompt, an option or a label changes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from experiments.config.shorten import shortened
from experiments.tasks.text import blank, check_whole

Row = Mapping[str, Any]


class DataError(ValueError):
    """A row, file or setting that cannot be used; the message says where and what is allowed."""


@dataclass(frozen=True)
class Example:
    """One prompt and the texts that may follow it.

    `prompt` ends without a space; each option is the exact continuation, with its leading space
    where there is one. Option tasks: `label` indexes `options`. Generation tasks: the only option
    is the first gold answer between a space and a newline, `answers` are all golds and `label` is
    None. Where several options are right (ReCoRD), `label` is the one to train on and `correct`
    lists them all; otherwise `correct` is empty. `where` says where its row is from, for messages.
    """

    prompt: str
    options: tuple[str, ...]
    label: int | None
    answers: tuple[str, ...] = ()
    correct: tuple[int, ...] = ()
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class HubSource:
    """Where the Hub keeps a data set; `revision` None is unpinned (the commit is recorded)."""

    path: str
    name: str | None = None
    revision: str | None = None

    def config(self, name: str) -> "HubSource":
        """Return the configuration of this name, at the same commit."""
        return replace(self, name=name)


@dataclass(frozen=True)
class Task:
    """A task of the protocol.

    `fields` maps the fields a row must have to their types; `labels` are the values allowed for the
    field `label` (empty where there is none). `max_dev` caps the dev split, MeZO's exception for
    tiny training sets (CB and COPA: 100).
    """

    name: str
    version: int | str  # of a task without code the hash of its template
    kind: Literal["options", "generation"]
    loss: Literal["classification", "lm"]
    metric: Literal["accuracy", "f1"]
    fields: Mapping[str, type]
    labels: tuple[int, ...]
    make_example: Callable[
        [Row], Example
    ]  # of a row with these fields; ValueError says what is wrong
    max_dev: int | None = None
    hub: HubSource | None = None  # None: a task of one's own, whose rows are local
    splits: tuple[str, ...] = ("train", "validation")  # their names; of one the rows are divided
    any_file: bool = False  # local data are files of any kind, not <root>/<name>/<split>.jsonl

    def example(self, row: object, where: str = "row") -> Example:
        """Check a row and turn it into an example.

        Spaces (not newlines) at both ends of prompt + option go, as in MeZO. Raises DataError
        naming the task, `where` the row came from, the field, its value and what is allowed.
        """
        try:
            made = self.make_example(self._checked(row))
            if self.kind == "options" and made.label not in range(len(made.options)):
                raise ValueError(
                    f"the right option is number {shortened(made.label)}, allowed: 0 to "
                    f"{len(made.options) - 1}"
                )
        except ValueError as error:
            raise DataError(f"task {self.name!r}, {where}: {error}") from error
        options = tuple(option.rstrip(" ") for option in made.options)
        return replace(made, prompt=made.prompt.strip(" "), options=options, where=where)

    def _checked(self, row: object) -> Row:
        if not isinstance(row, Mapping):
            raise ValueError(
                f"expected an object with fields {list(self.fields) or 'of the template'}, "
                f"got {shortened(row)}"
            )
        if self.labels and "label" not in self.fields:
            raise ValueError(
                f"labels={self.labels} are the values of a field 'label', which is not in fields="
                f"{list(self.fields)}; needed: a field of that name, or labels=()"
            )
        for name, kind in self.fields.items():
            if name not in row:
                found = shortened(sorted(map(str, row)))
                raise ValueError(
                    f"field {name!r} is missing; found {found}, needed {list(self.fields)}"
                )
            value = row[name]
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise ValueError(
                    f"field {name!r} is {shortened(value)}, allowed: a value of type "
                    f"{kind.__name__}"
                )
            if isinstance(value, str):
                if blank(value):
                    raise ValueError(f"field {name!r} is empty, allowed: text")
                check_whole(name, value)
        label = row["label"] if self.labels else None
        if self.labels and label not in self.labels:
            raise ValueError(f"field 'label' is {shortened(label)}, allowed: {list(self.labels)}")
        return row
