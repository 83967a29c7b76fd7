"""The AGZO paper's points of peak memory (its Figures 3 and 4), as far as they are known."""

import json
from dataclasses import dataclass

from analysis.paper import FOLDER

NAMES = ("figure3", "figure4")


@dataclass(frozen=True)
class PaperPoint:
    """One printed point; `peak` in the paper's GB, None where it ran out of memory."""

    method: str
    batch: int
    length: int
    peak: float | None


@dataclass(frozen=True)
class PaperMemory:
    """One printed figure."""

    name: str
    title: str
    source: dict[str, str | None]  # arxiv, version, where
    confidence: str
    model: str  # hub id
    dtype: str  # fp32 or bf16
    unit: str
    points: list[PaperPoint]
    notes: list[str]


def load(name: str) -> PaperMemory:
    """Read one figure by its name."""
    if name not in NAMES:
        raise ValueError(f"paper={name!r}: expected one of {', '.join(NAMES)}")
    record = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    points = [
        PaperPoint(line["method"], line["batch"], length, peak)
        for line in record["points"]
        for length, peak in zip(line["length"], line["peak"], strict=True)
    ]
    return PaperMemory(**{**record, "points": points})
