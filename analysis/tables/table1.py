"""The main table from a suite's result files: tasks as rows, methods as columns (many: turned).

One table per model, with mean ± sample standard deviation over the seeds, the comparisons fixed
beforehand, the chosen settings, what they cost and the dev loss of every grid cell. What has not
run is shown as missing and named in the notes, never averaged away. The format of a suite's folder
is described in analysis/reading: suite.py (plan), choice.py (search) and cells.py (runs).

    python -m analysis.tables.table1 FOLDER [--out DIR]
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis import paper
from analysis.paper import PaperTable
from analysis.reading.cells import Cell, Cells, read_cells, strays
from analysis.reading.command import place
from analysis.reading.comparisons import comparison_table
from analysis.reading.load import ResultError
from analysis.reading.suite import PLAN, Suite, load_suite
from analysis.reading.suite_costs import costs_table
from analysis.reading.suite_notes import notes, runs_of
from analysis.reading.suite_settings import chosen_table, grid_table
from analysis.tables.latex import latex
from analysis.tables.tabular import Table, spread

DIGITS = 1
INCOMPLETE = "†"
MOST_COLUMNS = 10  # of methods; the main table of more has a row for each


@dataclass(frozen=True)
class Document:
    """All tables of one model, and the name of their files without suffix."""

    stem: str
    tables: list[Table]

    def write(self, folder: Path) -> list[Path]:
        """Write the tables as markdown and as LaTeX."""
        folder.mkdir(parents=True, exist_ok=True)
        markdown, tex = folder / f"{self.stem}.md", folder / f"{self.stem}.tex"
        markdown.write_text("\n".join(one.markdown() for one in self.tables), encoding="utf-8")
        tex.write_text("\n".join(latex(one) for one in self.tables), encoding="utf-8")
        return [markdown, tex]


def documents(folder: Path) -> list[Document]:
    """Read a suite's folder and make the tables of each of its models."""
    suite = load_suite(folder)
    literature = _literature(suite)
    grids = [read_cells(suite, model) for model in suite.models]
    left_over = strays(suite, grids)
    return [
        _document(suite, model, cells, literature, left_over)
        for model, cells in zip(suite.models, grids, strict=True)
    ]


def _document(
    suite: Suite, model: str, cells: Cells, literature: PaperTable | None, left_over: list[Path]
) -> Document:
    data = "+".join(sorted({run.row["data"] for run in runs_of(cells)})) or "no"
    about = f"scale {suite.scale}, model {model}, {data} data, equal {suite.budget}"
    header = ["task", *(column.label for column in suite.columns)]
    rows = main_rows(suite, cells, literature)
    if len(suite.columns) > MOST_COLUMNS:
        header, *rows = turned(["method", *header[1:]], rows)
    main = Table(
        f"{suite.title}: {about}",
        header,
        rows,
        notes(suite, cells, _paper_note(suite, cells, literature), left_over),
    )
    tables = [
        main,
        comparison_table(suite, cells, f"{suite.title}, paired comparisons: {about}"),
        chosen_table(suite, cells, f"{suite.title}, chosen settings: {about}"),
        costs_table(suite, cells, f"{suite.title}, costs: {about}"),
        grid_table(suite, cells, f"{suite.title}, all grid cells: {about}"),
    ]
    stem = "_".join((suite.name, suite.scale, model, data, suite.budget)).replace("/", "-")
    return Document(stem, [table for table in tables if table is not None])


def main_rows(suite: Suite, cells: Cells, literature: PaperTable | None = None) -> list[list[str]]:
    """Make the rows of the main table: one per task, and the mean over tasks."""
    rows = []
    for task in suite.tasks:
        in_row = [cells[task, column.name] for column in suite.columns]
        best = _best([(c.mean, c.column.kind) for c in in_row if c.complete])
        shown = [_with_paper(_cell(cell), cell, literature) for cell in in_row]
        ours = [cell.complete and _is_best(cell.mean, cell.column.kind, best) for cell in in_row]
        rows.append([task, *map(_bold, shown, ours)])
    means = [_column_means(suite, cells, column.name) for column in suite.columns]
    kinds = [column.kind for column in suite.columns]
    pairs = [
        (statistics.fmean(per_seed), kind)
        for per_seed, kind in zip(means, kinds, strict=True)
        if per_seed
    ]
    best = _best(pairs)
    last = ["mean"]
    for per_seed, kind in zip(means, kinds, strict=True):
        if not per_seed:
            last.append(f"- {INCOMPLETE}")
        else:
            last.append(
                _bold(spread(per_seed, DIGITS), _is_best(statistics.fmean(per_seed), kind, best))
            )
    return [*rows, last]


def turned(header: list[str], rows: list[list[str]]) -> list[list[str]]:
    """Make rows of the columns, for a table of more methods than fit beside one another."""
    return [list(column) for column in zip(header, *rows, strict=True)]


def _cell(cell: Cell) -> str:
    """Show one cell: its mean and deviation, or how far it has come."""
    if not cell.runs:
        return f"- {INCOMPLETE}"
    if not cell.complete:
        done = f"n={len(cell.runs)}/{len(cell.column.seeds)}"
        return f"{cell.mean:.{DIGITS}f} ({done}) {INCOMPLETE}"
    return spread(list(cell.scores.values()), DIGITS)


def _column_means(suite: Suite, cells: Cells, column: str) -> list[float]:
    """Return each seed's mean over all tasks; nothing if any cell is incomplete."""
    in_column = [cells[task, column] for task in suite.tasks]
    if not all(cell.complete for cell in in_column):
        return []
    scores = [cell.scores for cell in in_column]
    return [statistics.fmean(one[seed] for one in scores) for seed in scores[0]]


def _best(pairs: list[tuple[float, str]]) -> float | None:
    return max((round(mean, DIGITS) for mean, kind in pairs if kind == "zo"), default=None)


def _is_best(mean: float, kind: str, best: float | None) -> bool:
    return kind == "zo" and round(mean, DIGITS) == best


def _bold(text: str, yes: bool) -> str:
    return f"**{text}**" if yes else text


def _literature(suite: Suite) -> PaperTable | None:
    if suite.paper is None:
        return None
    if suite.paper not in paper.NAMES:
        raise ResultError(
            f"{suite.folder / PLAN}: key paper is {suite.paper!r}; allowed: null, "
            f"{', '.join(paper.NAMES)}"
        )
    return paper.load(suite.paper)


def _with_paper(shown: str, cell: Cell, literature: PaperTable | None) -> str:
    """Put the paper's number and our difference beside ours where both stand on the same."""
    if literature is None or not cell.complete:
        return shown
    theirs = literature.percent(cell.task, cell.column.name)
    if theirs is None or any(literature.unlike(run.record) for run in cell.runs.values()):
        return shown
    return f"{shown} [{theirs:.{DIGITS}f}, {cell.mean - theirs:+.{DIGITS}f}]"


def _paper_note(suite: Suite, cells: Cells, literature: PaperTable | None) -> str:
    """Say what the paper's numbers beside ours are, or why there are none."""
    if literature is None:
        return f"No table of the paper belongs to this suite (key paper in {PLAN} is null)."
    runs = runs_of(cells)
    unlike = [reason for run in runs if (reason := literature.unlike(run.record)) is not None]
    name = f"arXiv {literature.source['arxiv']}, {literature.title}"
    if not runs or len(unlike) == len(runs):
        why = unlike[0] if unlike else "nothing has run yet"
        return f"The paper's numbers ({name}) are not shown: {why}."
    steps = ", ".join(f"{kind} {number:,}" for kind, number in literature.steps.items())
    sizes = ", ".join(
        f"{t} {literature.eval_n[t]:,}" for t in suite.tasks if t in literature.eval_n
    )
    words = (
        f"In brackets: the paper's number ({name}; {literature.runs_per_cell} run(s) per cell, "
        f"{literature.rounding} to {literature.digits} digits; its steps: {steps}; its "
        f"evaluation examples, inferred: {sizes or '-'}) and ours minus it, in complete cells."
    )
    return words + (f" Not beside every cell: {unlike[0]}." if unlike else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a suite's tables and write them as markdown and LaTeX."""
    parser = argparse.ArgumentParser(prog="python -m analysis.tables.table1", description=__doc__)
    parser.add_argument("folder", type=place, help="the folder of a suite, with its suite.json")
    parser.add_argument("--out", type=place, help="where the .md and .tex go (default: FOLDER)")
    options = parser.parse_args(arguments)
    try:
        made = documents(options.folder)
    except ResultError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for one in made:
        print("\n".join(table.text() for table in one.tables))
    for one in made:
        for path in one.write(options.out or options.folder):
            print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
