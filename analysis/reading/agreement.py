"""Runs that stand in one table or line must agree in everything that it does not vary.

Within a column, the runs of a task differ in their seed and in the settings that its grid varies.
Across the columns of a task, data and the version of the task are the same; across a whole table,
the model. Runs that are averaged without a plan differ in their seed alone. Anything else is an
error that names the key and both files: a mean or a difference over it would mean nothing.
"""

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from analysis.reading.load import ResultError, read_result
from analysis.reading.suite import Column

PLACES = {"model.path", "data.root"}  # where things lie: what they are is in MODEL and DATA
KEPT = {"train.log_every", "train.checkpoint_every", "train.keep_checkpoint", "train.save_model"}
# of the configuration, beside the settings of the grid: what may differ between runs of a column
FREE = {"seed", "out", "device", "threads", "traceback", "tuned", "variant"} | PLACES | KEPT
FREE_GROUPS = ("tracking.",)
FREE_OF_PLAN = FREE | {"suite"}  # where no plan holds the runs together, its name is free as well
# the same in all columns of a task; a key that one lacks (only the hub has commits) all must lack
DATA = (
    "task_version", "metric", "data.source", "data.commit", "data.world_seed", "data.train_sha256",
    "data.validation_sha256", "data.sizes.used", "data.examples_sha256", "dev.n", "eval.n",
)  # fmt: skip
PROTOCOL = (
    "config.precision.dtype", "config.model.prompt", "config.train.batch_size",
    "config.train.max_length",
)  # fmt: skip
MODEL = ("model.source", "model.parameters", "model.class", "model.commit", "model.sha256")
# the same in all runs of an average, beside those above: what the configuration has led to
SETTING = ("model.name", "variant", "embeddings", "rounding")

Record = Mapping[str, Any]


def check_column(runs: Sequence[tuple[Path, Record]], column: Column) -> None:
    """Check the runs of one task and column against the first of them."""
    varied = {key for cell in column.cells for key in cell.settings}
    _check_config(runs, FREE | varied, f"runs of one cell (column {column.name})")


def check_average(rows: Sequence[Mapping[str, Any]], what: str) -> None:
    """Check runs that are averaged, given as rows of `load`: one experiment, and each seed once."""
    paths = [Path(row["path"]) for row in rows]
    runs = [(path, read_result(path)) for path in paths]
    what = f"{what} (method {rows[0]['method']} on task {rows[0]['task']})"
    check_shared(runs, (*SETTING, *MODEL, *DATA), what)
    _check_config(runs, FREE_OF_PLAN, what)
    seen: dict[int, Path] = {}
    for path, row in zip(paths, rows, strict=True):
        if row["seed"] in seen:
            raise ResultError(
                f"{path}: seed {row['seed']} of method {row['method']} on task {row['task']} is "
                f"already counted from {seen[row['seed']]}; expected one run per seed and setting"
            )
        seen[row["seed"]] = path


def _check_config(runs: Sequence[tuple[Path, Record]], free: Set[str], what: str) -> None:
    """Check that the configuration is the same in all runs but for the free keys."""
    for path, record in runs[1:]:
        first_path, first = runs[0]
        if keys := varied([record, first], free):
            ours, theirs = (flatten(one["config"]).get(keys[0]) for one in (record, first))
            raise _disagree(f"config.{keys[0]}", (path, ours), (first_path, theirs), what)


def varied(records: Sequence[Record], free: Set[str] = FREE_OF_PLAN) -> list[str]:
    """List the keys of the configuration, but for the free ones, that are not the same in all."""
    flat = [flatten(record["config"]) for record in records]
    keys = {key for one in flat for key in one if not key.startswith(FREE_GROUPS)} - free
    return [key for key in sorted(keys) if any(one.get(key) != flat[0].get(key) for one in flat)]


def check_shared(runs: Sequence[tuple[Path, Record]], keys: Sequence[str], what: str) -> None:
    """Check that some keys are the same in all runs, against the first of them."""
    for path, record in runs[1:]:
        first_path, first = runs[0]
        for key in keys:
            ours, theirs = _follow(record, key), _follow(first, key)
            if ours != theirs:
                raise _disagree(key, (path, ours), (first_path, theirs), what)


def flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested objects to dotted keys."""
    flat: dict[str, Any] = {}
    for key, item in node.items():
        if isinstance(item, Mapping) and item:
            flat |= flatten(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def _follow(record: Record, key: str) -> Any:
    node: Any = record
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _disagree(key: str, one: tuple[Path, Any], other: tuple[Path, Any], what: str) -> ResultError:
    return ResultError(
        f"{one[0]}: key {key} is {one[1]!r}, but {other[0]} has {other[1]!r}; {what} must agree: "
        "run the one that is wrong again, or leave it out"
    )
