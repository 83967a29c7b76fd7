"""One run from its configuration to its result: find it, start it or resume it, record it.

    run(config) -> the content of result.json

The folder of a run follows from its configuration, so the same command finds a finished run, goes
on with one that was stopped, and refuses one whose configuration or data has changed since.
"""

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from agzo.distributed.group import Group
from agzo.distributed.processes import ProcessLost
from experiments.config.composed import changes, check, read_yaml, to_yaml
from experiments.config.errors import BadInput
from experiments.config.schema import RunConfig
from experiments.methods import registry
from experiments.models.device_map import check_device_map
from experiments.models.offload import check_offload
from experiments.models.saving import save_model
from experiments.records import checkpoint, machine, record, report
from experiments.records.interrupt import Interrupted, StopRequest
from experiments.records.lock import lock
from experiments.records.provenance import as_known, changes_since
from experiments.records.tracking import Tracker, resolve_mode
from experiments.tasks import task_of
from experiments.training import ranks
from experiments.training.parts import Parts
from experiments.training.prepare import prepare
from experiments.training.result import result_of
from experiments.training.runner import NonFiniteLoss, Runner

CONFIG, ORIGIN = "config.yaml", "origin.json"


def verify(config: RunConfig) -> None:
    """Refuse, without loading anything, what no run could use."""
    check(config)
    resolve_mode(config.tracking.mode)
    registry.settings(config.method, config.precision.rounding)
    registry.check_fit(config)
    check_offload(config)
    task_of(config.task)


def run(config: RunConfig) -> dict[str, Any]:
    """Do one run, or find it done, and return its result."""
    machine.git_state()  # of the code that runs: the result, written at the end, says it
    verify(config)
    folder, group = config.folder, ranks.join(config.device, config.peer_timeout)
    check_device_map(config, group.size)
    done = group.first(lambda: _found(config, folder))
    if done is not None:
        return done
    record.check_writable(folder)
    machine.keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads or threads)
    try:
        return _do(config, folder, group)
    finally:
        torch.set_num_threads(threads)


def _begun(folder: Path) -> bool:
    return (folder / record.RESULT).exists() or bool(checkpoint.steps(folder / "checkpoints"))


def _found(config: RunConfig, folder: Path) -> dict[str, Any] | None:
    """Return the result of a finished run of this very configuration, None if it is to be done."""
    if _begun(folder):
        _refuse_changes(folder, _read(folder / CONFIG, read_yaml), config.as_dict(), CONFIG)
    done = _finished(folder)
    if done is not None:
        _refuse_old(folder, changes_since(config, done))
        print(f"{folder}: this run is finished already; its result:")
        print(report.table(done, str(folder / record.RESULT)), flush=True)
    return done


def _read(path: Path, reader: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Read a file beside the checkpoints; damage is an error that names it and the way out."""
    try:
        return reader(path)
    except Exception as error:  # the file system, JSON, YAML and OmegaConf raise many kinds
        raise BadInput(
            f"{path}: missing or damaged ({' '.join(str(error).split())[:120]}); restore it, or "
            f"remove {path.parent} to begin anew"
        ) from error


def _do(config: RunConfig, folder: Path, group: Group) -> dict[str, Any]:
    parts = prepare(config, group)
    with ExitStack() as held, StopRequest() as stop:
        done = group.first(lambda: _claim(config, folder, parts, held))
        if done is not None:
            return done
        tracker = Tracker(config if group.rank == 0 else _untracked(config), folder)
        try:
            result = _train_and_report(config, folder, parts, tracker, stop)
        except Interrupted as interrupted:
            tracker.finish(failed=True)
            if group.rank > 0:
                raise Interrupted("stopped with process 0", interrupted.number) from interrupted
            saved = checkpoint.steps(folder / "checkpoints")
            at = f"checkpoint of step {saved[-1]} is kept" if saved else "nothing was trained yet"
            said = f"{folder}: stopped; {at}; the same command goes on"
            raise Interrupted(said, interrupted.number) from interrupted
        except ProcessLost:  # no failure of this run: started again, it goes on
            tracker.finish(failed=True)
            raise
        except Exception as error:
            tracker.finish(failed=True)
            if group.rank > 0:
                raise
            with suppress(OSError):  # a full disk may be the very failure
                record.write_json(folder / record.FAILED, _failure(config, parts, error))
            if isinstance(error, OSError):
                raise _cannot_write(folder, error) from error
            raise
    print(report.table(result, str(folder / record.RESULT)), flush=True)
    return result


def _failure(config: RunConfig, parts: Parts, error: Exception) -> dict[str, Any]:
    """Return the content of failed.json; what the run was made from is there as in a result."""
    return {
        "status": "failed",
        "error": f"{type(error).__name__}: {error}",
        "diverged": isinstance(error, NonFiniteLoss),
        "task_version": parts.task.version,
        "data": parts.origin["data"],
        "model": parts.origin["model"],
        "forgetting": parts.origin.get("forgetting"),
        "config": config.as_dict(),
    }


def _cannot_write(folder: Path, error: OSError) -> record.CannotWrite:
    saved = checkpoint.steps(folder / "checkpoints")
    kept = f"the checkpoint of step {saved[-1]} is whole" if saved else "no checkpoint is there yet"
    if isinstance(error, BrokenPipeError):  # of standard output: print(..., flush=True)
        return record.CannotWrite(
            f"{folder}: stopped, for what read its output has ended; {kept}; the same command "
            "goes on"
        )
    return record.CannotWrite(
        f"{folder}: cannot be written ({error}); {kept}; with the disk mended the same command "
        "goes on"
    )


def _claim(config: RunConfig, folder: Path, parts: Parts, held: ExitStack) -> dict[str, Any] | None:
    """Lock the run's folder, check or write what it was begun with; return what is done already."""
    folder.mkdir(parents=True, exist_ok=True)
    held.enter_context(lock(folder))
    done = _found(config, folder)  # again: another process may have been here meanwhile
    if done is not None:
        return done
    if _begun(folder):
        origin = _read(folder / ORIGIN, lambda path: json.loads(path.read_text()))
        _refuse_changes(folder, origin, as_known(origin, parts.origin), ORIGIN)
    else:
        record.write_text(folder / CONFIG, to_yaml(config))
        record.write_json(folder / ORIGIN, parts.origin)
    return None


def _untracked(config: RunConfig) -> RunConfig:
    return replace(config, tracking=replace(config.tracking, mode="disabled"))


def _train_and_report(
    config: RunConfig, folder: Path, parts: Parts, tracker: Tracker, stop: StopRequest
) -> dict[str, Any]:
    runner = Runner(config, parts, folder, tracker, stop)
    if runner.leads:
        print("".join(f"{line}\n" for line in parts.lines), end="", flush=True)
    if runner.progress.resumed and runner.leads:
        print(f"{folder}: goes on from step {runner.at}", file=sys.stderr)
    runner.train()
    evaluation = runner.final_evaluation()
    return runner.group.first(lambda: _report(config, folder, parts, tracker, runner, evaluation))


def _report(
    config: RunConfig,
    folder: Path,
    parts: Parts,
    tracker: Tracker,
    runner: Runner,
    evaluation: dict[str, Any],
) -> dict[str, Any]:
    """Write what is left of a run that is through: its model, its result."""
    if config.train.save_model:
        save_model(parts.model, parts.tokenizer, parts.optimizer, folder / "model")
    result = result_of(config, parts, runner, evaluation)
    tracker.finish({"eval": evaluation, "best_step": result["best_step"]})
    result["tracking"] = tracker.about()
    record.write_json(folder / record.RESULT, result)
    (folder / record.FAILED).unlink(missing_ok=True)
    keep = {result["best_step"]} if config.train.keep_checkpoint else set()
    checkpoint.prune(runner.checkpoints, keep)
    return result


def _finished(folder: Path) -> dict[str, Any] | None:
    path = folder / record.RESULT
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise BadInput(f"{path}: damaged ({error}); delete it to evaluate again") from error


def _refuse_old(folder: Path, changed: list[str]) -> None:
    """Refuse to present a result of data or a model that are others today."""
    if changed:
        listed = "\n  ".join(changed)
        raise BadInput(
            f"{folder / record.RESULT}: this run is finished, with data or a model that have "
            f"changed since:\n  {listed}\n"
            "give the new run a name of its own (variant=... or suite=...), delete the folder to "
            "do it anew, or put the old files back"
        )


def _refuse_changes(folder: Path, old: dict[str, Any], new: dict[str, Any], what: str) -> None:
    changed = changes(old, new)
    if changed:
        listed = "\n  ".join(changed)
        raise BadInput(
            f"{folder}: this run was begun with another {what}:\n  {listed}\n"
            "give the new run a name of its own (variant=... or suite=...), or delete the folder"
        )
