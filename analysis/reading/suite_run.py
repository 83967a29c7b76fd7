"""One run of a suite: its result, held against the place that the plan gives it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.reading.load import RESULT, ResultError, read_json, read_result, row, value
from analysis.reading.suite import FAILED, Column, GridCell, Suite


@dataclass(frozen=True)
class Run:
    """One finished run: its whole record and the flat row of analysis.reading.load."""

    path: Path
    record: dict[str, Any]
    row: dict[str, Any]


def find_run(
    suite: Suite, model: str, task: str, column: Column, point: GridCell, seed: int
) -> Run | None:
    """Read one run and check that it is what its folder and the plan say; None if not there."""
    path = suite.run_folder(model, task, column, point, seed) / RESULT
    if not path.is_file():
        return None
    record = read_result(path)
    run = Run(path, record, row(record, path))
    expected = {
        "model.name": column.model(model), "task": task, "method": column.method,
        "variant": point.variant, "seed": seed,
    }  # fmt: skip
    expected |= {f"config.{key}": setting for key, setting in point.settings.items()}
    for key, wanted in expected.items():
        kinds = (str, int, float, bool, list, dict, type(None))
        found = value(record, key, kinds, path)
        if found != wanted:
            raise ResultError(
                f"{path}: key {key} is {found!r}, but the plan has {wanted!r} here; move the run "
                "away and run the suite again"
            )
    return run


def why_missing(folder: Path) -> str:
    """Say why a folder has no result: failed, begun, or not run."""
    failed = folder / FAILED
    if failed.is_file():
        record = read_json(failed)
        how = "diverged" if record.get("diverged") is True else "failed"
        return f"{how} ({short(value(record, 'error', (str, type(None)), failed))})"
    return "has begun but not finished" if folder.is_dir() else "has not run"


def short(error: str | None) -> str:
    """Cut an error message to one short line."""
    words = " ".join((error or "no message").split())
    return words if len(words) <= 120 else words[:117] + "..."
