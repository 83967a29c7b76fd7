"""Peak memory of the methods against sequence length and batch size, for Figures 3 and 4.

    python -m experiments.probe memory --out FOLDER                            # Figure 3, counted
    python -m experiments.probe memory --out FOLDER --shape pangu-1b --dtype bfloat16 \\
        --lengths 128,256,512,768,1024,1536,2048 --batches 1,2,4,8,16,32,64    # Figure 4
    python -m experiments.probe memory --out FOLDER --kind cuda                # on a GPU
    python -m experiments.probe memory --out FOLDER --kind resident --shape 60m \\
        --lengths 64,128,256 --batches 1,4,8,16 --length 64                    # on a CPU

Kinds: `counted`, live tensor bytes at the true shape, on no device (see `memory_count`); `cuda`,
what torch's allocator handed out and reserved; `resident`, the resident set of a process. What a
point and its two series are is said in `memory_point`.

Measured on a device, each point is a process of its own; one that ran out of memory is a row that
says so.
"""

import argparse
import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from experiments.config.lists import whole_numbers, words
from experiments.models.shapes import SHAPES, parameters
from experiments.probe.memory_point import (
    ANSWER,
    ATTENTION,
    KINDS,
    METHODS,
    PANGU,
    SERIES,
    Point,
    build,
    count,
    measure,
)
from experiments.records import tidy

HELP = "peak memory against sequence length and batch size (Figures 3 and 4)"
COLUMNS = (
    *Point.__dataclass_fields__,
    *("status", "peak_gib", "reserved_gib", "baseline_gib", "message"),
)
# glibc: one arena, blocks from 64 KiB on straight from the system and straight back, so that the
# resident set follows the live tensors and not the allocator's habits.
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "OMP_NUM_THREADS": "1",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the probe's options."""
    parser.add_argument("--kind", choices=list(KINDS), default="counted")
    parser.add_argument("--shape", choices=[*SHAPES, PANGU], default="0.6b")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--batch", type=int, default=4, help="of the points over lengths")
    parser.add_argument("--lengths", default="128,256,384,512,768,1024")
    parser.add_argument("--length", type=int, default=256, help="of the points over batches")
    parser.add_argument("--batches", default="1,2,4,8,16,32")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--series", default=",".join(SERIES))
    parser.add_argument(
        "--attention", choices=ATTENTION, default="fused", help="of --kind=counted: the kernel"
    )
    parser.add_argument(
        "--largest", type=int, default=0, help="of --kind=counted: tell the N largest at the peak"
    )


def run(
    options: argparse.Namespace, say: Callable[[str], None]
) -> tuple[dict[str, Any], tidy.Tables]:
    """Measure every point that has no file yet, and return the table."""
    if options.overrides:
        raise ValueError(
            f"{' '.join(options.overrides)}: the memory probe looks at random weights of a shape, "
            "not at a run; allowed are its own options (--shape, --dtype, ...)"
        )
    points = sweep(options)
    device = torch.device(KINDS[options.kind])
    if options.kind == "cuda" and not torch.cuda.is_available():
        raise ValueError("--kind=cuda: no CUDA device is here; allowed are counted and resident")
    rows, failed = [], []
    for number, point in enumerate(points, 1):
        at = f"{number}/{len(points)} {point.name}"
        try:
            row = options.kept(point.name, functools.partial(look, point))
        except PointFailed as error:
            failed.append(f"{point.name}: {error}")
            say(f"{at}: failed ({error})")
            continue
        rows.append({column: row[column] for column in COLUMNS})
        peak = "" if row["peak_gib"] is None else f" {row['peak_gib']:.3f} GiB"
        say(f"{at}: {row['status']}{peak} {row['message']}".rstrip())
        if options.largest and point.kind == "counted":
            for held in count(point, device, options.largest)[1]:
                shape = "x".join(map(str, held.shape))
                say(f"  {held.size / 2**20:9.1f} MiB {held.dtype} {shape} by {held.made_by}")
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(points)} points failed, {failed[0]}; the others are kept, the "
            "same command tries again"
        )
    where = torch.device("cpu") if options.kind == "counted" else device
    model = build(options.shape, options.dtype, torch.device("meta"))
    about = tidy.about("memory", where) | {
        "answer_tokens": ANSWER,
        "parameters": parameters(model),
    }
    return about, {"memory": rows}


def sweep(options: argparse.Namespace) -> list[Point]:
    """Return the points of the command line: lengths at one batch, then batches at one length."""
    lengths = whole_numbers("--lengths", options.lengths, least=1)
    batches = whole_numbers("--batches", options.batches, least=1)
    if options.batch < 1 or min(lengths[0], options.length) <= ANSWER:
        raise ValueError(
            f"--batch={options.batch}, --lengths={options.lengths}, --length={options.length}: "
            f"allowed are batches from 1 on and lengths above the answer's {ANSWER} tokens"
        )
    at = [(options.batch, length) for length in lengths]
    at += [(batch, options.length) for batch in batches]
    return [
        Point(
            options.kind, options.shape, options.dtype,
            options.attention if options.kind == "counted" else "torch's choice",
            series, method, batch, length,
        )
        for batch, length in dict.fromkeys(at)
        for series in words("--series", options.series, SERIES)
        for method in words("--methods", options.methods, METHODS)
    ]  # fmt: skip


class PointFailed(RuntimeError):
    """A point that has no value, for a reason that is no finding about memory."""


def look(point: Point) -> dict[str, Any]:
    """Measure a point, here where it is counted and in a process of its own elsewhere."""
    return asdict(point) | (measure(point) if point.kind == "counted" else child(point))


def child(point: Point) -> dict[str, Any]:
    """Measure a point in a process of its own; running out of memory is a finding."""
    command = [sys.executable, "-m", "experiments.probe.memory_point", json.dumps(asdict(point))]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | ALLOCATOR)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if done.returncode != -signal.SIGKILL:  # that is Linux, when the machine's memory is full
        last = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise PointFailed(last[-1])
    return {
        "status": "out_of_memory",
        "peak_gib": None,
        "reserved_gib": None,
        "baseline_gib": None,
        "message": "killed by the system",
    }
