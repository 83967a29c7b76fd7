"""What result.json says of a finished run."""

from typing import Any

from agzo.tuned.coordinates import coordinates
from agzo.tuned.linears import stored_bytes
from experiments.config.schema import RunConfig
from experiments.evaluation.metrics import best_constant
from experiments.records import machine
from experiments.training.parts import Parts
from experiments.training.runner import Runner

BASIS_OF = {
    "gram": "all micro-batches, by their Gram matrices",
    "first": "the first micro-batch alone",
}


def result_of(
    config: RunConfig, parts: Parts, runner: Runner, evaluation: dict[str, Any]
) -> dict[str, Any]:
    """Put together what result.json says."""
    runner.measure()
    forgotten = runner.forgetting()
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
        "trial": parts.origin["trial"],
        "packing": parts.origin["packing"],
        "compile": parts.origin["compile"],
        "shares": _shares(parts, runner),
        "data": parts.origin["data"],
        "seed": config.seed,
        "pocket": "pocket" in (config.model.source, config.data.source),
        "embeddings": optimizer.embeddings,
        "rounding": optimizer.rounding,
        "stream_version": optimizer.stream_version,
        "tuned_parameters": sum(each.parameter.numel() for each in optimizer.tuned),
        "coordinates": coordinates(parts.model, optimizer).about(),
        "summary": optimizer.summary().about() if hasattr(optimizer, "summary") else None,
        "steps": parts.steps,
        "forwards": optimizer.forwards,
        "best_step": best["step"],
        "dev": best["dev"],
        "eval": evaluation,
        "start_dev": progress.start_dev,
        "truncated": parts.truncated,
        "demonstrations": parts.demonstrations,
        "study": getattr(optimizer, "calibrated", None),
        "chance": _chance(parts),
        "forgetting": forgotten,
        "train_seconds": progress.train_seconds,
        "total_seconds": progress.total_seconds,
        "model_gib": stored_bytes(parts.model) / 2**30,
        "offload": None if parts.stream is None else parts.stream.about(),
        **runner.memory.about(),
        "peak_memory_gib": progress.peak_gib,
        "resumed_at": progress.resumed,
        **machine.git_state(),
        "code": progress.code,
        "versions": machine.versions(),
        "machine": machine.about(parts.device),
        "config": config.as_dict(),
        "metrics": progress.rows,
    }


def _shares(parts: Parts, runner: Runner) -> dict[str, Any] | None:
    """Say how batches were divided, None where they were not.

    `reduced_bytes` are those a process handed to sums over processes, since it last began.
    """
    shares, steps = parts.shares, runner.at - runner.begun
    if shares.count == 1 or not parts.steps:
        return None
    about: dict[str, Any] = {"processes": shares.group.size, "accumulation": shares.accumulation}
    basis = getattr(parts.optimizer, "accumulated_basis", None)
    if basis is not None and shares.accumulation > 1:
        about["basis"] = BASIS_OF[basis]
    sent = shares.group.reduced_bytes - runner.sent
    return about | {
        "reduced_bytes": sent,
        "reduced_bytes_per_step": sent / steps if steps else None,
    }


def _chance(parts: Parts) -> float | None:
    """Return the evaluation accuracy of one and the same answer, None where answers are texts."""
    if parts.task.metric != "accuracy":
        return None
    return best_constant([example.correct for example in parts.eval.encoded])
