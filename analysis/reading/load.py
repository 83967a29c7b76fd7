"""Read finished runs: every `result.json` becomes one row of a tidy table.

A run leaves a folder with `metrics.jsonl` while it works and `result.json` when it is done. Reading
is strict: a run that has not finished, a key that is missing or a value of the wrong type stops
with the path and the key, because a table with a silent gap is worse than none.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

RESULT = "result.json"
Source = str | Path | Iterable[str | Path]

NUMBER = (int, float)
OPTIONAL_NUMBER = (int, float, type(None))

# column -> (dotted key in result.json, what its value may be)
COLUMNS: dict[str, tuple[str, tuple[type, ...]]] = {
    "status": ("status", (str,)),
    "suite": ("suite", (str,)),
    "model": ("model.name", (str,)),
    "data": ("data.source", (str,)),
    "task": ("task", (str,)),
    "task_version": ("task_version", (int, str)),
    "method": ("method", (str,)),
    "variant": ("variant", (str, type(None))),
    "seed": ("seed", (int,)),
    "pocket": ("pocket", (bool,)),
    "embeddings": ("embeddings", (str, type(None))),
    "rounding": ("rounding", (str, type(None))),
    "batch_size": ("config.train.batch_size", (int,)),
    "steps": ("steps", (int,)),
    "forwards": ("forwards", (int,)),
    "best_step": ("best_step", (int, type(None))),
    "train_seconds": ("train_seconds", NUMBER),
    "total_seconds": ("total_seconds", NUMBER),
    "peak_memory_gib": ("peak_memory_gib", NUMBER),
    "dev_loss": ("dev.loss", NUMBER),
    "dev_n": ("dev.n", (int,)),
    "eval_loss": ("eval.loss", NUMBER),
    "eval_n": ("eval.n", (int,)),
    "device": ("machine.device", (str,)),
}
METRICS = ("accuracy", "f1")  # a task has one of the two, under dev and under eval


class ResultError(ValueError):
    """A result file that is missing, unfinished or malformed; the message names path and key."""


def result_paths(source: Source) -> list[Path]:
    """List the result files under a folder, sorted; a list of sources keeps its own order.

    A folder that holds the start of a run (`metrics.jsonl`) without its `result.json` is an error.
    """
    if not isinstance(source, str | Path):
        paths = list(dict.fromkeys(path for one in source for path in result_paths(one)))
        if not paths:
            raise ResultError("source=[]: the list of result folders is empty")
        return paths
    root = Path(source)
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise ResultError(f"{root}: no such file or folder; expected a folder with {RESULT} files")
    begun = {path.parent for path in root.rglob("metrics.jsonl")}
    unfinished = sorted(folder for folder in begun if not (folder / RESULT).is_file())
    if unfinished:
        raise ResultError(
            f"{unfinished[0]}: this run has begun but not finished ({RESULT} is missing; "
            f"{len(unfinished)} such run(s) under {root}); finish it or name finished runs only"
        )
    paths = sorted(root.rglob(RESULT))
    if not paths:
        raise ResultError(f"{root}: holds no {RESULT}; expected one in each run's folder")
    return paths


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ResultError(f"{path}: not valid JSON ({error}); delete it and run again") from None
    if not isinstance(record, dict):
        raise ResultError(f"{path}: holds a {type(record).__name__}; expected an object")
    return record


def read_result(path: Path) -> dict[str, Any]:
    """Read one result file and check that it is a finished run."""
    record = read_json(path)
    status = value(record, "status", (str,), path)
    if status != "finished":
        raise ResultError(f"{path}: key status is {status!r}; only 'finished' runs can be shown")
    return record


def value(record: Mapping[str, Any], key: str, allowed: tuple[type, ...], path: Path) -> Any:
    """Follow a dotted key; an absent key or a value of another type is an error."""
    node: Any = record
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            raise ResultError(f"{path}: key {key} is missing")
        node = node[part]
    kind_ok = isinstance(node, allowed) and (bool in allowed or not isinstance(node, bool))
    if not kind_ok:
        names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in allowed)
        raise ResultError(f"{path}: key {key} is {node!r}; expected {names}")
    if isinstance(node, float) and not math.isfinite(node):
        raise ResultError(f"{path}: key {key} is {node!r}; expected a finite number")
    return node


def row(record: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Flatten one result into the columns of the tidy table.

    `metric` names the task's own score; `dev_score` and `eval_score` hold it as a fraction.
    `examples` counts an example each time that it passes through the model in training. `lr` and
    `eps` are empty for methods that have none. `code` names the commits of all its processes.
    """
    flat = {column: value(record, key, kinds, path) for column, (key, kinds) in COLUMNS.items()}
    flat["examples"] = flat["forwards"] * flat["batch_size"]
    metric = metric_of(record["eval"], "eval", path)
    flat["metric"] = metric
    for split in ("dev", "eval"):
        score = value(record, f"{split}.{metric}", NUMBER, path)
        if not 0 <= score <= 1:
            raise ResultError(f"{path}: key {split}.{metric} is {score}; expected 0 to 1")
        flat[f"{split}_score"] = score
    method = value(record, "config.method", (dict,), path)
    for key in ("lr", "eps"):
        flat[key] = value(method, key, OPTIONAL_NUMBER, path) if key in method else None
    flat["code"] = _code(record, path)
    flat["path"] = str(path)
    return flat


def _code(record: Mapping[str, Any], path: Path) -> str:
    """Name the commits of a run's processes; `+` marks a working tree with changes."""
    code = value(record, "code", (list,), path) if record.get("code") else [record]  # an older one
    names = []
    for each in code:
        commit = value(each, "git_commit", (str, type(None)), path)
        dirty = value(each, "git_dirty", (bool, type(None)), path)
        names.append(("unknown commit" if commit is None else commit[:10]) + ("+" if dirty else ""))
    return ", ".join(dict.fromkeys(names))


def metric_of(scores: Mapping[str, Any], key: str, path: Path) -> str:
    """Return which score an evaluation (the object under `key`) holds: a task has one."""
    found = [name for name in METRICS if name in scores]
    if len(found) != 1:
        raise ResultError(f"{path}: key {key} holds the scores {found}; expected one of {METRICS}")
    return found[0]


def load_results(source: Source) -> pd.DataFrame:
    """Read all runs of a folder (or of a list of folders and files), one row per run."""
    return pd.DataFrame([row(read_result(path), path) for path in result_paths(source)])


def load_metrics(source: Source) -> pd.DataFrame:
    """Read the logged steps of all runs, one row per step.

    `loss` is the training loss of that step's batch, `dev_loss` and `dev_score` are empty at steps
    without an evaluation.
    """
    rows: list[dict[str, Any]] = []
    for path in result_paths(source):
        record = read_result(path)
        run = row(record, path)
        who = {key: run[key] for key in ("model", "task", "method", "variant", "seed", "path")}
        rows += [who | point for point in points(value(record, "metrics", (list,), path), path)]
    if not rows:
        raise ResultError(f"{source}: no run under it has logged a step (key metrics is empty)")
    return pd.DataFrame(rows)


def points(metrics: Sequence[Any], path: Path) -> list[dict[str, Any]]:
    """Check the logged steps of one run, which stand in `path`, and flatten them.

    `seconds` are those spent on training until then, empty in a log that has none.
    """
    return [_point(point, f"metrics[{index}]", path) for index, point in enumerate(metrics)]


def _point(point: Any, name: str, path: Path) -> dict[str, Any]:
    """Check one logged step."""
    if not isinstance(point, Mapping):
        raise ResultError(f"{path}: key {name} is {point!r}; expected an object")
    try:
        flat: dict[str, Any] = {
            "step": value(point, "step", (int,), path),
            "forwards": value(point, "forwards", (int,), path),
            "loss": value(point, "loss", OPTIONAL_NUMBER, path),
            "dev_loss": None,
            "dev_score": None,
            "seconds": value({"seconds": None} | dict(point), "seconds", OPTIONAL_NUMBER, path),
        }
        if point.get("dev") is not None:
            flat["dev_loss"] = value(point, "dev.loss", NUMBER, path)
            metric = metric_of(point["dev"], "dev", path)
            flat["dev_score"] = value(point, f"dev.{metric}", NUMBER, path)
    except ResultError as error:
        raise ResultError(f"{error} (in {name})") from None
    return flat
