"""One run from its configuration to its result: find it, start it or resume it, record it.

    run(config) -> the content of result.json

The folder of a run follows from its configuration, so the same command finds a finished run, goes
on with one that was stopped, and refuses one whose configuration or data has changed since.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from agzo.linears import stored_bytes
from experiments import checkpoint, machine, record, registry, report
from experiments.adapter_files import save_lora
from experiments.config import BadInput, RunConfig, changes, check, read_yaml, to_yaml
from experiments.interrupt import Interrupted, StopRequest
from experiments.lock import lock
from experiments.metrics import best_constant
from experiments.offload import check_offload
from experiments.prepare import Parts, prepare
from experiments.runner import NonFiniteLoss, Runner
from experiments.tracking import Tracker

CONFIG, ORIGIN = "config.yaml", "origin.json"


def verify(config: RunConfig) -> None:
    """Refuse, without loading anything, what no run could use."""
    check(config)
    registry.settings(config.method, config.precision.rounding)
    registry.check_fit(config)
    check_offload(config)


def run(config: RunConfig) -> dict[str, Any]:
    """Do one run, or find it done, and return its result."""
    verify(config)
    folder = config.folder
    done = _found(config, folder)
    if done is not None:
        return done
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads or threads)
    try:
        return _do(config, folder)
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


def _do(config: RunConfig, folder: Path) -> dict[str, Any]:
    parts = prepare(config)
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder), StopRequest() as stop:
        done = _found(config, folder)  # again: another process may have been here meanwhile
        if done is not None:
            return done
        if _begun(folder):
            origin = _read(folder / ORIGIN, lambda path: json.loads(path.read_text()))
            _refuse_changes(folder, origin, parts.origin, ORIGIN)
        else:
            record.write_text(folder / CONFIG, to_yaml(config))
            record.write_json(folder / ORIGIN, parts.origin)
        tracker = Tracker(config, folder)
        try:
            result = _train_and_report(config, folder, parts, tracker, stop)
        except Interrupted as interrupted:
            tracker.finish(failed=True)
            saved = checkpoint.steps(folder / "checkpoints")
            at = f"checkpoint of step {saved[-1]} is kept" if saved else "nothing was trained yet"
            raise Interrupted(
                f"{folder}: stopped; {at}; the same command goes on", interrupted.number
            ) from interrupted
        except Exception as error:
            tracker.finish(failed=True)
            failure = {
                "status": "failed",
                "error": f"{type(error).__name__}: {error}",
                "diverged": isinstance(error, NonFiniteLoss),
                "config": config.as_dict(),
            }
            record.write_json(folder / record.FAILED, failure)
            raise
    print(report.table(result, str(folder / record.RESULT)), flush=True)
    return result


def _train_and_report(
    config: RunConfig, folder: Path, parts: Parts, tracker: Tracker, stop: StopRequest
) -> dict[str, Any]:
    runner = Runner(config, parts, folder, tracker, stop)
    if runner.progress.resumed:
        print(f"{folder}: goes on from step {runner.at}", file=sys.stderr)
    runner.train()
    evaluation = runner.final_evaluation()
    if config.train.save_model:
        _save_model(parts, folder / "model")
    result = _result(config, parts, runner, evaluation)
    tracker.finish({"eval": evaluation, "best_step": result["best_step"]})
    result["tracking"] = tracker.about()
    record.write_json(folder / record.RESULT, result)
    (folder / record.FAILED).unlink(missing_ok=True)
    keep = {result["best_step"]} if config.train.keep_checkpoint else set()
    checkpoint.prune(runner.checkpoints, keep)
    return result


def _result(
    config: RunConfig, parts: Parts, runner: Runner, evaluation: dict[str, Any]
) -> dict[str, Any]:
    """Put together what result.json says."""
    runner.measure()
    progress, optimizer = runner.progress, parts.optimizer
    best = progress.best or {"step": 0, "dev": progress.start_dev}
    return {
        "status": "finished",
        "suite": config.suite,
        "method": config.method["name"],
        "variant": config.variant,
        "task": config.task.name,
        "task_version": parts.task.version,
        "model": parts.origin["model"],
        "adapter": parts.origin.get("adapter"),
        "objective": config.train.objective,
        "packing": parts.origin["packing"],
        "data": parts.origin["data"],
        "seed": config.seed,
        "pocket": "pocket" in (config.model.source, config.data.source),
        "embeddings": optimizer.embeddings,
        "rounding": optimizer.rounding,
        "stream_version": optimizer.stream_version,
        "tuned_parameters": sum(each.parameter.numel() for each in optimizer.tuned),
        "steps": parts.steps,
        "forwards": optimizer.forwards,
        "best_step": best["step"],
        "dev": best["dev"],
        "eval": evaluation,
        "start_dev": progress.start_dev,
        "truncated": parts.truncated,
        "demonstrations": parts.demonstrations,
        "study": getattr(optimizer, "studied", None),
        "chance": _chance(parts),
        "train_seconds": progress.train_seconds,
        "total_seconds": progress.total_seconds,
        "model_gib": stored_bytes(parts.model) / 2**30,
        "offload": None if parts.stream is None else parts.stream.about(),
        **runner.memory.about(),
        "peak_memory_gib": progress.peak_gib,
        "resumed_at": progress.resumed,
        **machine.git_state(),
        "versions": machine.versions(),
        "machine": machine.about(parts.device),
        "config": config.as_dict(),
        "metrics": progress.rows,
    }


def _chance(parts: Parts) -> float | None:
    """Return the evaluation accuracy of one and the same answer, None where answers are texts."""
    if parts.task.metric != "accuracy":
        return None
    return best_constant([example.correct for example in parts.eval.encoded])


def _finished(folder: Path) -> dict[str, Any] | None:
    path = folder / record.RESULT
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise BadInput(f"{path}: damaged ({error}); delete it to evaluate again") from error


def _refuse_changes(folder: Path, old: dict[str, Any], new: dict[str, Any], what: str) -> None:
    changed = changes(old, new)
    if changed:
        listed = "\n  ".join(changed)
        raise BadInput(
            f"{folder}: this run was begun with another {what}:\n  {listed}\n"
            "give the new run a name of its own (variant=... or suite=...), or delete the folder"
        )


def _save_model(parts: Parts, target: Path) -> None:
    """Write model and tokenizer with save_pretrained, whole or not at all.

    Of an adapted model PEFT writes the adapter alone, for `PeftModel.from_pretrained`. So is what a
    method trains beside the weights, which it hands out by `adapter()`.
    """
    beside = target.with_name(".model.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    if hasattr(parts.optimizer, "adapter"):
        save_lora(parts.model, parts.optimizer.adapter(), beside)
    else:
        alone = {"save_embedding_layers": False} if "adapter" in parts.origin else {}
        parts.model.save_pretrained(beside, **alone)  # pyright: ignore[reportCallIssue]
    parts.tokenizer.save_pretrained(beside)
    shutil.rmtree(target, ignore_errors=True)
    beside.rename(target)
