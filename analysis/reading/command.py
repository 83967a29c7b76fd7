"""Command lines of this folder: the paths they are given, and how they end.

They end with the lines of what was made, or with one line of what is wrong.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from analysis.reading.load import ResultError


def place(text: str) -> Path:
    """Return the path that a user means: ~ in front stands for a home folder."""
    try:
        return Path(text).expanduser() if text.startswith("~") else Path(text)
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text}: no such user's home folder is here") from error


def report(make: Callable[[], Iterable[object]]) -> int:
    """Print what `make` returns, a line each, and return the exit code."""
    try:
        lines = list(make())
    except (ResultError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(map(str, lines)))
    return 0
