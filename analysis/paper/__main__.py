"""Print the literature's tables, and the AGZO paper beside its independent re-run.

python -m analysis.paper
"""

from analysis.paper import NAMES, PaperTable, load
from analysis.tables.tabular import Table


def shown(paper: PaperTable) -> Table:
    """Show one table as printed, with the means of its rows and its notes."""
    average = paper.averages()
    rows = []
    for task, row in paper.scores.items():
        std = paper.std[task] if paper.std is not None else [None] * len(row)
        scores = zip(row, std, strict=True)
        rows.append([task, *(_score(score, s, paper.digits) for score, s in scores)])
    rows.append(["mean of rows, %", *(f"{average[column][0]:.2f}" for column in paper.columns)])
    if paper.printed_average is not None:
        printed = (_score(score, None, paper.digits) for score in paper.printed_average)
        rows.append(["average as printed", *printed])
    where = f"arXiv {paper.source['arxiv']}{paper.source['version'] or ''}, {paper.source['where']}"
    notes = [f"{where}. Model {paper.model}, {paper.dtype}. Confidence: {paper.confidence}."]
    notes += [
        f"Printed average of {column}: {printed:.1f} %, mean of the rows: {mean:.1f} %."
        for column, (mean, printed) in paper.wrong_averages().items()
    ]
    return Table(paper.title, ["task", *paper.columns], rows, notes + paper.notes)


def side_by_side(first: PaperTable, second: PaperTable) -> Table:
    """Put two tables' common cells beside each other, in per cent."""
    columns = [column for column in first.columns if column in second.columns]
    tasks = [task for task in first.scores if task in second.scores]
    rows = []
    for task in tasks:
        cells = [(first.percent(task, c), second.percent(task, c)) for c in columns]
        rows.append([task, *(f"{a:.1f}, {b:.1f}" for a, b in cells if None not in (a, b))])
    notes = [
        f"{one.name}: {one.model}, {one.dtype}, {one.runs_per_cell} run(s) per cell."
        for one in (first, second)
    ]
    return Table(f"{first.name}, {second.name}: side by side, %", ["task", *columns], rows, notes)


def _score(score: float, std: float | None, digits: int) -> str:
    """Write a score with the digits of the print."""
    shown = f"{score:.{digits}f}"
    return shown if std is None else f"{shown} ± {std:.{digits}f}"


if __name__ == "__main__":
    print("\n".join(shown(load(name)).text() for name in NAMES))
    print(side_by_side(load("table1"), load("aim_zo")).text())
