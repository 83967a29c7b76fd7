"""Read what a probe has left, strictly, and write a figure with its caption.

A probe's folder holds `about.json` and one CSV file per table (see `experiments.probe.tidy`). A
missing file, table or column stops with its name: a figure with a silent gap is worse than none.
"""

import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.load import ResultError, read_json, value
from analysis.style import save

ABOUT = "about.json"


@dataclass(frozen=True)
class Probe:
    """One probe's folder."""

    folder: Path
    about: dict[str, Any]
    tables: dict[str, pd.DataFrame]

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


def _table(path: Path, columns: Iterable[str]) -> pd.DataFrame:
    if not path.is_file():
        raise ResultError(f"{path}: no such file; measure again into an empty folder")
    table = pd.read_csv(path, keep_default_na=False, na_values=[""])
    absent = [column for column in columns if column not in table]
    if absent:
        raise ResultError(f"{path}: has no column {', '.join(absent)}; found {list(table)}")
    if table.empty:
        raise ResultError(f"{path}: has no rows")
    return table


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


def write_figure(figure: Figure, stem: Path, caption: Iterable[str]) -> list[Path]:
    """Write `stem.png`, `stem.pdf` and the caption, one paragraph a line, as `stem.txt`."""
    paths = save(figure, stem)
    words = stem.with_suffix(".txt")
    text = "\n".join(textwrap.fill(" ".join(line.split()), 100) for line in caption)
    words.write_text(text + "\n", encoding="utf-8")
    return [*paths, words]
