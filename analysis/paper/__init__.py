"""The literature's numbers, as printed, with what they stand on: one JSON file per table.

table1, table2 and table3 are the AGZO paper's; aim_zo is an independent re-run. A number of theirs
belongs beside one of ours only if model, precision and data are the same: `unlike` says whether.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
NAMES = ("table1", "table2", "table3", "aim_zo")


@dataclass(frozen=True)
class PaperTable:
    """One printed table. Scores are per task, in the order of `columns`, in `unit`."""

    name: str
    title: str
    source: dict[str, str | None]  # arxiv, version, where
    confidence: str
    model: str  # hub id
    dtype: str  # fp32 or bf16
    unit: str  # fraction or percent
    digits: int
    rounding: str  # rounded or truncated
    runs_per_cell: int
    steps: dict[str, int]
    eval_n: dict[str, int]  # inferred, see notes
    columns: list[str]
    scores: dict[str, list[float]]
    std: dict[str, list[float | None]] | None
    printed_average: list[float] | None
    notes: list[str]

    def percent(self, task: str, column: str) -> float | None:
        """Return a score in per cent, or None where the table has no such cell."""
        if task not in self.scores or column not in self.columns:
            return None
        return self._percent(self.scores[task][self.columns.index(column)])

    def averages(self) -> dict[str, tuple[float, float | None]]:
        """Return each column's mean over the rows and the printed one, in per cent."""
        found: dict[str, tuple[float, float | None]] = {}
        for i, column in enumerate(self.columns):
            rows = [self._percent(row[i]) for row in self.scores.values()]
            printed = None if self.printed_average is None else self.printed_average[i]
            mean = sum(rows) / len(rows)
            found[column] = (mean, None if printed is None else self._percent(printed))
        return found

    def wrong_averages(self) -> dict[str, tuple[float, float]]:
        """Return the printed averages that do not follow from the rows: mean of rows, printed.

        Each row may be off by half a unit of its last digit, and so may the average (a whole one
        where it was cut), so only a difference beyond one unit is a contradiction.
        """
        last = 100 * 10**-self.digits if self.unit == "fraction" else 10**-self.digits
        return {
            column: (mean, printed)
            for column, (mean, printed) in self.averages().items()
            if printed is not None and abs(mean - printed) > last * (1 + 1e-9)
        }

    def unlike(self, record: Mapping[str, Any]) -> str | None:
        """Say in what a run's `result.json` is not what this table stands on; None if in nothing.

        Compared are model, precision, prompt, data and the evaluation size, not budget and seeds.
        """
        model, data = record["model"], record["data"]
        precision = record["config"].get("precision", {})
        expected = (
            ("model.source", model.get("source"), "hub"),
            ("model.path", model.get("path"), self.model),
            ("data.source", data.get("source"), "hub"),
            ("config.precision.dtype", precision.get("dtype"), self.dtype),
            ("config.model.prompt", record["config"].get("model", {}).get("prompt"), "plain"),
            ("eval.n", record["eval"]["n"], self.eval_n.get(record["task"], record["eval"]["n"])),
        )
        for key, ours, theirs in expected:
            if ours != theirs:
                return f"{key} is {ours!r} here and {theirs!r} in the paper"
        return None

    def _percent(self, score: float) -> float:
        return 100 * score if self.unit == "fraction" else score


def load(name: str) -> PaperTable:
    """Read one table by its name."""
    if name not in NAMES:
        raise ValueError(f"paper={name!r}: expected one of {', '.join(NAMES)}")
    table = PaperTable(**json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")))
    for task, row in table.scores.items():
        if len(row) != len(table.columns):
            raise ValueError(f"{name}.json: {task} has {len(row)} of {len(table.columns)} scores")
    return table
