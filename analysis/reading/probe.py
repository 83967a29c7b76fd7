"""Read what a probe has left, strictly, and write a figure with its caption.

A probe's folder holds `about.json` and one CSV file per table (see `experiments.records.tidy`). A
missing file, table or column stops with its name: a figure with a silent gap is worse than none.
"""

import argparse
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.style import ended, save
from analysis.reading.command import place, report
from analysis.reading.load import ResultError, read_json, value
from analysis.tables.table import SANITY

ABOUT = "about.json"
Table = Any  # a pd.DataFrame, whose type stubs refuse most of its own idioms


@dataclass(frozen=True)
class Probe:
    """One probe's folder."""

    folder: Path
    about: dict[str, Any]
    tables: dict[str, Table]

    def get(self, key: str, *allowed: type) -> Any:
        """Return a dotted key of `about.json`; absent or of another type is an error."""
        return value(self.about, key, allowed, self.folder / ABOUT)


# Columns whose cells are words; all others hold numbers.
WORDS = {
    "layer", "basis", "rank", "of", "token", "scope", "method", "estimator", "perturbed", "dtype",
    "rounding", "kind", "shape", "attention", "series", "status", "message", "embeddings",
    "parameter", "role",
}  # fmt: skip


def load_probe(folder: Path, kind: str, columns: Mapping[str, Iterable[str]]) -> Probe:
    """Read a probe's folder.

    Args:
        folder: holds `about.json`.
        kind: the probe that must have made it ("structure", "alignment", ...).
        columns: table -> the columns it must have.
    """
    if not (folder / ABOUT).is_file():
        raise ResultError(
            f"{folder}: holds no {ABOUT}; measure first (python -m experiments.probe {kind} "
            f"--out {folder} ...)"
        )
    about = read_json(folder / ABOUT)
    found = value(about, "probe", (str,), folder / ABOUT)
    if found != kind:
        raise ResultError(f"{folder / ABOUT}: key probe is {found!r}; expected {kind!r}")
    tables = {}
    for name, wanted in columns.items():
        rows = value(about, f"rows.{name}", (int,), folder / ABOUT)
        tables[name] = _table(folder / f"{name}.csv", wanted, rows)
    return Probe(folder, about, tables)


def _table(path: Path, columns: Iterable[str], rows: int) -> Table:
    if not path.is_file():
        raise ResultError(f"{path}: no such file; measure again into an empty folder")
    try:
        table = pd.read_csv(path, keep_default_na=False, na_values=[""])
    except ValueError as error:  # pandas raises several kinds of it
        raise ResultError(f"{path}: cannot be read as a table ({error})") from None
    absent = [column for column in columns if column not in table]
    if absent:
        raise ResultError(f"{path}: has no column {', '.join(absent)}; found {list(table)}")
    if len(table) != rows:
        raise ResultError(f"{path}: has {len(table)} rows, {ABOUT} says {rows}; measure again")
    numbers: Table = table.drop(columns=[column for column in table if column in WORDS])
    for column in numbers.dropna(axis=1, how="all").select_dtypes(exclude="number"):
        raise ResultError(f"{path}: column {column} holds something that is no number")
    return table


def command_line(
    draw: Callable[[Path, Path], list[Path]],
    name: str,
    words: str | None,
    arguments: Sequence[str] | None,
) -> int:
    """Draw the figure of a probe's folder, print what was written, and return the exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m analysis.figures.{name}", description=words)
    parser.add_argument("folder", type=place, help="what the probe has written")
    parser.add_argument("--out", type=place, required=True, help="path of the figure, no suffix")
    options = parser.parse_args(arguments)
    return report(lambda: draw(options.folder, options.out))


def code(record: Mapping[str, Any], path: Path = Path(ABOUT)) -> str:
    """Name the commit that measured, as captions say it; `path` is where the record stands."""
    commit = value(record, "git_commit", (str, type(None)), path)
    dirty = value(record, "git_dirty", (bool, type(None)), path)
    if commit is None:
        return "commit unknown"
    return f"commit {commit[:7]}" + (" with local changes" if dirty else "")


def device(about: Mapping[str, Any]) -> str:
    """Name the machine that measured, as captions say it."""
    path = Path(ABOUT)
    kind, name = (value(about, f"machine.{key}", (str,), path) for key in ("device", "device_name"))
    threads = value(about, "machine.threads", (int,), path)
    return f"{kind}, {name}" if kind == "cuda" else f"{kind}, {name}, {threads} thread(s)"


def sentence(probe: Probe) -> str:
    """Name model, data, run, device and commit of a probe that looked at a run, for its caption."""
    run = f"{probe.get('config.method.name', str)}, lr {probe.get('config.method.lr', float):g}, "
    return _sentence(probe, run)


def sentence_of_runs(probe: Probe) -> str:
    """Name the same of a probe whose runs have methods and learning rates of their own."""
    return _sentence(probe, "")


def _sentence(probe: Probe, run: str) -> str:
    text = (
        f"Model: {probe.get('model.name', str)} ({probe.get('model.parameters', int):,} "
        f"parameters). Data: {probe.get('data.source', str)}, task {probe.get('task', str)}, batch "
        f"{probe.get('config.train.batch_size', int)}. Run: {run}"
        f"seed {probe.get('seed', int)}, {probe.get('config.precision.dtype', str)}. Device: "
        f"{device(probe.about)}. Code: {code(probe.about)}."
    )
    return f"{text} {SANITY}" if of_pocket(probe) else text


def of_pocket(probe: Probe) -> bool:
    """Tell whether model or data are the generated world."""
    sources = (probe.get("config.model.source", str), probe.get("config.data.source", str))
    return "pocket" in sources


def write_figure(figure: Figure, stem: Path, caption: Iterable[str]) -> list[Path]:
    """Write `stem.png`, `stem.pdf` and the caption, one paragraph a line, as `stem.txt`."""
    paths = save(figure, stem)
    words = ended(stem, ".txt")
    text = "\n".join(textwrap.fill(" ".join(line.split()), 100) for line in caption)
    words.write_text(text + "\n", encoding="utf-8")
    return [*paths, words]
