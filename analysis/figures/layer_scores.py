"""Where activation outliers begin: each layer's scores, as the runs of a one-layer method saw them.

A panel for each model; every score is divided by its detector's threshold, so that one line is the
threshold of all. The layer that was tuned is ringed.

    python -m analysis.figures.layer_scores RESULT [RESULT ...] --out STEM     (files or folders)
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figures.style import COLUMN_INCHES, RC, TEXT_INCHES, MethodStyle
from analysis.reading.command import place, report
from analysis.reading.load import ResultError, read_result, result_paths, value
from analysis.reading.probe import code, device, write_figure
from analysis.tables.table import SANITY

DETECTORS = {
    "massive_activations": MethodStyle("massive activations", "#D55E00", "-", "o"),
    "super_weight": MethodStyle("super weight", "#0072B2", (0, (4, 1.5)), "^"),
    "first_token": MethodStyle("first token's norm", "#009E73", (0, (1, 1)), "s"),
}
MOST_PANELS = 6


@dataclass(frozen=True)
class Scan:
    """What one run says of its scan."""

    model: str
    layer: int
    given: bool
    detector: str
    found: dict[str, Any]
    relative: dict[str, list[float]]  # score / threshold, a number per layer
    batches: int
    record: dict[str, Any]


def read(path: Path) -> Scan:
    """Read the scan of a finished run; a run that has none is an error."""
    record = read_result(path)
    study = value(record, "study", (dict, type(None)), path)
    if study is None:
        raise ResultError(
            f"{path}: key study is null; expected a scan (method=dominant_layer with "
            "method.scan_batches of 1 or more)"
        )
    count = value(record, "study.layers", (int,), path)
    relative = {}
    for name in DETECTORS:
        threshold = value(record, f"study.thresholds.{name}", (int, float), path)
        scores = value(record, f"study.scores.{name}", (list,), path)
        if len(scores) != count:
            raise ResultError(f"{path}: study.scores.{name} has {len(scores)} of {count} layers")
        relative[name] = [score / threshold for score in scores]
    return Scan(
        value(record, "model.name", (str,), path),
        value(record, "study.layer", (int,), path),
        value(record, "study.given", (bool,), path),
        value(record, "study.detector", (str,), path),
        value(record, "study.found", (dict,), path),
        relative,
        value(record, "study.batches", (int,), path),
        record,
    )


def draw(sources: Sequence[Path], stem: Path) -> list[Path]:
    """Draw the figure of some runs; return the paths of the PNG, the PDF and the caption."""
    scans = [read(path) for path in result_paths(list(sources))]
    models = list(dict.fromkeys(scan.model for scan in scans))
    if len(models) > MOST_PANELS:
        raise ResultError(f"{len(models)} models ({', '.join(models)}): allowed are {MOST_PANELS}")
    columns = min(3, len(models))
    rows = -(-len(models) // columns)
    width = COLUMN_INCHES if columns == 1 else TEXT_INCHES
    with mpl.rc_context(RC):
        figure = Figure(figsize=(width, 0.4 + 1.9 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, model in zip(panels, models, strict=False):
            _panel(axes, [scan for scan in scans if scan.model == model], model)
        for axes in panels[len(models) :]:
            axes.remove()
        panels[0].set_ylabel("score / threshold")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside upper center", ncols=2 if columns == 1 else 4,
            frameon=False,
        )  # fmt: skip
        return write_figure(figure, stem, caption(scans))


def _panel(axes: Axes, scans: list[Scan], model: str) -> None:
    for number, scan in enumerate(scans):
        for name, look in DETECTORS.items():
            axes.plot(
                range(len(scan.relative[name])), scan.relative[name], color=look.colour,
                linestyle=look.line, marker=look.marker, linewidth=0.9, markersize=2.5,
                label=None if number else look.label,
            )  # fmt: skip
        axes.plot(
            scan.layer, scan.relative[scan.detector][scan.layer], marker="o", markersize=9,
            markerfacecolor="none", markeredgecolor="black", linestyle="none",
            label=None if number else "tuned layer",
        )  # fmt: skip
    axes.axhline(1.0, color="black", linewidth=0.7, linestyle=(0, (3, 2)))
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_xlabel("layer")
    axes.set_title(model, loc="left")


def caption(scans: Sequence[Scan]) -> list[str]:
    """Return the caption, one paragraph a line."""
    lines = [
        "Scores of each layer before training; above the dashed line a layer is an outlier, and "
        "the first one is what a detector chooses. Massive activations: largest |activation| "
        "behind the layer, over 100 and over 1000 times its median, the smaller of the two. Super "
        "weight: input and output of the layer's last matrix, each over its median over layers, "
        "the smaller of the two, threshold 10. First token: its norm over the median token's, "
        "threshold 10. Padding is left out."
    ]
    for scan in scans:
        record = scan.record
        found = ", ".join(
            f"{DETECTORS[name].label} {'none' if scan.found.get(name) is None else at}"
            for name, at in scan.found.items()
        )
        config = record["config"]
        chosen = "as given" if scan.given else f"chosen by {DETECTORS[scan.detector].label}"
        pocket = f" {SANITY}" if record.get("pocket") else ""
        lines.append(
            f"{scan.model}: {scan.batches} batches of {config['train']['batch_size']}, task "
            f"{record['task']}, seed {record['seed']}, {config['precision']['dtype']}; first "
            f"outlier layer: {found}; tuned: layer {scan.layer}, {chosen}. Device: "
            f"{device(record)}. Code: {code(record)}.{pocket}"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the figure of some runs and print the paths of what was written."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.figures.layer_scores", description=__doc__
    )
    parser.add_argument("results", type=place, nargs="+", help="result.json files, or folders")
    parser.add_argument("--out", type=place, required=True, help="path of the figure, no suffix")
    options = parser.parse_args(arguments)
    return report(lambda: draw(options.results, options.out))


if __name__ == "__main__":
    raise SystemExit(main())
