"""The keys of a task that is written in the configuration, and the file that may hold them.

The file is YAML whose values are texts, lists and maps of texts: `Yes`, `no` and `1` are words.
What it says is put in its place, so the configuration of a run stands without it.
"""

from dataclasses import fields
from typing import Any

import yaml

from experiments.config.errors import BadInput
from experiments.config.paths import user_path
from experiments.config.schema import TaskConfig
from experiments.config.shorten import label_text, shortened

CUSTOM = "custom"  # the name, where none is given
OWN = tuple(entry.name for entry in fields(TaskConfig) if "own" in entry.metadata)
KEYS = ("name", "revision", *(name for name in OWN if name != "file"))
TEXTS = ("prompt", "label", "answer", "hub", "hub_config", "name", "revision")


def fill_own_task(task: TaskConfig, source: str) -> None:
    """Read `task.file` into the other keys; check which of them are given.

    `source` is data.source. Templates are read where a task is made of them (tasks/custom.py).
    """
    if task.file is not None:
        _read(task, task.file)
    if task.prompt is None:
        _refuse_own_keys(task)
        return
    for name in OWN:
        _refuse_interpolation(f"task.{name}", getattr(task, name))
    task.options = _texts("task.options", task.options)
    task.labels = _labels(task.labels)
    options = {name: getattr(task, name) for name in ("options", "label")}
    given = [name for name, value in options.items() if value is not None]
    if task.answer is not None and (given or task.labels is not None):
        name = (given or ["labels"])[0]
        raise BadInput(
            f"task.{name}={shortened(getattr(task, name))}: with task.answer text is generated; "
            "allowed are task.options and task.label, or task.answer"
        )
    if task.answer is None and len(given) < 2:
        missing = next(name for name in options if name not in given)
        raise BadInput(
            f"task.{missing}=null: task.prompt needs task.options and task.label, or task.answer"
        )
    if task.splits is not None and not 1 <= len(set(task.splits)) == len(task.splits) <= 2:
        raise BadInput(
            f"task.splits={task.splits}: allowed are the names of the training and the validation "
            "split, or one name, whose rows are divided"
        )
    if source == "pocket":
        raise BadInput(
            f"data.source=pocket: it has no rows for task.name={task.name}; allowed are local and "
            "hub"
        )
    if source == "hub" and not task.hub:
        raise BadInput("task.hub=null: data=hub needs the data set's name, owner/name")


def _read(task: TaskConfig, name: str) -> None:
    where = f"task.file={name}"
    try:
        read = yaml.load(user_path(name).read_text(encoding="utf-8"), yaml.BaseLoader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise BadInput(f"{where}: cannot be read ({said}); allowed is a YAML file") from error
    if not isinstance(read, dict):
        raise BadInput(
            f"{where}: it holds {shortened(read)}; allowed are lines of key: value, with the keys "
            f"{', '.join(KEYS)}"
        )
    for key, value in read.items():
        if key not in KEYS:
            raise BadInput(f"{where}: {key} is no key of a task; allowed are {', '.join(KEYS)}")
        if getattr(task, key) not in (None, CUSTOM):
            raise BadInput(
                f"task.{key}={shortened(getattr(task, key))}: {name} has this key as well; allowed "
                "is one of the two"
            )
        if key in TEXTS and not isinstance(value, str):
            raise BadInput(f"{where}: {key} is {shortened(value)}, allowed: text")
        if key == "splits" and not (
            isinstance(value, list) and all(isinstance(each, str) for each in value)
        ):
            raise BadInput(f"{where}: {key} is {shortened(value)}, allowed: a list of names")
        setattr(task, key, value)
    task.file = None


def _refuse_own_keys(task: TaskConfig) -> None:
    for name in OWN:
        if (value := getattr(task, name)) is not None:
            raise BadInput(
                f"task.{name}={shortened(value)}: allowed with task.prompt alone, which "
                f"task={task.name} has not; task=custom has these keys"
            )
    if task.name == CUSTOM:
        raise BadInput(
            "task.prompt=null: task=custom needs a template such as '{sentence} It was', or "
            "task.file"
        )


def _refuse_interpolation(name: str, value: Any) -> None:
    """Refuse what the configuration would replace when it is read again."""
    if isinstance(value, list | dict):
        for each in [*value, *(value.values() if isinstance(value, dict) else ())]:
            _refuse_interpolation(name, each)
    elif isinstance(value, str) and "${" in value:
        raise BadInput(f"{name}={shortened(value)}: allowed is text without ${{")


def _texts(name: str, value: Any) -> Any:
    """Return the options as a list of texts, or the name of the field that lists them."""
    if value is None or (isinstance(value, str) and value):
        return value
    numbers = isinstance(value, list) and not any(isinstance(each, bool) for each in value)
    if numbers and value and all(isinstance(each, str | int) for each in value):
        return [str(each) for each in value]
    raise BadInput(
        f"{name}={shortened(value)}: allowed are a list of texts (true and false in quotes), or "
        "the name of a field that is a list"
    )


def _labels(value: Any) -> Any:
    """Return the labels' values as texts: a list in the order of the options, or a map."""
    if value is None:
        return None
    if isinstance(value, list) and value and all(map(_plain, value)):
        return [label_text(each) for each in value]
    if isinstance(value, dict) and value and all(map(_plain, [*value, *value.values()])):
        return {label_text(each): label_text(option) for each, option in value.items()}
    raise BadInput(
        f"task.labels={shortened(value)}: allowed are the label of each option, in their order, or "
        "a map of labels to options, {neg: terrible, pos: great}"
    )


def _plain(value: object) -> bool:
    return isinstance(value, str | int | float) and value == value
