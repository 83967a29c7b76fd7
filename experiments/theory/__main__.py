"""Command line: measure every claim, print the table, exit with 1 if a verdict is not as it should.

python -m experiments.theory [--out FOLDER] [--confidence 0.999] [--precision 0.03] [--seed 0]
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.config.paths import user_path
from experiments.records import machine, tidy
from experiments.theory import page
from experiments.theory.claims import CLAIMS
from experiments.theory.evidence import PILOT, Context, Row, collect, level


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.theory", description=__doc__)
    parser.add_argument("--out", type=user_path, help="folder for theory.json and theory.md")
    parser.add_argument("--confidence", type=float, default=0.999, help="that all verdicts hold")
    parser.add_argument(
        "--precision", type=float, default=Context.precision, help="half width for a cosine, share"
    )
    parser.add_argument("--seed", type=int, default=0, help="of problems and noise")
    options = parser.parse_args(arguments)
    if not 0.5 <= options.confidence < 1.0:
        parser.error(f"--confidence={options.confidence}: allowed are 0.5 to below 1")
    if not 0.001 <= options.precision <= 0.1:
        parser.error(f"--precision={options.precision}: allowed are 0.001 to 0.1")
    torch.set_num_threads(1)  # small products: more threads cost more than they bring
    started, code = time.perf_counter(), machine.git_state()
    context = Context(
        level(options.confidence, CLAIMS), seed=options.seed, precision=options.precision
    )
    found = measure(context, lambda name: print(f"measuring {name}", file=sys.stderr))
    rows = [row for each in found.values() for row in each]
    about = {
        "confidence": options.confidence,
        "seed": options.seed,
        "intervals": context.intervals,
        "level": context.level,
        "z": context.z,
        "pilot": PILOT,
        "precision": context.precision,
        "coarse": context.precision * context.coarse,
        "cap": context.cap,
        "seconds": round(time.perf_counter() - started, 1),
        **code,
        "versions": machine.versions(),
        "machine": machine.about(torch.device("cpu")),
    }
    print(page.text(found))
    print(page.summary(rows))
    if options.out is not None:
        write(options.out, found, about)
        print(f"wrote {options.out / 'theory.json'} and {options.out / 'theory.md'}")
    return 0 if all(row.good for row in rows) else 1


def measure(context: Context, say: Callable[[str], None]) -> dict[str, list[Row]]:
    """Return the rows of every claim, by the claim's name."""
    found = {}
    for claim in CLAIMS:
        say(claim.measure.__name__)
        found[claim.measure.__name__] = collect(claim, context)
    return found


def write(folder: Path, found: Mapping[str, Sequence[Row]], about: Mapping[str, Any]) -> None:
    """Write theory.json and theory.md, each whole or not at all."""
    rows = [{"claim": name, **row.record()} for name, each in found.items() for row in each]
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"about": dict(about), "rows": rows}, indent=1) + "\n"
    tidy.replace(folder / "theory.json", text)
    tidy.replace(folder / "theory.md", page.markdown(found, about))


if __name__ == "__main__":
    raise SystemExit(main())
