"""Whether a run packs its training batches (packing.py), decided once before its first step.

    never    no
    auto     where it can be done, each batch of which at least `LEAST` of the positions are padding
    always   every batch with any padding; where it cannot be done the run is refused

Nothing is timed: the choice follows from the configuration, the model and the batch's shape, so a
resumed run chooses as it did before. That a model can be packed is also tried, on three short rows.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experiments.config.errors import BadInput
from experiments.config.schema import RunConfig
from experiments.data.batches import collate_rows
from experiments.data.encode import Encoded
from experiments.data.packing import can_pack
from experiments.evaluation.asking import said
from experiments.models.loss import accepted_keywords, label_logits, spread, wrapped
from experiments.tasks.base import Task

LEAST = 0.1  # of a batch's positions; below, moving rows in attention costs what it saves
BY_ROWS = {"full_attention", "sliding_attention"}  # layers whose masks come from columns of a row
TRIED = 16  # tokens of the longest row that is tried
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}  # of the largest logit
HALF_TOLERANCE = 5e-2


@dataclass(frozen=True)
class PackChoice:
    """What was decided; `least` is the share of padding from which on a batch is packed."""

    asked: str
    least: float | None  # None: no batch is packed
    why: str

    def about(self) -> dict[str, Any]:
        """Return what a result says of it."""
        return asdict(self)


def choose(
    config: RunConfig,
    model: nn.Module,
    optimizer: Any,
    task: Task,
    encoded: list[Encoded],
    pad_id: int,
    compiled: bool = False,
    apart: str | None = None,
) -> PackChoice:
    """Decide whether the batches of a run are packed; BadInput where "always" cannot be done.

    Those of `compiled` layers are not; `apart` says why rows of different lengths cannot be run
    together at all.
    """
    asked = config.train.packing
    if asked == "never":
        return PackChoice(asked, None, "train.packing=never")
    if not optimizer.about.trains:
        return PackChoice(asked, None, f"method={config.method['name']} takes no steps")
    if compiled:
        return PackChoice(asked, None, f"train.compile={config.train.compile}: layers are compiled")
    why = apart or obstacle(config, model, optimizer, task)
    why = why or disagreement(model, encoded, pad_id)
    if why is None:
        if asked == "auto":
            return PackChoice(asked, LEAST, f"batches of which {LEAST:.0%} or more are padding")
        return PackChoice(asked, 0.0, "batches with any padding")
    if asked == "always":
        raise BadInput(f"train.packing=always: {why}; allowed are auto, never")
    return PackChoice(asked, None, why)


def obstacle(config: RunConfig, model: nn.Module, optimizer: Any, task: Task) -> str | None:
    """Say what keeps a run from packing, None if nothing does."""
    inner = wrapped(model)
    name = type(inner).__name__
    if config.adapter.name == "prefix":
        return "adapter=prefix puts virtual tokens in front of every row of a batch"
    if getattr(optimizer, "include_padding", False):
        return "method.include_padding=true takes bases over padding"
    if config.train.objective == "metric" and task.kind == "generation":
        return f"train.objective=metric of task={task.name} generates text"
    if spread(inner):
        return "model.device_map=auto spreads it over devices, and a packed layout is on one"
    if not can_pack(inner):
        return (
            f"{name} with model.attention={config.model.attention} does not ask transformers' "
            "interface for sdpa attention"
        )
    if not {"attention_mask", "position_ids"} <= accepted_keywords(model):
        return f"{name}.forward takes no attention_mask and position_ids"
    other = set(getattr(inner.config, "layer_types", None) or ()) - BY_ROWS
    if other:
        return f"{name} has layers of {', '.join(sorted(other))}"
    if any(getattr(each, "gradient_checkpointing", False) for each in inner.modules()):
        return f"{name} has gradient checkpointing on, which runs attention again in the backward"
    return None


@torch.no_grad()
def disagreement(model: nn.Module, encoded: list[Encoded], pad_id: int) -> str | None:
    """Run three short rows packed and padded; say how far the logits differ, None if they agree."""
    parts = short_rows(encoded)
    rows = collate_rows(parts, [1] * len(parts), pad_id, next(model.parameters()).device)
    wanted, name = label_logits(model, rows).flatten(0, 1), type(model).__name__
    try:
        found = label_logits(model, rows.pack()).flatten(0, 1)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a model's own code raises what it will
        return f"{name} cannot run a packed batch ({said(error)})"
    differ = far_apart(found, wanted)
    if differ is None:
        return None
    return f"{name} answers a packed batch otherwise than a padded one: {differ}"


def short_rows(encoded: list[Encoded]) -> list[Sequence[int]]:
    """Return three rows of different lengths, of at most `TRIED` tokens."""
    row = max((ids for example in encoded for ids in example.ids), key=len)
    return [row[:TRIED], row[-TRIED // 3 :], row[-2:]]


def far_apart(found: Tensor, wanted: Tensor) -> str | None:
    """Say how far logits are from others, None if no further than rounding takes them."""
    share = (found.double() - wanted.double()).abs().max() / wanted.double().abs().max()
    allowed = TOLERANCE.get(wanted.dtype, HALF_TOLERANCE)
    if share <= allowed:
        return None
    return f"logits differ by {share.item():.1e} of the largest, allowed is {allowed:g}"
