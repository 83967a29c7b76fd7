"""The page: everything of a folder put into the template, which escapes what comes from files.

Beside escaping, a content security policy in the page names the scripts that may run by their
checksum and forbids every connection. A script that some file brought in would not run.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from analysis.reading.load import ResultError
from analysis.report import libraries
from analysis.report.details import Detail, detail
from analysis.report.figures import Picture, find_figures
from analysis.report.parts import Part, find_parts, relative
from analysis.report.runs import find_runs
from analysis.report.tables import Grid, grid
from analysis.tables.tabular import Table

TEMPLATE = Path(__file__).resolve().parent / "template"
PAGE, STYLE, GLUE = "page.html", "style.css", "page.js"
POLICY = (
    "default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class Page:
    """What a folder holds."""

    title: str
    parts: Sequence[Part]
    details: Sequence[Detail]
    figures: Sequence[Picture]

    @property
    def unfinished(self) -> list[Detail]:
        """List the runs without a result."""
        return [one for one in self.details if not one.run.finished]

    @property
    def counts(self) -> list[tuple[str, int]]:
        """Count the runs by their state, finished first."""
        found = Counter(one.run.state for one in self.details)
        return sorted(found.items(), key=lambda pair: (pair[0] != "finished", pair[0]))

    @property
    def gaps(self) -> int:
        """Count what the tables lack."""
        return sum(len(part.gaps) + bool(part.error) for part in self.parts)

    def all_runs(self) -> Grid:
        """Make the table of every run; which part a run is of, is said where there are several."""
        several = len(self.parts) > 1
        place = {run.folder: part.place for part in self.parts for run in part.runs}
        rows = [_row(one, place.get(one.run.folder, "-")) for one in self.details]
        header = [*HEADER, "part of"]
        if not several:
            header, rows = header[:-1], [row[:-1] for row in rows]
        keys = [one.key for one in self.details]
        return grid(Table("Every run", header, rows), "Every run", opens=keys)


HEADER = (
    "run", "task", "model", "seed", "state", "score %", "dev loss", "steps", "forwards", "seconds",
    "peak GiB", "commit",
)  # fmt: skip


def _row(one: Detail, part: str) -> list[str]:
    run = one.run
    if not run.finished:
        return [one.place, *["-"] * 3, run.state, *["-"] * (len(HEADER) - 5), part]
    row = run.row
    return [
        run.method, row["task"], row["model"], str(row["seed"]), run.state,
        f"{100 * row['eval_score']:.1f}", f"{row['dev_loss']:.4f}", f"{row['steps']:,}",
        f"{row['forwards']:,}", f"{row['total_seconds']:.1f}", f"{row['peak_memory_gib']:.2f}",
        row["code"], part,
    ]  # fmt: skip


def read(root: Path) -> Page:
    """Read everything below a folder."""
    if not root.is_dir():
        raise ResultError(f"{root}: no such folder; expected one with runs or a suite below it")
    runs, pictures = find_runs(root), find_figures(root)
    parts = find_parts(root, runs)
    if not (runs or parts or pictures):
        raise ResultError(
            f"{root}: holds nothing to show; expected result.json, suite.json or figures below it"
        )
    details = [
        detail(f"run-{number}", run, relative(run.folder, root))
        for number, run in enumerate(runs, start=1)
    ]
    return Page(root.resolve().name, parts, details, pictures)


def render(page: Page) -> str:
    """Write the page as HTML."""
    scripts = [libraries.plotly(), libraries.datatables(), _text(GLUE)]
    policy = POLICY.format(scripts=" ".join(map(libraries.checksum, scripts)))
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_function"] = _compact
    template = environment.get_template(PAGE)
    return template.render(
        page=page,
        policy=policy,
        scripts=[Markup(script) for script in scripts],
        styles=[Markup(libraries.datatables_style()), Markup(_text(STYLE))],
    )


def _text(name: str) -> str:
    return (TEMPLATE / name).read_text(encoding="utf-8")


def _compact(data: object, **_: object) -> str:
    return json.dumps(data, separators=(",", ":"), allow_nan=False)
