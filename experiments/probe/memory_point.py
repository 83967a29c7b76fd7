"""Peak memory of one method at one batch: a process of its own, which `memory` starts.

    python -m experiments.probe.memory_point '{"kind": "resident", "method": "agzo", ...}'

prints one JSON object. The model is random weights of the true shape (memory does not depend on
their values), and so is the input: `batch` rows of `length` tokens without padding, whose last
`ANSWER` tokens are the answer (DROP's are short). A point is two steps in a row, the first with its
one-off check that the loss is a function; the peak holds the weights and is that of both.

Two series:

* `published`: as the published code of the methods runs. Logits of all positions, a shifted copy of
  them, log-softmax over the vocabulary; key/value caches kept, as a model does by default; for the
  zeroth-order methods the textbook's in-place steps.
* `ours`: this library's optimizers, logits at the label positions only, no caches, and the runs'
  own attention, for which CUDA has a fused kernel in float32 as well.

The baseline SGD is this repository's in both series, with activation checkpointing around every
decoder layer where the method says so; inference is the forward alone.
"""

import gc
import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from agzo import AGZO
from baselines import LOZO, SGD, MeZO
from experiments.bench.losses import Closure, full_logits, label_logits, random_ids
from experiments.bench.methods import EPS, LR
from experiments.bench.textbook import TextbookAGZO, TextbookLOZO, TextbookMeZO
from experiments.models import attention, shapes
from experiments.probe.memory_count import Held, LiveBytes, fused_attention
from experiments.records.machine import GIB, PeakMemory, first_line, out_of_memory

ANSWER = 8  # tokens of an answer, whose logits the loss needs
PANGU = "pangu-1b"
PANGU_SHAPE: dict[str, Any] = {  # openPangu-Embedded-1B as a Llama; whether it ties is not known
    "vocab_size": 153_376,
    "hidden_size": 1536,
    "intermediate_size": 6144,
    "num_hidden_layers": 26,
    "num_attention_heads": 12,
    "num_key_value_heads": 6,
    "head_dim": 128,
    "attention_bias": True,
}
KINDS = {"counted": "meta", "resident": "cpu", "cuda": "cuda"}  # kind -> device
METHODS = ("inference", "sgd", "sgd_checkpointed", "agzo", "mezo", "lozo")
SERIES = ("published", "ours")
ATTENTION = ("fused", "math")
OPTIMIZERS: dict[tuple[str, str], Callable[[nn.Module], Any]] = {
    ("published", "agzo"): lambda model: TextbookAGZO(model, LR, EPS),
    ("published", "mezo"): lambda model: TextbookMeZO(model, LR, EPS),
    ("published", "lozo"): lambda model: TextbookLOZO(model, LR, EPS),
    ("ours", "agzo"): lambda model: AGZO(model, LR, EPS),
    ("ours", "mezo"): lambda model: MeZO(model, LR, EPS),
    ("ours", "lozo"): lambda model: LOZO(model, LR, EPS),
}


@dataclass(frozen=True)
class Point:
    """What is measured. `attention` (fused or math) is for `counted`; elsewhere torch chooses."""

    kind: str
    shape: str
    dtype: str
    attention: str
    series: str
    method: str
    batch: int
    length: int

    @property
    def name(self) -> str:
        """Name it within a sweep."""
        return f"{self.series}-{self.method}-{self.batch}x{self.length}"


def build(shape: str, dtype: str, device: torch.device) -> nn.Module:
    """Return a random model of the named shape with tied embeddings, made where it is to be."""
    if shape != PANGU:
        return shapes.build(shape, getattr(torch, dtype), device)
    with shapes.made_on(getattr(torch, dtype), device):
        llama = LlamaConfig(**PANGU_SHAPE, tie_word_embeddings=True)
        return cast(nn.Module, LlamaForCausalLM(llama)).eval()


def built(point: Point, device: torch.device) -> nn.Module:
    """Build the model of a point, with the attention of its series."""
    model = build(point.shape, point.dtype, device)
    if point.series == "ours":
        attention.install(model)
    return model


def loss(point: Point, model: nn.Module, ids: Tensor) -> Closure:
    """Return the closure of one batch."""
    logits = full_logits if point.series == "published" else label_logits
    return logits(model, ids, ANSWER)


def steps(point: Point, model: nn.Module, ids: Tensor) -> None:
    """Do what is measured: two steps (or two forwards)."""
    closure = loss(point, model, ids)
    if point.method == "inference":
        with torch.no_grad():
            for _ in range(2):
                closure()
        return
    if point.method in ("sgd", "sgd_checkpointed"):
        if point.method == "sgd_checkpointed":
            # Only a model that trains checkpoints; these shapes have no dropout.
            checkpointed = cast(Any, model.train())
            checkpointed.config.use_cache = False  # as transformers would decide, with a warning
            checkpointed.gradient_checkpointing_enable(
                {"use_reentrant": False, "preserve_rng_state": False}
            )
        optimizer = SGD(model, LR)
    else:
        optimizer = OPTIMIZERS[point.series, point.method](model)
    mask = torch.ones_like(ids, dtype=torch.bool)
    for _ in range(2):
        optimizer.step(closure, mask)


def count(point: Point, device: torch.device, largest: int = 0) -> tuple[int, list[Held]]:
    """Return the peak of live tensor bytes on a device, and the largest storages at the peak."""
    model = built(point, device)
    ids = random_ids(model, point.batch, point.length, device)
    with ExitStack() as stack:
        if point.attention == "fused":
            stack.enter_context(fused_attention())
        held = [*model.parameters(), *model.buffers(), ids]
        live = stack.enter_context(LiveBytes(device.type, held, bool(largest)))
        steps(point, model, ids)
    return live.peak, live.largest(largest)


def measure(point: Point) -> dict[str, Any]:
    """Measure one point; memory in GiB.

    `peak_gib` is for `counted` the peak of live tensor bytes, for `cuda` that of the bytes that
    torch's allocator handed out (`reserved_gib`: that it reserved), for `resident` that of the
    process's resident set, of which `baseline_gib` was there before the model: Python, torch and
    transformers after a first product.
    """
    device = torch.device(KINDS[point.kind])
    empty = {"status": "ok", "reserved_gib": None, "baseline_gib": None, "message": ""}
    if point.kind == "counted":
        return empty | {"peak_gib": count(point, device)[0] / GIB}
    if point.kind == "cuda" and not torch.cuda.is_available():
        raise ValueError("--kind=cuda: no CUDA device is here; allowed are counted and resident")
    try:
        baseline = _warm_up() if point.kind == "resident" else None
        model = built(point, device)
        ids = random_ids(model, point.batch, point.length, device)
        gc.collect()
        peak = PeakMemory(device)  # from here on; the weights are there and stay
        steps(point, model, ids)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return empty | {"status": "out_of_memory", "peak_gib": None, "message": first_line(error)}
    reserved = torch.cuda.max_memory_reserved(device) / GIB if point.kind == "cuda" else None
    return empty | {"peak_gib": peak.gib(), "reserved_gib": reserved, "baseline_gib": baseline}


def _warm_up() -> float:
    """Load the kernels, and return the resident set before any model, in GiB."""
    tiny = Point("resident", "pocket", "float32", "fused", "ours", "sgd", 1, 2 * ANSWER)
    model = build(tiny.shape, tiny.dtype, torch.device("cpu"))
    steps(tiny, model, random_ids(model, tiny.batch, tiny.length, torch.device("cpu")))
    del model
    gc.collect()
    return PeakMemory(torch.device("cpu")).gib()  # freed memory given back, as before the steps


def main() -> None:
    """Measure the point of the command line and print what was found."""
    torch.set_num_threads(1)
    point = Point(**json.loads(sys.argv[1]))
    print(json.dumps(asdict(point) | measure(point)))


if __name__ == "__main__":
    main()
