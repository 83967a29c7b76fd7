"""Cost of a step in units of two plain forwards, and its memory: ``make bench``.

The unit is the plain forward of the same run: the same batch, eval mode, no_grad, logits at the
label position only, ordinary weights. Forwards and steps are timed in turn, round by round, and
ratios are medians over rounds, so that a machine that slows down slows both.

    python -m experiments.bench                        # ~60M-parameter Qwen3, fp32, 16x64, 16x256
    python -m experiments.bench --device cuda          # Qwen3-0.6B and 1.7B shapes

Weights are random: speed and memory do not depend on their values. The forward of zo_act has its
branches in, so its unit is a little longer; dominant_layer tunes decoder layer 1.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from agzo import AGZO, ZeroOrderOptimizer
from agzo.perturb import Closure
from agzo.rng import Noise
from baselines import LOZO, LOZOM, SGD, DominantLayer, MeZO, ZOAct
from experiments.machine import PeakMemory, about, versions
from experiments.textbook import TextbookAGZO, TextbookLOZO, TextbookMeZO

SHAPES: dict[str, dict[str, Any]] = {
    "pocket": {
        "vocab_size": 1500,
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
    },
    "60m": {
        "vocab_size": 32_768,
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 14,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
    },
    "0.6b": {
        "vocab_size": 151_936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "1.7b": {
        "vocab_size": 151_936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
}
LR, EPS = 1e-7, 1e-3
METHODS: dict[str, Callable[[nn.Module], Any]] = {
    "agzo side_branch": lambda model: AGZO(model, LR, EPS),
    "agzo in_place": lambda model: AGZO(model, LR, EPS, execution="in_place"),
    "agzo textbook": lambda model: TextbookAGZO(model, LR, EPS),
    "lozo side_branch": lambda model: LOZO(model, LR, EPS),
    "lozo in_place": lambda model: LOZO(model, LR, EPS, execution="in_place"),
    "lozo textbook": lambda model: TextbookLOZO(model, LR, EPS),
    "mezo side_branch": lambda model: MeZO(model, LR, EPS),
    "mezo in_place": lambda model: MeZO(model, LR, EPS, execution="in_place"),
    "mezo textbook": lambda model: TextbookMeZO(model, LR, EPS),
    "lozo_m side_branch": lambda model: LOZOM(model, LR, EPS, large_state=True),
    "zo_act": lambda model: ZOAct(model, LR, EPS, calibration_batches=1),
    "dominant_layer": lambda model: DominantLayer(model, LR, EPS, layer=1, scan_batches=0),
    "sgd backprop": lambda model: SGD(model, LR),
}


@dataclass(frozen=True)
class Row:
    """One method at one shape and batch. Times in seconds, memory in GiB, ratios without unit."""

    shape: str
    batch: str
    dtype: str
    method: str
    ratio: float
    steps_per_second: float
    two_forwards: float  # seconds
    forwards: float | None
    basis: float | None
    perturb: float | None
    update: float | None
    peak_gib: float
    peak_of_forward: float


class Clock:
    """Wall-clock of device work: waits for the device before and after."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, work: Callable[[], Any]) -> float:
        """Return the seconds that `work` takes."""
        self._wait()
        start = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def peak_gib(device: torch.device, work: Callable[[], Any]) -> float:
    """Return the peak memory while `work` runs, the weights included."""
    gc.collect()
    peak = PeakMemory(device)
    work()
    return peak.gib()


def build(shape: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Return a random Qwen3 of the named shape with tied embeddings."""
    torch.manual_seed(0)
    config = Qwen3Config(**SHAPES[shape], tie_word_embeddings=True, max_position_embeddings=2048)
    config.dtype = dtype
    model = cast(nn.Module, Qwen3ForCausalLM(config))  # its own .to confuses the type checker
    return model.to(device, dtype).eval()


def make_closure(model: nn.Module, batch: int, length: int) -> tuple[Callable[[], Tensor], Tensor]:
    """Return a closure with the loss at each row's last position, and its token mask."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    vocabulary = next(model.parameters()).shape[0]  # the embedding comes first
    ids = torch.randint(0, vocabulary, (batch, length), generator=generator).to(device)
    targets = torch.randint(0, vocabulary, (batch,), generator=generator).to(device)
    mask = torch.ones(batch, length, dtype=torch.bool, device=device)
    last = torch.tensor([length - 1], device=device)

    def closure() -> Tensor:
        output = model(input_ids=ids, logits_to_keep=last, use_cache=False)
        return F.cross_entropy(output.logits[:, 0].float(), targets)

    return closure, mask


@torch.no_grad()
def split(
    optimizer: ZeroOrderOptimizer, closure: Closure, mask: Tensor, clock: Clock
) -> tuple[float, float, float]:
    """Time what one step adds to its forwards: (basis, perturbation, update), in seconds."""
    noise = Noise(optimizer.seed, 0)
    capture = optimizer._look.capture(noise, mask)
    forward = clock(closure)

    def captured() -> None:
        with capture or nullcontext():
            closure()

    basis = clock(captured) - forward if capture else 0.0
    directions = optimizer._directions(noise)
    evaluations = 1 if optimizer.estimator == "one_sided" else 2
    evaluate = optimizer._execution.evaluate
    perturb = evaluations * (clock(lambda: evaluate(closure, directions, EPS)) - forward)
    zero = torch.zeros((), device=optimizer.tuned[0].parameter.device)
    update = clock(lambda: optimizer._move([(directions, zero)], noise))
    return basis, perturb, update


def measure(
    shape: str,
    dtype: torch.dtype,
    device: torch.device,
    batch: int,
    length: int,
    rounds: int,
    methods: Sequence[str],
) -> list[Row]:
    """Measure methods at one shape and batch."""
    rows = []
    clock = Clock(device)
    for name in methods:
        gc.collect()
        model = build(shape, dtype, device)
        closure, mask = make_closure(model, batch, length)
        optimizer = METHODS[name](model)
        if getattr(optimizer, "studies", 0):
            optimizer.study([(closure, mask)])

        def two_forwards(closure: Callable[[], Tensor] = closure) -> None:
            with torch.no_grad():
                closure()
                closure()

        def step(optimizer: Any = optimizer, closure: Any = closure, mask: Any = mask) -> None:
            optimizer.step(closure, mask)

        two_forwards()
        step()  # warm-up and the one-off check
        of_forward = peak_gib(device, two_forwards)
        of_step = peak_gib(device, step)
        forwards, steps, parts = [], [], []
        for _ in range(rounds):
            forwards.append(clock(two_forwards))
            steps.append(clock(step))
            if isinstance(optimizer, ZeroOrderOptimizer):
                parts.append(split(optimizer, closure, mask, clock))
        unit = statistics.median(forwards)
        shares = [statistics.median(column) / unit for column in zip(*parts, strict=True)]
        rows.append(
            Row(
                shape=shape,
                batch=f"{batch}x{length}",
                dtype=str(dtype).removeprefix("torch."),
                method=name,
                ratio=statistics.median(s / f for s, f in zip(steps, forwards, strict=True)),
                steps_per_second=1 / statistics.median(steps),
                two_forwards=unit,
                forwards=optimizer.forwards_of_step(0) / 2 if shares else None,
                basis=shares[0] if shares else None,
                perturb=shares[1] if shares else None,
                update=shares[2] if shares else None,
                peak_gib=of_step,
                peak_of_forward=of_step / of_forward,
            )
        )
        print(text(rows[-1]), flush=True)
        del model, optimizer, closure, two_forwards, step
    return rows


HEADER = (
    f"{'method':18} {'step':>6} {'steps/s':>8} {'forwards':>9} {'basis':>6} {'perturb':>8} "
    f"{'update':>7} {'peak GiB':>9} {'/forward':>9}   (in units of two plain forwards)"
)


def text(row: Row) -> str:
    """Return one line of the table."""

    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    return (
        f"{row.method:18} {row.ratio:6.2f} {row.steps_per_second:8.2f} {share(row.forwards):>9} "
        f"{share(row.basis):>6} "
        f"{share(row.perturb):>8} {share(row.update):>7} {row.peak_gib:9.3f} "
        f"{row.peak_of_forward:9.2f}"
    )


def write(
    path: Path, command: str, args: argparse.Namespace, device: torch.device, rows: Sequence[Any]
) -> None:
    """Write a benchmark's rows (dataclasses) and what they stand on as JSON."""
    record = {
        "command": command,
        "arguments": {key: str(value) for key, value in vars(args).items() if key != "out"},
        "machine": about(device),
        "versions": versions(),
        "rows": [asdict(row) for row in rows],
    }
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    temporary.replace(path)
    print(f"\nwritten: {path}")


def main() -> None:
    """Run the benchmark and write its rows as JSON if asked."""
    parser = argparse.ArgumentParser(description="step cost in units of two plain forwards")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shape", nargs="*", choices=list(SHAPES))
    parser.add_argument("--methods", nargs="*", choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, nargs="*", default=[64, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0: torch's default")
    parser.add_argument("--out", type=Path, help="write the rows here as JSON")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no CUDA device here; allowed is cpu")
    if min(args.rounds, args.batch, *args.length) < 1:
        parser.error("--rounds, --batch and --length: allowed are whole numbers >= 1")
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    shapes = args.shape or (["60m"] if args.device == "cpu" else ["0.6b", "1.7b"])
    rows: list[Row] = []
    for shape in shapes:
        for length in args.length:
            print(
                f"\nQwen3 {shape}, {args.dtype}, batch {args.batch} x {length}, {device.type}, "
                f"{torch.get_num_threads()} threads, {args.rounds} rounds\n{HEADER}"
            )
            dtype = getattr(torch, args.dtype)
            rows += measure(
                shape, dtype, device, args.batch, length, args.rounds, args.methods or list(METHODS)
            )
    if args.out:
        write(args.out, "python -m experiments.bench", args, device, rows)


if __name__ == "__main__":
    main()
