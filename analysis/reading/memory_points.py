"""The points of the memory probe, checked, and the criterion: is AGZO above MeZO and inference?

The numbers of Figures 3 and 4; `analysis.figures.peak_memory` draws them.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from analysis.figures.style import label, ordered
from analysis.paper.memory import PaperMemory, PaperPoint
from analysis.paper.memory import load as load_paper
from analysis.reading.load import ResultError
from analysis.reading.probe import Probe, load_probe
from analysis.tables.tabular import Table

COLUMNS = {
    "memory": ("kind", "series", "method", "shape", "dtype", "attention", "batch", "length",
               "status", "peak_gib", "reserved_gib", "baseline_gib", "message"),
}  # fmt: skip
LIMIT = 24.0  # GiB of the paper's card
SERIES = {"ours": "this library", "published": "published code"}
PAPER = {("0.6b", "float32"): "figure3", ("pangu-1b", "bfloat16"): "figure4"}
At = tuple[str, str, int, int]  # series, method, batch, length


@dataclass(frozen=True)
class Sweep:
    """One folder: the peaks in GiB, None where a point ran out of memory."""

    probe: Probe
    kind: str
    peaks: dict[At, float | None]
    batch: int
    lengths: list[int]
    length: int
    batches: list[int]

    @property
    def methods(self) -> list[str]:
        """The methods, in the order of legends."""
        return ordered({method for _, method, _, _ in self.peaks})

    @property
    def series(self) -> list[str]:
        """The series, ours first."""
        return [name for name in SERIES if any(key[0] == name for key in self.peaks)]

    @property
    def paper(self) -> PaperMemory | None:
        """The paper's figure of this model and precision."""
        name = PAPER.get((self.probe.get("settings.shape", str), self.dtype))
        return None if name is None or self.kind == "resident" else load_paper(name)

    @property
    def printed(self) -> list[PaperPoint]:
        """The paper's points."""
        return [] if self.paper is None else self.paper.points

    @property
    def dtype(self) -> str:
        """The precision of the weights."""
        return self.probe.get("settings.dtype", str)

    @property
    def limited(self) -> bool:
        """Tell whether the paper's card says anything about these numbers."""
        return self.kind != "resident"

    def at(self) -> list[tuple[int, int]]:
        """Return the (batch, length) pairs: over lengths, then over batches."""
        pairs = [(self.batch, length) for length in self.lengths]
        return list(dict.fromkeys(pairs + [(batch, self.length) for batch in self.batches]))


def load_sweep(folder: Path) -> Sweep:
    """Read one folder; a point that is missing or has failed is an error with its name."""
    probe = load_probe(folder, "memory", COLUMNS)
    path = folder / "memory.csv"
    peaks: dict[At, float | None] = {}
    for _, row in probe.tables["memory"].iterrows():
        at = (str(row["series"]), str(row["method"]), int(row["batch"]), int(row["length"]))
        if at[0] not in SERIES or row["status"] not in ("ok", "out_of_memory"):
            raise ResultError(
                f"{path}: point {title(at)} has the status {row['status']!r} ({row['message']}); "
                "measure again"
            )
        baseline = row["baseline_gib"] if row["kind"] == "resident" else 0.0
        peak = float(row["peak_gib"]) - float(baseline)
        if row["status"] == "ok" and not math.isfinite(peak):
            raise ResultError(f"{path}: point {title(at)} has no peak; measure again")
        peaks[at] = peak if row["status"] == "ok" else None

    def listed(key: str) -> list[int]:
        return [int(part) for part in probe.get(f"settings.{key}", str).split(",")]

    sweep = Sweep(
        probe, probe.get("settings.kind", str), peaks,
        probe.get("settings.batch", int), listed("lengths"),
        probe.get("settings.length", int), listed("batches"),
    )  # fmt: skip
    for series in probe.get("settings.series", str).split(","):
        for method in probe.get("settings.methods", str).split(","):
            for batch, length in sweep.at():
                if (at := (series, method, batch, length)) not in peaks:
                    raise ResultError(f"{path}: point {title(at)} is missing; measure again")
    return sweep


def ratio(sweep: Sweep, method: str, other: str) -> tuple[float, tuple[int, int]] | None:
    """Return the largest ratio of two methods' peaks in our series, and its (batch, length)."""
    found = []
    for pair in sweep.at():
        above, below = (sweep.peaks.get(("ours", one, *pair)) for one in (method, other))
        if above is not None and below is not None:
            found.append((above / below, pair))
    return max(found) if found else None


def table(sweep: Sweep) -> Table:
    """Show every point, and AGZO against MeZO and inference."""
    rows = []
    for series in sweep.series:
        for batch, length in sweep.at():
            cells = [sweep.peaks.get((series, method, batch, length)) for method in sweep.methods]
            shown = ["out" if cell is None else f"{cell:.3f}" for cell in cells]
            printed = [
                f"{label(point.method)} {'OOM' if point.peak is None else point.peak}"
                for point in sweep.printed
                if (point.batch, point.length) == (batch, length)
            ]
            rows.append([series, str(batch), str(length), *shown, ", ".join(printed)])
    head = ["series", "batch", "length", *map(label, sweep.methods), "the paper, GB"]
    settings = sweep.probe.about["settings"]
    title = f"Peak memory in GiB, {settings['kind']}, {settings['shape']}, {settings['dtype']}"
    return Table(title, head, rows, list(criterion(sweep)))


def criterion(sweep: Sweep) -> Iterator[str]:
    """Yield a sentence for each of AGZO's largest ratios."""
    for other in ("mezo", "inference"):
        if (found := ratio(sweep, "agzo", other)) is not None:
            times, (batch, length) = found
            yield (
                f"This library: AGZO needs at most {times:.4f} times the memory of {label(other)} "
                f"(batch {batch}, length {length})."
            )


def title(at: At) -> str:
    """Name a point in an error."""
    series, method, batch, length = at
    return f"{series} {method}, batch {batch}, length {length},"
