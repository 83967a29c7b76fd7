"""The benchmark's command line: lists such as 64,256; each error one line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from experiments.bench.measure import Effort
from experiments.bench.methods import METHODS, OF_EMBEDDINGS, ON_CPU
from experiments.bench.plan import AXES, BASES, FIELDS, MIXES, SWEEPS, TABLES, Grid, swept
from experiments.bench.rows import Case
from experiments.config import lists
from experiments.config.paths import user_path
from experiments.models.shapes import DTYPES, SHAPES
from experiments.records import tidy

# Of a device, unless the command line says otherwise; minutes: None for no limit.
EFFORTS = {"cpu": (Effort(rounds=5, seconds=20), None), "cuda": (Effort(rounds=10, seconds=5), 8.5)}


@dataclass(frozen=True)
class Options:
    """What to measure, for how long, and where to write it."""

    device: torch.device
    cases: list[Case]
    effort: Effort
    minutes: float | None  # after which no further case begins
    sweep: tuple[str, ...]
    out: Path | None
    given: dict[str, str]  # the command line, for the record


def parse(arguments: Sequence[str] | None) -> Options:
    """Read the command line.

    Raises:
        ValueError: the message names key, value and what is allowed.
    """
    words = _parser().parse_args(arguments)
    device = device_of(words.device)
    if words.threads is not None:
        torch.set_num_threads(lists.count("--threads", words.threads))
    sweep = tuple(lists.words("--sweep", words.sweep, AXES)) if words.sweep else ()
    effort, minutes = EFFORTS[words.device]
    if words.rounds is not None or words.seconds is not None:
        effort = Effort(
            lists.count("--rounds", words.rounds or str(effort.rounds)),
            _number("--seconds", words.seconds or str(effort.seconds)),
        )
    if words.profile and words.device != "cpu":
        raise ValueError(f"--profile: on {words.device} work runs beside the host; allowed is cpu")
    effort = replace(effort, profiled=words.profile)
    given = {key: str(value) for key, value in vars(words).items() if value not in (None, False)}
    given.pop("out", None)
    return Options(
        device=device,
        cases=_swept(words, sweep) if sweep else _table(words).cases(),
        effort=effort,
        minutes=minutes if words.minutes is None else _number("--minutes", words.minutes),
        sweep=sweep,
        out=None if words.out is None else out_of(words.out),
        given=given,
    )


def device_of(name: str) -> torch.device:
    """Return a device that is here."""
    if name not in EFFORTS:
        raise ValueError(f"--device={name}: allowed are {', '.join(EFFORTS)}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device=cuda: no CUDA device is here; allowed is cpu")
    return torch.device(name)


def out_of(path: Path) -> Path:
    """Return the path of a JSON file that can be written."""
    if path.suffix != ".json" or path.is_dir():
        raise ValueError(f"--out={path}: allowed is a file whose name ends in .json")
    tidy.writable(path.parent)
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench", description="step cost in units of two plain forwards"
    )
    lists_of = "a list such as 1,4"
    parser.add_argument("--device", default="cpu", help=", ".join(EFFORTS))
    parser.add_argument("--shape", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--dtype", help=f"of {', '.join(DTYPES)}")
    parser.add_argument("--batch", help=f"rows of a batch: {lists_of}")
    parser.add_argument("--length", help=f"tokens of a row: {lists_of}")
    parser.add_argument("--rank", help=f"of the methods that have one: {lists_of}")
    parser.add_argument("--methods", help=f"all, or of {', '.join(METHODS)}")
    parser.add_argument(
        "--sweep", help=f"vary one axis at a time about a base point: of {', '.join(AXES)}; or all"
    )
    parser.add_argument(
        "--mix", help=f"prompts of real lengths in the place of --batch x --length: {_MIXES}"
    )
    parser.add_argument(
        "--profile", action="store_true", help="say what each step's time goes to (cpu)"
    )
    parser.add_argument("--rounds", help="of forwards and steps in turn, for each case")
    parser.add_argument("--seconds", help="after which a case begins no further round")
    parser.add_argument("--minutes", help="after which no further case begins")
    parser.add_argument("--threads", help="torch threads (default: torch's)")
    parser.add_argument(
        "--out", type=user_path, help="JSON for the rows; what it has is not made again"
    )
    return parser


_MIXES = ", ".join(MIXES)

# Field of a `Grid` -> its option and what reads a list for it.
_LISTS: dict[str, tuple[str, Callable[[str, str], Sequence[Any]]]] = {
    "shapes": ("--shape", lambda key, text: lists.words(key, text, SHAPES)),
    "dtypes": ("--dtype", lambda key, text: lists.words(key, text, DTYPES)),
    "batches": ("--batch", lambda key, text: lists.whole_numbers(key, text, least=1)),
    "lengths": ("--length", lambda key, text: lists.whole_numbers(key, text, least=2)),
    "ranks": ("--rank", lambda key, text: lists.whole_numbers(key, text, least=1)),
    "methods": ("--methods", lambda key, text: lists.words(key, text, METHODS)),
}
_LISTS_ON_CPU = _LISTS | {
    "methods": ("--methods", lambda key, text: lists.words(key, text, (*ON_CPU, *OF_EMBEDDINGS))),
}


def _axes(words: argparse.Namespace) -> dict[str, tuple[Any, ...]]:
    """Read the lists that were given: field of a `Grid` -> values."""
    readers = _LISTS if words.device == "cuda" else _LISTS_ON_CPU
    texts = {field: getattr(words, key.removeprefix("--")) for field, (key, _) in readers.items()}
    return {
        field: tuple(read(key, texts[field]))
        for field, (key, read) in readers.items()
        if texts[field] is not None
    }


def _table(words: argparse.Namespace) -> Grid:
    """Return the default table, or that of a mix of prompts, with the lists that were given."""
    if words.mix is None:
        return replace(TABLES[words.device], **_axes(words))
    if words.mix not in MIXES:
        raise ValueError(f"--mix={words.mix}: allowed are {_MIXES}")
    for key in ("batch", "length"):
        if getattr(words, key) is not None:
            raise ValueError(f"--{key}={getattr(words, key)}: not allowed with --mix, which has it")
    return replace(MIXES[words.mix], **_axes(words))


def _swept(words: argparse.Namespace, sweep: Sequence[str]) -> list[Case]:
    """Return the cases of the sweeps; a list given for a swept axis replaces its values."""
    if words.mix is not None:
        raise ValueError(f"--mix={words.mix}: not allowed with --sweep")
    given, base = _axes(words), {}
    values = {axis: given.pop(FIELDS[axis], SWEEPS[words.device][axis]) for axis in sweep}
    for field, numbers in given.items():
        if field != "methods" and len(numbers) > 1:
            raise ValueError(
                f"{_LISTS[field][0]}={','.join(map(str, numbers))}: allowed is one value, of the "
                f"base point, where --sweep={words.sweep} does not vary it"
            )
        base[field] = numbers
    return swept(replace(BASES[words.device], **base), values)


def _number(key: str, text: str) -> float:
    numbers = lists.positive_numbers(key, text)
    if len(numbers) > 1:
        raise ValueError(f"{key}={text}: allowed is one number above 0")
    return numbers[0]
