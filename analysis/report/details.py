"""One run in detail: its numbers, where it was made, its configuration, its steps and its log."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from analysis.reading.agreement import flatten
from analysis.report.curves import Chart, one_run
from analysis.report.runs import RunFolder
from analysis.tables.table import METRIC_NAMES

STEPS = ("step", "forwards", "seconds", "loss", "dev_loss", "dev_score")


@dataclass(frozen=True)
class Detail:
    """What the page opens for one run; `key` is its place in the page, made of no file's words."""

    key: str
    run: RunFolder
    name: str
    place: str  # its folder, as seen from the folder of the page
    chart: Chart | None
    facts: list[tuple[str, str]]
    config: str
    steps: str


def detail(key: str, run: RunFolder, place: str) -> Detail:
    """Collect what there is to say of a run."""
    name = run_name(run, place)
    config = run.config if isinstance(run.config, str) else _settings(run.config or {})
    chart = one_run(run, name)
    return Detail(key, run, name, place, chart, facts(run), config.rstrip(), _steps(run))


def run_name(run: RunFolder, place: str) -> str:
    """Name a run by what it is; one that has no result by its folder."""
    if not run.finished:
        return place
    row = run.row
    return f"{run.method} on {row['task']}, {row['model']}, seed {row['seed']}"


def facts(run: RunFolder) -> list[tuple[str, str]]:
    """List the numbers of a finished run and where they were made; of another, why it has none."""
    if not run.finished:
        return [("state", run.state), ("why", run.why)]
    row, record = run.row, run.record
    metric = METRIC_NAMES[row["metric"]]
    pairs = [
        (f"{metric}, evaluation", f"{100 * row['eval_score']:.2f} % of {row['eval_n']:,}"),
        (f"{metric}, dev", f"{100 * row['dev_score']:.2f} % of {row['dev_n']:,}"),
        ("loss, evaluation", f"{row['eval_loss']:.4f}"),
        ("loss, dev", f"{row['dev_loss']:.4f}"),
        ("chance", _percent(record.get("chance"))),
        ("steps", f"{row['steps']:,}" + _best(row)),
        ("forwards", f"{row['forwards']:,}"),
        ("seconds", f"{row['total_seconds']:,.1f}, {row['train_seconds']:,.1f} of them training"),
        ("peak memory", f"{row['peak_memory_gib']:.2f} GiB, {record.get('peak_memory_kind', '-')}"),
        ("tuned parameters", _count(record.get("tuned_parameters"))),
        (
            "model",
            _listed(record["model"], "name", "source", "class", "parameters", "commit", "sha256"),
        ),
        ("data", _listed(record["data"], "source", "commit", "root", "examples_sha256")),
        ("task version", str(row["task_version"])),
        ("commit (+: with changes)", row["code"]),
        ("machine", _listed(record["machine"])),
        ("versions", _listed(record.get("versions"))),
        ("stream of noise", str(record.get("stream_version") or "-")),
        ("resumed at", str(record.get("resumed_at") or "-").strip("[]")),
    ]
    return [(name, words) for name, words in pairs if words not in ("", "-")]


def _best(row: Mapping[str, Any]) -> str:
    best = row["best_step"]
    return "" if best is None else f", the best on dev at {best:,}"


def _percent(fraction: Any) -> str:
    return f"{100 * fraction:.1f} %" if isinstance(fraction, int | float) else "-"


def _count(number: Any) -> str:
    return f"{number:,}" if isinstance(number, int) else "-"


def _listed(node: Any, *keys: str) -> str:
    """Write some keys of an object, or all, one behind the other; those that say something."""
    if not isinstance(node, Mapping):
        return "-"
    words = [f"{key} {_one(node[key])}" for key in keys or node if node.get(key) not in (None, "")]
    return "; ".join(words)


def _one(item: Any) -> str:
    return f"{item:,}" if isinstance(item, int) and not isinstance(item, bool) else str(item)


def _settings(config: Mapping[str, Any]) -> str:
    """Write a configuration a key a line, as a command line would set it."""
    return "\n".join(f"{key}={_setting(item)}" for key, item in flatten(config).items())


def _setting(item: Any) -> str:
    if item is None:
        return "null"
    return str(item).lower() if isinstance(item, bool) else str(item)


def _steps(run: RunFolder) -> str:
    """Write the logged steps in aligned columns."""
    if not run.points:
        return ""
    rows = [[_step(point, key) for key in STEPS] for point in run.points]
    rows.insert(0, [key.replace("_", " ") for key in STEPS])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def _step(point: Mapping[str, Any], key: str) -> str:
    number = point[key]
    if number is None:
        return "-"
    if key == "seconds":
        return f"{number:.1f}"
    return f"{number:.4f}" if isinstance(number, float) else str(number)
