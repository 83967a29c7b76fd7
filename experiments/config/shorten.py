"""Values in messages: one line that can be read, whatever a file holds."""

import reprlib

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
