"""Throughput of evaluation, in examples per second against one row at a time: ``make bench``.

The kinds of tasks that the protocol has, in random token ids: two options of one token (SST-2, RTE,
BoolQ ...), three of a few tokens, two sentences (COPA), twenty sentences (ReCoRD) and generation
(SQuAD). One at a time is how published code scores: each option alone behind its whole prompt, each
prompt generated alone. Both are timed in turn, round by round; the scores' difference is shown.

    python -m experiments.bench.evaluation                  # ~60M-parameter Qwen3, fp32
    python -m experiments.bench.evaluation --shape pocket --examples 1000
    python -m experiments.bench.evaluation --tasks sst2,rte,copa model=pocket data=pocket

The last form is another measurement: real tasks on a real model, against the forwards alone (see
`experiments.bench.evaluation_tasks`); the words behind it are a run's, model=... data=... .
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import nn

from experiments.bench.arguments import device_of, out_of
from experiments.bench.measure import Clock
from experiments.bench.record import Record
from experiments.config import lists
from experiments.config.paths import user_path
from experiments.data.batches import longest_first
from experiments.data.encode import Encoded, Encoder
from experiments.evaluation.generate import generate
from experiments.evaluation.scoring import option_scores
from experiments.models.shapes import DTYPES, SHAPES, build
from experiments.records import machine
from experiments.tasks import TASKS

NEW_TOKENS = 16
DEFAULT = {"cpu": "60m", "cuda": "0.6b"}  # device -> shape


@dataclass(frozen=True)
class Kind:
    """Lengths in tokens of a kind of task: prompts between two bounds, options, their number."""

    name: str
    prompt: tuple[int, int]
    options: int
    option: tuple[int, int]  # 0: generation


KINDS = (
    Kind("2 options of 1 token", (20, 100), 2, (1, 1)),
    Kind("3 options of 2 tokens", (40, 120), 3, (2, 2)),
    Kind("2 sentences", (8, 16), 2, (5, 12)),
    Kind("20 sentences", (150, 250), 20, (10, 30)),
    Kind("generation", (80, 160), 1, (0, 0)),
)


@dataclass(frozen=True)
class Row:
    """One kind of task on one shape. Examples per second, and their ratio."""

    shape: str
    dtype: str
    kind: str
    examples: int
    per_second: float
    one_by_one: float
    ratio: float
    largest_difference: float | None  # of the scores


def examples(kind: Kind, count: int, vocabulary: int) -> list[Encoded]:
    """Return examples of random ids."""
    rng = random.Random(0)

    def ids(bounds: tuple[int, int]) -> list[int]:
        return [rng.randrange(vocabulary) for _ in range(rng.randint(*bounds))]

    made = []
    for _ in range(count):
        prompt, options = ids(kind.prompt), [ids(kind.option) for _ in range(kind.options)]
        rows = tuple(prompt + option for option in options)
        made.append(Encoded(rows, tuple(map(len, options)), 0, False))
    return made


def measure(
    shape: str, model: nn.Module, kind: Kind, count: int, batch_size: int, rounds: int
) -> Row:
    """Time a kind of task in batches and one at a time (a tenth of the examples, for time)."""
    device = next(model.parameters()).device
    clock = Clock(device)
    asked = examples(kind, count, next(model.parameters()).shape[0])
    few = asked[: max(2, count // 10)]
    # No text is involved: what a row says never holds a newline, so all rows run to the end.
    silent = SimpleNamespace(eos_token_id=None, decode=lambda ids, skip_special_tokens: "")
    encoder = cast(Encoder, SimpleNamespace(pad_id=0, tokenizer=silent, decode=lambda ids: ""))

    def fast(some: list[Encoded]) -> Any:
        if kind.option[1]:
            return option_scores(model, some, 0, batch_size, device)
        rows = [list(example.ids[0]) for example in some]
        for chosen in longest_first(list(map(len, rows)), batch_size):
            generate(model, encoder, [rows[i] for i in chosen], NEW_TOKENS, device)
        return None

    def single(some: list[Encoded]) -> Any:
        if kind.option[1]:
            return option_scores(model, some, 0, 1, device, share=False)
        for example in some:
            generate(model, encoder, [list(example.ids[0])], NEW_TOKENS, device)
        return None

    together, alone = fast(few), single(few)
    difference = None
    if together is not None:
        pairs = zip(together, alone, strict=True)
        difference = max(float((one - other).abs().max()) for one, other in pairs)
    times = [(clock(lambda: fast(asked)), clock(lambda: single(few))) for _ in range(rounds)]
    rates = [(len(asked) / a, len(few) / b) for a, b in times]
    return Row(
        shape=shape,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        kind=kind.name,
        examples=count,
        per_second=statistics.median(a for a, _ in rates),
        one_by_one=statistics.median(b for _, b in rates),
        ratio=statistics.median(a / b for a, b in rates),
        largest_difference=difference,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and write its rows as JSON if asked."""
    machine.keep_freed_memory()
    try:
        words = _parser().parse_intermixed_args(arguments)
        record = run_tasks(words) if words.tasks else run(words)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if record.path is not None:
        print(f"written: {record.path}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench.evaluation",
        description="examples per second, against one at a time",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--shape", help=f"a list, of {', '.join(SHAPES)}")
    parser.add_argument("--dtype", help=f"a list, of {', '.join(DTYPES)}; default float32")
    parser.add_argument("--examples", default="128")
    parser.add_argument("--batch", default="32", help="rows of a forward pass")
    parser.add_argument("--rounds", default="3")
    parser.add_argument("--tasks", help="real tasks in the place of --shape and --dtype: a list")
    parser.add_argument("overrides", nargs="*", help="of --tasks: a run's model=... data=... ...")
    parser.add_argument("--threads", help="torch threads (default: torch's)")
    parser.add_argument("--out", type=user_path, help="write the rows here as JSON")
    return parser


def run(words: argparse.Namespace) -> Record:
    """Measure every kind of task on every shape."""
    if words.overrides:
        raise ValueError(f"{' '.join(words.overrides)}: allowed are words of a run with --tasks")
    device = device_of(words.device)
    if words.threads is not None:
        torch.set_num_threads(lists.count("--threads", words.threads))
    count = lists.count("--examples", words.examples)
    batch, rounds = lists.count("--batch", words.batch), lists.count("--rounds", words.rounds)
    shapes = lists.words("--shape", words.shape or DEFAULT[words.device], SHAPES)
    dtypes = lists.words("--dtype", words.dtype or "float32", DTYPES)
    record = _record(words, device, len(shapes) * len(dtypes) * len(KINDS))
    for shape, dtype in product(shapes, dtypes):
        model = build(shape, getattr(torch, dtype), device)
        print(
            f"\nevaluation, Qwen3 {shape}, {dtype}, {device.type}, "
            f"{torch.get_num_threads()} threads, {rounds} rounds of {count} examples\n"
            f"{'kind':22} {'examples/s':>11} {'one by one':>11} {'ratio':>6} {'difference':>11}"
        )
        for kind in KINDS:
            row = measure(shape, model, kind, count, batch, rounds)
            record.add(row)
            gap = "-" if row.largest_difference is None else f"{row.largest_difference:.1e}"
            print(
                f"{row.kind:22} {row.per_second:11.1f} {row.one_by_one:11.1f} {row.ratio:6.2f} "
                f"{gap:>11}",
                flush=True,
            )
        del model
    return record


def run_tasks(words: argparse.Namespace) -> Record:
    """Measure real tasks on the model of a run's words."""
    from experiments.bench import evaluation_tasks as real  # needs what a run needs

    for key in ("shape", "dtype"):
        if getattr(words, key) is not None:
            raise ValueError(f"--{key}={getattr(words, key)}: not allowed with --tasks")
    device = device_of(words.device)
    if words.threads is not None:
        torch.set_num_threads(lists.count("--threads", words.threads))
    tasks = lists.words("--tasks", words.tasks, TASKS)
    own = [f"device={device.type}"]
    own.append(f"train.num_eval={lists.count('--examples', words.examples)}")
    own.append(f"train.eval_batch_size={lists.count('--batch', words.batch)}")
    rounds = lists.count("--rounds", words.rounds)
    record = _record(words, device, len(tasks))
    print(
        f"\nevaluation, {' '.join(words.overrides)}, {device.type}, {torch.get_num_threads()} "
        f"threads, {rounds} rounds\n{real.HEADER}"
    )
    for task in tasks:
        row = real.measure(task, [*own, *words.overrides], rounds)
        record.add(row)
        print(real.line(row), flush=True)
    return record


def _record(words: argparse.Namespace, device: torch.device, planned: int) -> Record:
    given = {key: str(value) for key, value in vars(words).items() if key != "out" and value}
    if words.overrides:
        given["overrides"] = " ".join(words.overrides)
    out = None if words.out is None else out_of(words.out)
    return Record(out, "python -m experiments.bench.evaluation", given, device, planned)


if __name__ == "__main__":
    raise SystemExit(main())
