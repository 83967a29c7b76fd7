"""A task without code: a template over the fields of a row, its options and label, or its answer.

    prompt:  {field} stands for the text of a field, {{ and }} for braces; a.b is field b of the
             object a, and a.0 the first of a list
    options: templates as well, or the name of a field that lists them
    label:   the field of the right option: its number from 0, its text, or one of `labels`
    answer:  the field of the text to generate, or of a list of texts that are all right

Spaces and newlines at both ends of a field go. An option follows its prompt after a space, or at
once where the prompt ends with a newline. Loss and metric are those of MeZO's tasks of the same
form: the same options for every row are classified (as SST-2), options of each row's own are
trained with the language-model loss (as COPA), answers are generated and scored by token F1 (as
SQuAD).
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from experiments.config.errors import BadInput
from experiments.config.shorten import label_text, shortened, whole
from experiments.tasks.base import Example, HubSource, Row, Task
from experiments.tasks.text import blank, check_whole

if TYPE_CHECKING:
    from experiments.config.schema import TaskConfig  # which needs hydra's packages

FORMAT = 1  # grows when the same template makes other texts
HASHED = ("prompt", "options", "label", "labels", "answer")


def custom(config: TaskConfig) -> Task:
    """Make the task that a configuration writes out; BadInput says what is wrong with it."""
    assert config.prompt is not None
    prompt = Template("task.prompt", config.prompt)
    if not prompt.fields:
        raise BadInput(
            f"task.prompt={shortened(config.prompt)}: allowed is a text with a {{field}}"
        )
    hub = HubSource(config.hub, config.hub_config, config.revision) if config.hub else None
    splits = tuple(config.splits or ("train", "validation"))
    version = _hash(config)
    if config.answer is not None:
        made = Generated(prompt, config.answer)
        return Task(
            config.name, version, "generation", "lm", "f1", {}, (), made,
            hub=hub, splits=splits, any_file=True,
        )  # fmt: skip
    options = Options(config.options)
    chosen = Chosen(prompt, options, Label(config.label or "", config.labels, options.fixed))
    return Task(
        config.name, version, "options", "classification" if options.fixed else "lm", "accuracy",
        {}, (), chosen, hub=hub, splits=splits, any_file=True,
    )  # fmt: skip


def _hash(config: TaskConfig) -> str:
    """Return what stands in a result in place of a version."""
    said = {"format": FORMAT} | {name: getattr(config, name) for name in HASHED}
    return "sha256:" + hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


class Template:
    """A text with {field} in it, read once."""

    def __init__(self, key: str, text: str) -> None:
        allowed = "allowed are {field}, and {{ or }} for a brace"
        if blank(text):
            raise BadInput(f"{key}={shortened(text)}: it is empty; allowed is text")
        try:
            self.parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise BadInput(f"{key}={shortened(text)}: {error}; {allowed}") from error
        for _, name, form, conversion in self.parts:
            if name is not None and (not name.strip() or form or conversion):
                raise BadInput(
                    f"{key}={shortened(text)}: a field without a name, or with a format; {allowed}"
                )
        self.fields = [name for _, name, _, _ in self.parts if name is not None]
        self.sticks = text.endswith("\n")  # what follows, follows at once

    def __call__(self, row: Row) -> str:
        """Return the text of a row."""
        return "".join(
            said if name is None else said + text(name, value(row, name))
            for said, name, _, _ in self.parts
        )


class Options:
    """The options of a row: templates, or a field that lists them."""

    def __init__(self, given: list[str] | str) -> None:
        self.field = given if isinstance(given, str) else None
        listed = [] if isinstance(given, str) else given
        self.templates = [Template("task.options", each) for each in listed]
        self.fixed: tuple[str, ...] = ()  # the same for every row
        if listed and not any(template.fields for template in self.templates):
            self.fixed = tuple(template({}).strip() for template in self.templates)
        if self.field is None and (len(listed) < 2 or len(set(listed)) < len(listed)):
            raise BadInput(
                f"task.options={shortened(listed)}: allowed are two or more, none of them twice"
            )

    def __call__(self, row: Row) -> tuple[str, ...]:
        """Return the options of a row, without spaces around them."""
        if self.fixed:
            return self.fixed
        if self.field is None:
            made = tuple(template(row).strip() for template in self.templates)
        else:
            made = listed(self.field, value(row, self.field))
        if len(made) < 2 or len(set(made)) < len(made):
            where = "task.options" if self.field is None else f"field {self.field!r}"
            raise ValueError(
                f"{where} gives {shortened(made)}, allowed: two or more options, none of them twice"
            )
        return made


class Label:
    """Which option is right: the field that says it, and what its values mean."""

    def __init__(
        self, field: str, labels: list[str] | dict[str, str] | None, fixed: tuple[str, ...]
    ) -> None:
        self.field = field
        self.numbers: dict[str, int] | None = None
        if labels is None:
            if any(whole(option) is not None for option in fixed):
                raise BadInput(
                    f"task.options={list(fixed)}: a number could be an option or its place; "
                    "allowed with task.labels, the label of each option"
                )
            return
        if isinstance(labels, list):
            if len(set(labels)) < len(labels) or (fixed and len(labels) != len(fixed)):
                raise BadInput(
                    f"task.labels={shortened(labels)}: allowed are as many as there are options"
                    f"{f', {len(fixed)}' if fixed else ''}, none of them twice"
                )
            self.numbers = {label: number for number, label in enumerate(labels)}
            return
        self.numbers = {}
        for label, option in labels.items():
            number = fixed.index(option) if option in fixed else whole(option)
            if number is None or (fixed and number >= len(fixed)):
                raise BadInput(
                    f"task.labels={shortened(labels)}: {option!r} is no option; allowed are "
                    f"{_numbers(len(fixed))}{f', or {list(fixed)}' if fixed else ''}"
                )
            self.numbers[label] = number

    def __call__(self, row: Row, options: tuple[str, ...]) -> int:
        """Return the number of the right option of a row."""
        found = value(row, self.field)
        written = label_text(found).strip() if isinstance(found, str | int | float) else None
        if self.numbers is not None:
            number, allowed = self.numbers.get(written or ""), str(list(self.numbers))
        else:
            number = None if written is None or isinstance(found, bool) else whole(written)
            allowed = (
                f"{_numbers(len(options))}, or {shortened(list(options))}; task.labels names others"
            )
            if written in options:
                number = self._one_reading(found, number, options.index(written), options)
        if number is None or number >= len(options):
            raise ValueError(f"field {self.field!r} is {shortened(found)}, allowed: {allowed}")
        return number

    def _one_reading(
        self, found: object, number: int | None, place: int, options: tuple[str, ...]
    ) -> int:
        """Return the place of the option with the label's text, unless it numbers another one."""
        if number is not None and number < len(options) and number != place:
            numbers = shortened(list(range(len(options))))
            raise ValueError(
                f"field {self.field!r} is {shortened(found)}: the number of option "
                f"{shortened(options[number])} and the text of option number {place}, allowed: "
                f"a number, with task.labels={numbers}, or a text that is no option's number"
            )
        return place


class Chosen:
    """Makes the example of a task with options."""

    def __init__(self, prompt: Template, options: Options, label: Label) -> None:
        self.prompt, self.options, self.label = prompt, options, label

    def __call__(self, row: Row) -> Example:
        """Return the prompt and its options, each behind a space or a newline."""
        options = self.options(row)
        space = "" if self.prompt.sticks else " "
        texts = tuple(space + option for option in options)
        return Example(self.prompt(row), texts, self.label(row, options))


class Generated:
    """Makes the example of a task whose answer is generated."""

    def __init__(self, prompt: Template, answer: str) -> None:
        self.prompt, self.answer = prompt, answer

    def __call__(self, row: Row) -> Example:
        """Return the prompt and the first answer, with the newline that ends it."""
        found = value(row, self.answer)
        is_list = isinstance(found, list | tuple)
        answers = listed(self.answer, found) if is_list else (text(self.answer, found),)
        for answer in answers:
            if "\n" in answer:
                raise ValueError(
                    f"field {self.answer!r} is {shortened(answer)}, allowed: one line, since a "
                    "newline ends what is generated"
                )
        space = "" if self.prompt.sticks else " "
        return Example(self.prompt(row), (f"{space}{answers[0]}\n",), None, answers)


def value(row: Row, name: str) -> Any:
    """Return the value of a field, or of one inside an object or a list."""
    if name in row:
        return row[name]
    found: Any = row
    for part in name.split("."):
        number = whole(part)
        if isinstance(found, Mapping) and part in found:
            found = found[part]
        elif isinstance(found, list | tuple) and number is not None and number < len(found):
            found = found[number]
        else:
            there = shortened(sorted(map(str, row)))
            raise ValueError(f"field {name!r} is missing; found {there}")
    return found


def text(name: str, found: object) -> str:
    """Return the value of a field as a template writes it."""
    if not isinstance(found, str | int | float) or found != found:
        raise ValueError(f"field {name!r} is {shortened(found)}, allowed: text or a number")
    written = label_text(found).strip()
    if blank(written):
        raise ValueError(f"field {name!r} is empty, allowed: text")
    check_whole(name, written)
    return written


def listed(name: str, found: object) -> tuple[str, ...]:
    """Return the texts that a field lists."""
    if not isinstance(found, list | tuple) or not found:
        raise ValueError(f"field {name!r} is {shortened(found)}, allowed: a list of texts")
    return tuple(text(name, each) for each in found)


def _numbers(count: int) -> str:
    return f"0 to {count - 1}" if count else "whole numbers from 0"
