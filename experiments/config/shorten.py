"""Values of files in words: shortened for a message, and as they are written."""

import re
import reprlib
from typing import Any

LENGTH = 160  # characters of a value


def _repr() -> reprlib.Repr:
    made = reprlib.Repr()
    made.maxstring = made.maxother = made.maxlong = LENGTH
    made.maxlist = made.maxtuple = made.maxdict = 6
    made.maxlevel = 3  # a value can be nested as deeply as Python can read it
    return made


_REPR = _repr()


def shortened(value: object) -> str:
    """Write a value as `repr` does, with its middle left out where it is long."""
    return clipped(_REPR.repr(value))


def clipped(text: str, length: int = LENGTH) -> str:
    """Return a text in one line, with its middle left out where it is long."""
    line = " ".join(text.split())
    half = length // 2
    return line if len(line) <= length else f"{line[:half]}...{line[-half:]}"


def label_text(value: Any) -> str:
    """Return how a label is written, whatever kind of file it is from: true, 1, 1.5, pos."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def whole(text: str) -> int | None:
    """Return the whole number that a text is, from 0 on; None for any other text."""
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None
