"""JSON lines: one object a line, in UTF-8. What is none is named by file, line and reason.

A byte order mark, any line ends and blank lines are fine. A field that is there twice is not: which
of the two was meant? Nothing of a file but what can be read in one line goes into a message.
"""

import codecs
import json
from collections.abc import Iterator
from typing import Any

from experiments.config.shorten import clipped, shortened

NEEDED = "needed: JSON lines in UTF-8, one object a line"

# How other kinds of files begin; a longer mark stands before the mark that it begins with.
OTHERS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
    b"\x1f\x8b": "compressed by gzip",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ\x00": "compressed by xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself (git lfs pull gets it)",
}


def objects(content: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the number of each line that is not blank and the value it holds.

    Raises ValueError that says where and why, for the whole file or a line of it.
    """
    refuse_other_kinds(content)
    if _array(content):
        raise ValueError(f": it is one JSON array; {NEEDED}")
    for number, line in enumerate(content.splitlines(), start=1):
        if line.removeprefix(codecs.BOM_UTF8).strip():
            yield number, _value(number, line)


def array(content: bytes) -> list[Any] | None:
    """Return the values of a file that is one JSON array, None for any other.

    Raises ValueError where it cannot be read.
    """
    if not _array(content):
        return None
    try:
        return json.loads(content.decode("utf-8-sig"), object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        said = f"{error.msg.removesuffix(' at')}, line {error.lineno}, column {error.colno}"
        raise ValueError(f": no JSON array ({said})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f": no JSON array ({clipped(str(error))})") from error


def refuse_other_kinds(content: bytes, needed: str = NEEDED) -> None:
    """Raise ValueError that says what a file is, if it is not text in UTF-8."""
    for mark, kind in OTHERS.items():
        if content.startswith(mark):
            raise ValueError(f": it is {kind}; {needed}")
    if b"\0" in content[:4]:  # in UTF-16 or UTF-32 every character has them
        raise ValueError(f": no UTF-8 (it begins with {content[:4]!r}; is it UTF-16?); {needed}")


def _array(content: bytes) -> bool:
    """Tell whether a file is one JSON array, in one line or in many."""
    text = content.removeprefix(codecs.BOM_UTF8).strip()
    first, _, others = text.partition(b"\n")
    return text[:1] == b"[" and text[-1:] == b"]" and (not others or not first.endswith(b"]"))


def _value(number: int, line: bytes) -> Any:
    shown: bytes | str = line
    try:
        shown = line.decode("utf-8-sig")
        return json.loads(shown, object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        reason = f"byte 0x{line[error.start]:02x} at column {error.start + 1} is no UTF-8"
        shown = line[max(0, error.start - 40) : error.start + 40]
    except json.JSONDecodeError as error:
        reason = f"{error.msg.removesuffix(' at')}, column {error.colno}"
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as error:  # a field twice, or a number of thousands of digits
        reason = clipped(str(error))
    raise ValueError(f" line {number}: not a JSON object ({reason}): {shortened(shown)}; {NEEDED}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its fields."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"field {shortened(twice)} is there {names.count(twice)} times")
    return made
