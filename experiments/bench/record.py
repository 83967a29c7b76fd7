"""A benchmark's JSON: its rows and what they stand on, written anew behind every row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from experiments.records import machine, tidy


class Record:
    """Rows (dataclasses) on their way to a file, or to none.

    Args:
        path: of the JSON; None keeps the rows in memory alone.
        command: that the rows come from.
        arguments: what it was asked for, as JSON can hold it.
        planned: rows of the whole benchmark; the file is `complete` once it has them.
    """

    def __init__(
        self,
        path: Path | None,
        command: str,
        arguments: Mapping[str, Any],
        device: torch.device,
        planned: int,
    ) -> None:
        self.path, self.planned = path, planned
        self.rows: list[Any] = []
        self._about = {
            "command": command,
            "arguments": dict(arguments),
            **machine.git_state(),
            "machine": machine.about(device),
            "versions": machine.versions(),
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
        }

    def add(self, *rows: Any) -> None:
        """Take rows, and write the file."""
        self.rows.extend(rows)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            tidy.replace(self.path, json.dumps(self._about | self._found(), indent=1) + "\n")

    @property
    def complete(self) -> bool:
        """Tell whether all planned rows are there."""
        return len(self.rows) == self.planned

    def _found(self) -> dict[str, Any]:
        rows = [asdict(row) for row in self.rows]
        return {"complete": self.complete, "planned": self.planned, "rows": rows}
