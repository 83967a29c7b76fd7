"""Seconds of training to a given dev loss, by this library and as published: ``make time-to-loss``.

    python -m experiments.bench.time_to_loss OUT.json data=local data.root=/path/to/data
    python -m experiments.bench.time_to_loss OUT.json data=hub --methods agzo --target 0.65

Both start at the same weights and take the same batches, learning rate, eps and directions; the
execution alone differs. As published (`experiments.bench.textbook`): float32, eager, a padded row
for each option, logits and log-softmax of all positions and words, noise written into the weights
and taken out again. Each draws its own noise on the clock; the textbook's numbers are then
replaced, off the clock, by ours (`experiments.bench.along` says why). So both take the same number
of steps up to rounding, and the ratio of their times is not a matter of luck. One seed: how soon a
method comes to the loss is no claim about the method, how much sooner this library does is.

What follows OUT.json configures the run, as for `experiments.run`. The same command goes on after a
stop, case by case: finished ones lie in OUT/parts, see `experiments.records.tidy`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from agzo.check import check_number
from experiments.bench.apart import ENDED, apart
from experiments.bench.arguments import out_of
from experiments.bench.loss_curve import OURS, TEXTBOOK, Case, Curve, Goal, configure, curve
from experiments.bench.record import Record
from experiments.config import lists
from experiments.config.paths import user_path
from experiments.records import machine, tidy

LR = {"mezo": 5e-5, "agzo": 5e-5, "lozo": 4e-5}  # of SmolLM2-135M on SST-2; eps is the method's own
TARGET, EVERY, MOST = 0.68, 5, 40  # the untouched model has 0.853, guessing log 2 = 0.693
RATIO = 4.0  # what is aimed at: times faster than published practice
RUN = (
    *("model=smollm2-135m-wheel", "task=sst2", "data=hub", "device=cpu", "threads=1"),
    *("train.num_dev=100", "train.num_eval=1", "train.max_length=256"),
)
HEADER = (
    f"{'method':6} {'who':8} {'lr':>7} {'steps':>11} {'seconds':>8} {'s/step':>7} {'dev loss':>8} "
    f"{'peak GiB':>8}  times faster"
)


@dataclass(frozen=True)
class Options:
    """What to measure, and where to write it."""

    out: Path
    cases: list[Case]
    goal: Goal
    given: dict[str, Any]  # the command line, for the record


def parse(arguments: Sequence[str] | None) -> Options:
    """Read the command line, and refuse what a run could not use before any is begun.

    Raises:
        ValueError: the message names key, value and what is allowed.
    """
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench.time_to_loss", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("out", type=user_path, help="JSON of the curves")
    parser.add_argument("overrides", nargs="*", help="of the run: model=... task=... data=...")
    parser.add_argument("--methods", default="all", help=f"a list, of {', '.join(LR)}")
    parser.add_argument("--lr", default="", help="a list such as mezo=2e-5,agzo=5e-5")
    parser.add_argument("--target", default=str(TARGET), help="the dev loss to come to")
    parser.add_argument("--every", default=str(EVERY), help="steps between looks at dev")
    parser.add_argument("--most", default=str(MOST), help="steps after which a case gives up")
    words = parser.parse_intermixed_args(arguments)
    try:
        target = check_number("--target", float(words.target), above=0.0)
    except ValueError:
        raise ValueError(f"--target={words.target}: allowed is a number above 0") from None
    goal = Goal(target, lists.count("--every", words.every), lists.count("--most", words.most))
    for word in words.overrides:
        if word.lstrip("+~").partition("=")[0].partition(".")[0] == "method":
            raise ValueError(f"{word}: not allowed here; methods and lr are --methods and --lr")
    rates = LR | _rates(words.lr)
    common = (*RUN, f"train.steps={goal.most}", *words.overrides)
    cases = [
        Case(
            method,
            who,
            (*common, f"method={method}", f"method.lr={rates[method]}"),
        )
        for method in lists.words("--methods", words.methods, LR)
        for who in (OURS, TEXTBOOK)
    ]
    for config in map(configure, cases[::2]):
        torch.set_num_threads(config.threads or torch.get_num_threads())
    given = asdict(goal) | {"lr": rates, "run": list(common)}
    return Options(out_of(words.out), cases, goal, given)


def _rates(text: str) -> dict[str, float]:
    found = {}
    for word in filter(None, text.split(",")):
        method, _, number = word.partition("=")
        try:
            found[method] = check_number("lr", float(number), above=0.0)
        except ValueError:
            found[method] = None
        if method not in LR or found[method] is None:
            names = ", ".join(LR)
            raise ValueError(f"--lr={text}: allowed is a list of method=number, of {names}")
    return found


def run(options: Options) -> Record:
    """Measure the cases that are not there yet, each in a process of its own."""
    cpu = torch.device("cpu")
    record = Record(
        options.out, "python -m experiments.bench.time_to_loss", options.given, cpu,
        len(options.cases),
    )  # fmt: skip
    settings = {
        "goal": asdict(options.goal),
        "machine": machine.about(cpu),
        "versions": machine.versions(),
    }
    kept = tidy.Kept(options.out.with_suffix(""), settings)
    for case in options.cases:
        record.add(Curve(**kept(case.name, lambda case=case: apart(curve, case, options.goal))))
    return record


def table(rows: Sequence[Curve], target: float) -> str:
    """Return the cases as text, a textbook beside ours, and what became of the aim."""
    lines = [f"\ntime to a dev loss of {target:g}", HEADER]
    for row in rows:
        steps = f"> {row.taken}" if row.steps is None else str(row.steps)
        seconds = "not reached" if row.seconds is None else f"{row.seconds:.1f}"
        lines.append(
            f"{row.method:6} {row.who:8} {row.lr:>7g} {steps:>5} {seconds:>14} "
            f"{row.step_seconds:>7.2f} {row.looks[-1]['dev_loss']:>8.4f} {row.peak_gib:>8.2f}  "
            f"{verdict(row, rows)}".rstrip()
        )
    lines.append(
        "times faster: seconds of the textbook over ours, to the loss (and a step, median); apart: "
        "the most by which dev losses after equal steps differ. Seconds of training alone"
    )
    return "\n".join(lines)


def verdict(row: Curve, rows: Sequence[Curve]) -> str:
    """Return how much faster a row of ours is than its textbook, where both are there."""
    for other in rows:
        if row.who == OURS and (other.method, other.who) == (row.method, TEXTBOOK):
            a_step = f"{other.step_seconds / row.step_seconds:.2f} a step"
            both = {look["step"]: look["dev_loss"] for look in row.looks}
            apart_by = max(
                abs(look["dev_loss"] - both[look["step"]])
                for look in other.looks
                if look["step"] in both
            )
            words = f"{a_step}; apart {apart_by:.1e}"
            if row.seconds is None or other.seconds is None:
                return f"- ({words})"
            ratio = other.seconds / row.seconds
            met = "met" if ratio >= RATIO else "missed"
            return f"{ratio:.2f} ({words}), >= {RATIO:g} {met}"
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 where a case's process was ended, 2 for what is not allowed."""
    try:
        options = parse(arguments)
        record = run(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenProcessPool:
        print(f"error: {ENDED}; the same command goes on from there", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(f"{table(record.rows, options.goal.target)}\nwritten: {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
