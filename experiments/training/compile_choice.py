"""Whether a run's decoder layers are compiled, decided once before step 0.

    never     no
    auto      on CUDA, as CUDA graphs, where the layers' kernels end sooner than they are launched,
              in a run of `STEPS` steps or more; else no
    layers    compiled
    graphs    compiled, and run as CUDA graphs

Nothing is timed: the choice follows from the configuration, the model and the batch's shape, so a
resumed run chooses as it did before. Compiled batches are padded to a multiple of `BUCKET` columns,
for every width is compiled for itself, and never packed. A loss is that of the narrower batch to
rounding; AGZO's bases are not, for its test matrix has a row for each column, padding too. That a
model can be compiled is also tried, on three short rows: at its weights, not at perturbed ones.

The rule of "auto": an eager layer launches some `LAUNCHES` kernels, one in `LAUNCH` seconds; its
products take 2 x parameters x tokens operations, at `RATE` a second. Below that many tokens a step
waits for launches, and padding and set-up (minutes) are paid back. On a CPU there are no launches,
and packed batches save more than compiled layers do.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from agzo.execution.compiled import CompiledLayers
from agzo.execution.loss_check import Uses
from agzo.optimizer import ZeroOrderOptimizer
from agzo.tuned.layers import decoder_layers
from experiments.config.errors import BadInput
from experiments.config.schema import RunConfig
from experiments.data.batches import collate_rows
from experiments.data.encode import Encoded
from experiments.models.loss import label_logits, spread, wrapped
from experiments.tasks.base import Task
from experiments.training.pack_choice import far_apart, short_rows

BUCKET = 32  # columns
STEPS = 1000
LAUNCHES, LAUNCH = 45, 5e-6
RATE = {torch.bfloat16: 4e14, torch.float16: 4e14}  # of one H200, operations a second
FLOAT32_RATE = 4e13


@dataclass(frozen=True)
class CompileChoice:
    """What was decided."""

    asked: str
    layers: str  # eager, compiled or graphs
    why: str

    @property
    def bucket(self) -> int:
        """The number whose multiples a batch's width is padded to."""
        return 1 if self.layers == "eager" else BUCKET

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
    steps: int,
    apart: str | None = None,
) -> tuple[CompileChoice, CompiledLayers | None]:
    """Decide whether layers are compiled, and compile them.

    BadInput where "layers" or "graphs" cannot be done. `apart` says why rows of different lengths
    cannot be run together, as padding does.
    """
    asked = config.train.compile
    if asked == "never":
        return CompileChoice(asked, "eager", "train.compile=never"), None
    if not optimizer.about.trains:
        return CompileChoice(asked, "eager", f"method={config.method['name']} takes no steps"), None
    device = next(model.parameters()).device
    why = apart or obstacle(config, model, optimizer, task, device)
    why = why or many_shapes(config, task, encoded)
    if why is None and asked == "auto":
        rows = config.train.batch_size * max(len(example.ids) for example in encoded)
        longest = max(len(ids) for example in encoded for ids in example.ids)
        why = does_not_pay(model, rows * longest, steps, device)
    graphs = asked == "graphs" or (asked == "auto" and device.type == "cuda")
    layers = None
    if why is None:
        layers, why = _tried(model, optimizer, graphs, encoded, pad_id)
    if layers is not None:
        name = "graphs" if graphs else "compiled"
        return CompileChoice(asked, name, f"widths are padded to multiples of {BUCKET}"), layers
    assert why is not None
    if asked != "auto":
        raise BadInput(f"train.compile={asked}: {why}; allowed are auto, never")
    return CompileChoice(asked, "eager", why), None


def obstacle(
    config: RunConfig, model: nn.Module, optimizer: Any, task: Task, device: torch.device
) -> str | None:
    """Say what keeps a run from compiled layers, None if nothing is known to."""
    asked, name = config.train.compile, config.method["name"]
    if not isinstance(optimizer, ZeroOrderOptimizer):
        return f"method={name} computes gradients, and compiled layers are for forwards alone"
    if hasattr(optimizer, "settle") and any(each.inputs == 0 for each in optimizer.tuned):
        return (
            f"{type(wrapped(model)).__name__} has weights W that it uses as x W, and compiled "
            "layers have bases for nn.Linear alone"
        )
    if config.method.get("execution") == "batched":
        return "method.execution=batched runs the layers for two points at once"
    if config.model.offload != "none":
        return f"model.offload={config.model.offload} moves the layers' weights"
    if spread(wrapped(model)):
        return "model.device_map=auto spreads the model over devices"
    if config.train.objective == "metric" and task.kind == "generation":
        return f"train.objective=metric of task={task.name} generates text, each token a shape"
    if config.train.packing == "always":
        return "train.packing=always gives every batch a shape of its own"
    if asked == "graphs" and device.type != "cuda":
        return f"CUDA graphs need device=cuda, this run has {device.type}"
    return None


def many_shapes(config: RunConfig, task: Task, encoded: list[Encoded]) -> str | None:
    """Say why batches would differ in their number of rows, None if they do not."""
    counts = sorted({len(example.ids) for example in encoded})
    scored = task.loss == "classification" or config.train.objective == "metric"
    if not scored or len(counts) == 1:
        return None
    return (
        f"examples of task={task.name} have {counts[0]} to {counts[-1]} options, so batches differ "
        "in their number of rows, and each number is a shape"
    )


def does_not_pay(model: nn.Module, tokens: int, steps: int, device: torch.device) -> str | None:
    """Say why compiling would not pay by the rule above, None if it would."""
    if device.type != "cuda":
        return f"on {device.type} packed batches save more than compiled layers"
    if steps < STEPS:
        return f"{steps} steps do not pay for compiling, {STEPS} may"
    try:
        layer = decoder_layers(model)[1][0]
    except ValueError as error:
        return str(error)
    size, dtype = sum(p.numel() for p in layer.parameters()), next(layer.parameters()).dtype
    bound = int(LAUNCHES * LAUNCH * RATE.get(dtype, FLOAT32_RATE) / (2 * size))
    if tokens > bound:
        return f"its longest batch has {tokens} tokens; launches take longer below {bound}"
    return None


def _tried(
    model: nn.Module,
    optimizer: ZeroOrderOptimizer,
    graphs: bool,
    encoded: list[Encoded],
    pad_id: int,
) -> tuple[CompiledLayers | None, str | None]:
    """Compile the layers and try them; without them if they fail or answer otherwise."""
    try:
        layers = CompiledLayers(model, graphs)
    except ValueError as error:
        return None, str(error)
    parts = short_rows(encoded)
    rows = collate_rows(
        parts, [1] * len(parts), pad_id, next(model.parameters()).device, multiple=BUCKET
    )
    with torch.no_grad():
        try:
            with layers, Uses(optimizer.tuned):  # eager still, and watched
                wanted = label_logits(model, rows)
        except ValueError as error:
            layers.remove()
            return None, str(error)
        try:
            with layers:
                found = label_logits(model, rows).clone()
        except Exception as error:  # torch.compile's are of many kinds, a missing compiler's too
            layers.remove()
            told = " ".join(str(error).split())[:300]
            return None, f"{type(model).__name__} cannot be compiled ({told})"
    differ = far_apart(found, wanted)
    if differ is None:
        return layers, None
    layers.remove()
    return None, f"{type(model).__name__} answers otherwise compiled: {differ}"
