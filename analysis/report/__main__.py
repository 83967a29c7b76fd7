"""Write the page of a folder of runs, of a suite, or of several of them.

python -m analysis.report FOLDER [--out FILE]          (make report RESULTS=FOLDER)
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from analysis.reading.command import place, report
from analysis.report.page import read, render

NAME = "report.html"


def write(folder: Path, out: Path) -> list[str]:
    """Write the page; return what it holds and its path, a line each."""
    page = read(folder)
    text = render(page)
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f".{out.name}.tmp")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, out)
    runs = [f"{number:,} {state}" for state, number in page.counts]
    return [
        f"page of results: {', '.join(runs) or 'no runs'}; {page.gaps} gaps in tables",
        str(out),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page and print its path."""
    parser = argparse.ArgumentParser(prog="python -m analysis.report", description=__doc__)
    parser.add_argument("folder", type=place, help="a folder with runs or suites below it")
    parser.add_argument("--out", type=place, help=f"the page's file (default: FOLDER/{NAME})")
    options = parser.parse_args(arguments)
    return report(lambda: write(options.folder, options.out or options.folder / NAME))


if __name__ == "__main__":
    raise SystemExit(main())
