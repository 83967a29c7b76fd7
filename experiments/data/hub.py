"""Rows from the Hugging Face Hub, with the commit that was really loaded.

The library `datasets` is imported inside the loader: its import takes seconds that other sources
need not pay. A builder's `hash` is the repository's commit, resolved by the Hub or, without a
network, taken from the cache that is used in its place, so what is recorded is what was read. (For
a folder on disk in place of a Hub id it is the fingerprint of the files.)
"""

from typing import Any

from experiments.config.shorten import clipped
from experiments.tasks.base import DataError, Row, Task

SPLITS = ("train", "validation")
COMMIT_LENGTH = 40  # hex digits of a full git commit


def load_hub(task: Task) -> tuple[dict[str, list[Row]], dict[str, Any]]:
    """Return the unchecked rows of a task's train and validation splits and their origin.

    Of a task with one split all rows are `train`.

    Raises DataError naming id, configuration and revision when they cannot be loaded, when a split
    is absent, or when a pinned commit is not the one that came.
    """
    source = task.hub
    if source is None:
        raise DataError(
            f"task {task.name!r}, data.source='hub': it has no data set there, allowed: 'local'"
        )
    import datasets

    what = (
        f"task {task.name!r}, hub data set {source.path!r} ({source.name!r}, {source.revision!r})"
    )
    try:
        builder = datasets.load_dataset_builder(source.path, source.name, revision=source.revision)
        commit = builder.hash
        pinned = source.revision is not None and len(source.revision) == COMMIT_LENGTH
        if pinned and commit != source.revision:
            raise DataError(f"{what}: commit {commit!r} was found in its place (an offline cache?)")
        builder.download_and_prepare()
        names = sorted(builder.info.splits or {})
        missing = [split for split in task.splits if split not in names]
        if missing:
            raise DataError(f"{what}: no split {missing}; found {names}")
        loaded = [builder.as_dataset(split=split) for split in task.splits]
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{what} cannot be loaded: {clipped(str(error), 400)} "
            "(needed: network or a filled cache; or data=local with data.root)"
        ) from error
    rows: dict[str, list[Row]] = {
        split: list(map(dict, table)) for split, table in zip(SPLITS, loaded, strict=False)
    }
    origin = {
        "source": "hub",
        "path": source.path,
        "name": source.name,
        "revision": source.revision,
        "commit": commit,
    }
    if task.splits != SPLITS:
        origin["splits"] = list(task.splits)
    return rows, origin
