"""Run the benchmark: ``python -m experiments.bench``, ``make bench``.

Each row is printed and written as soon as it is there. With ``--out FILE.json`` a run that was
stopped goes on where it was, at the same commit, on the same machine, with as many rounds: the rows
lie in FILE/parts beside it. Remove that folder to measure again. Each case has a process of its
own, so its memory does not depend on the cases before it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from experiments.bench.apart import measure_apart
from experiments.bench.arguments import Options, parse
from experiments.bench.record import Record
from experiments.bench.rows import Case, Row
from experiments.bench.table import HEADER, UNITS, line, parts, title
from experiments.records import machine, tidy


def run(options: Options) -> Record:
    """Measure the cases, those of them that are not there yet."""
    record = Record(
        options.out,
        "python -m experiments.bench",
        options.given | {"sweep": list(options.sweep)},
        options.device,
        len(options.cases),
    )
    keep = _kept(options)
    start = time.monotonic()
    place = None
    for case in options.cases:
        if options.minutes is not None and time.monotonic() - start > 60 * options.minutes:
            break
        if case.place != place:
            place = case.place
            print(
                f"\n{title(case)}, {options.device.type}, {torch.get_num_threads()} threads\n"
                f"{HEADER}"
            )
        row = keep(case)
        record.add(row)
        print(line(row, record.rows), flush=True)
        if row.profile is not None:
            print(parts(row), flush=True)
    print(f"\n{UNITS}")
    return record


def _kept(options: Options) -> Callable[[Case], Row]:
    """Return what measures a case, or reads what an earlier run of this commit has measured."""

    def make(case: Case) -> Row:
        return measure_apart(case, options.device, options.effort)

    if options.out is None:
        return make
    settings: dict[str, Any] = {
        "effort": asdict(options.effort),
        "machine": machine.about(options.device),
        "versions": machine.versions(),
    }
    kept = tidy.Kept(options.out.with_suffix(""), settings)
    return lambda case: Row(**kept(case.name, lambda: asdict(make(case))))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if it ran out of minutes, 2 for a command line that is not allowed."""
    machine.keep_freed_memory()
    try:
        options = parse(arguments)
        record = run(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.out is not None:
        print(f"written: {options.out}")
    if not record.complete:
        print(
            f"error: {len(record.rows)} of {record.planned} rows after {options.minutes:g} minutes;"
            " the same command goes on from there where it has --out and a clean commit",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
