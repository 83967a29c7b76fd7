"""Read what a probe has left, strictly, and write a figure with its caption.

A probe's folder holds `about.json` and one CSV file per table (see `experiments.probe.tidy`). A
missing file, table or column stops with its name: a figure with a silent gap is worse than none.
"""

import argparse
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.load import ResultError, read_json, value
from analysis.style import save
from analysis.table import SANITY

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
    tables = {name: _table(folder / f"{name}.csv", wanted) for name, wanted in columns.items()}
    return Probe(folder, about, tables)


def _table(path: Path, columns: Iterable[str]) -> Table:
    if not path.is_file():
        raise ResultError(f"{path}: no such file; measure again into an empty folder")
    table = pd.read_csv(path, keep_default_na=False, na_values=[""])
    absent = [column for column in columns if column not in table]
    if absent:
        raise ResultError(f"{path}: has no column {', '.join(absent)}; found {list(table)}")
    if table.empty:
        raise ResultError(f"{path}: has no rows")
    return table


def command_line(
    draw: Callable[[Path, Path], list[Path]],
    name: str,
    words: str | None,
    arguments: Sequence[str] | None,
) -> int:
    """Draw the figure of a probe's folder, print what was written, and return the exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m analysis.{name}", description=words)
    parser.add_argument("folder", type=Path, help="what the probe has written")
    parser.add_argument("--out", type=Path, required=True, help="path of the figure, no suffix")
    options = parser.parse_args(arguments)
    try:
        paths = draw(options.folder, options.out)
    except ResultError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(str(path) for path in paths))
    return 0


def code(about: Mapping[str, Any]) -> str:
    """Name the commit that measured, as captions say it."""
    commit = about.get("git_commit")
    if commit is None:
        return "commit unknown"
    return f"commit {commit[:7]}" + (" with local changes" if about.get("git_dirty") else "")


def device(about: Mapping[str, Any]) -> str:
    """Name the machine that measured, as captions say it."""
    machine = about["machine"]
    where = f"{machine['device']}, {machine['device_name']}"
    return where if machine["device"] == "cuda" else f"{where}, {machine['threads']} thread(s)"


def sentence(probe: Probe) -> str:
    """Name model, data, run, device and commit of a probe that looked at a run, for its caption."""
    config = probe.get("config", dict)
    method, train = config["method"], config["train"]
    text = (
        f"Model: {probe.get('model.name', str)} ({probe.get('model.parameters', int):,} "
        f"parameters). Data: {probe.get('data.source', str)}, task {probe.get('task', str)}, batch "
        f"{train['batch_size']}. Run: {method['name']}, lr {method['lr']:g}, seed "
        f"{probe.get('seed', int)}, {config['precision']['dtype']}. Device: {device(probe.about)}. "
        f"Code: {code(probe.about)}."
    )
    pocket = "pocket" in (config["model"]["source"], config["data"]["source"])
    return f"{text} {SANITY}" if pocket else text


def write_figure(figure: Figure, stem: Path, caption: Iterable[str]) -> list[Path]:
    """Write `stem.png`, `stem.pdf` and the caption, one paragraph a line, as `stem.txt`."""
    paths = save(figure, stem)
    words = stem.with_suffix(".txt")
    text = "\n".join(textwrap.fill(" ".join(line.split()), 100) for line in caption)
    words.write_text(text + "\n", encoding="utf-8")
    return [*paths, words]
