"""How a figure's command line ends: the lines of what was made, or one line of what is wrong."""

import sys
from collections.abc import Callable, Iterable

from analysis.load import ResultError


def report(make: Callable[[], Iterable[object]]) -> int:
    """Print what `make` returns, a line each, and return the exit code."""
    try:
        lines = list(make())
    except (ResultError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(map(str, lines)))
    return 0
