"""Does a finished result still stand for what its configuration names today?

The configuration of a run names files and versions that may have changed since: the task's own
version, the model's folder, the data set's files or pinned commit, the unrelated text. They are
compared by hash with what the result says it was made from, wherever they lie now. What is not at
hand any more cannot be compared and counts as unchanged: a result outlives its data.
"""

from typing import Any

from experiments.config.errors import BadInput
from experiments.config.files import known_sha256
from experiments.config.paths import user_path
from experiments.config.schema import RunConfig
from experiments.data import files
from experiments.data.hub import SPLITS
from experiments.models.loading import model_sha256, side_files_sha256
from experiments.tasks import DataError, task_of

ABSENT = "<absent>"
SIDE_FILES = "side_files_sha256"  # what results from before it do not have


def changes_since(config: RunConfig, result: dict[str, Any]) -> list[str]:
    """List what a result was made from and has changed, as "what: then -> now"."""
    now: dict[str, Any] = {"task_version": task_of(config.task).version}
    now |= {f"data.{key}": value for key, value in _data(config).items()}
    if config.model.source != "hub":
        model = _as_known(result.get("model") or {}, _model(config))
        now |= {f"model.{key}": value for key, value in model.items()}
    now |= _unrelated(config)
    then: dict[str, Any] = {"task_version": result.get("task_version")}
    for part in ("data", "model", "forgetting"):
        then |= {f"{part}.{key}": value for key, value in (result.get(part) or {}).items()}
    return [
        f"{key}: {then.get(key, ABSENT)} -> {value}"
        for key, value in now.items()
        if then.get(key, ABSENT) != value
    ]


def as_known(then: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Return the origin of a run without the hash that an origin from before it does not have."""
    return now | {"model": _as_known(then.get("model", {}), now["model"])}


def refuse_other_model(then: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse a model that is another one than that of a run's origin (hashes, or a hub's commit).

    `then` and `now` are what `loading.origin` says of a model.
    """
    now = _as_known(then, now)
    for key in ("sha256", "commit", SIDE_FILES):
        if now.get(key) != then.get(key):
            raise BadInput(
                f"model.{key}={now.get(key)}: the start model is not that of the run, "
                f"{then.get(key)}; allowed is the model it began with"
            )


def _as_known(then: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Return what is said of a model now, as far as a record from before `SIDE_FILES` knows it."""
    return {key: value for key, value in now.items() if key != SIDE_FILES or key in then}


def _data(config: RunConfig) -> dict[str, str | None]:
    """Return what identifies the data that are at hand."""
    task = task_of(config.task)
    if config.data.source == "hub":
        return {"revision": task.hub and task.hub.revision}
    if config.data.source != "local" or config.data.root is None:
        return {}
    if task.any_file:
        try:
            there = files.find(task, user_path(config.data.root))
        except DataError:  # not at hand
            return {}
        return {  # of one file, which is divided, there is no other
            f"{split}_sha256": files.sha256(there[split]) if split in there else ABSENT
            for split in SPLITS
        }
    folder = user_path(config.data.root) / task.name
    paths = {split: folder / f"{split}.jsonl" for split in SPLITS}
    return {f"{split}_sha256": known_sha256(p) for split, p in paths.items() if p.is_file()}


def _model(config: RunConfig) -> dict[str, str | None]:
    try:
        return {
            "sha256": model_sha256(config.model),
            SIDE_FILES: side_files_sha256(config.model),
        }
    except BadInput:  # not at hand
        return {}


def _unrelated(config: RunConfig) -> dict[str, str]:
    path = user_path(config.train.forgetting) if config.train.forgetting else None
    return {"forgetting.sha256": known_sha256(path)} if path and path.is_file() else {}
