"""Paths that a user writes: ~ and ~user in front stand for a home folder.

A shell replaces them at the beginning of a word alone, so that `out=~/runs` and `--out=~/runs`
reach the program as they are.
"""

import argparse
import re
from pathlib import Path

_UNQUOTED_HOME = re.compile(r"([^=]+)=(~[\w./+-]*)")
_TEMPLATE = re.compile(r"(\+{0,2}task\.prompt)=(?!null$|(['\"]).*\2$)(.+)", re.DOTALL)


class NoHome(ValueError, argparse.ArgumentTypeError):
    """A ~user that is no user of this machine."""


def home(text: str) -> str:
    """Return the path that a user means; raises NoHome. conf/ asks for it as ${home:...}."""
    if not text.startswith("~"):  # ./~ is a folder of that name
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError as error:
        raise NoHome(
            f"{text}: {Path(text).parts[0]} is no user's home folder here; allowed is another "
            f"path, or ./{text} for a folder of that name"
        ) from error


def user_path(text: str | Path) -> Path:
    """Return `home` as a path."""
    return Path(home(str(text)))


def quoted(word: str) -> str:
    """Return an override as Hydra reads it: in its grammar a value with ~ stands in quotes.

    So does a prompt, with its braces, commas and question marks.
    """
    if template := _TEMPLATE.fullmatch(word):
        text = re.sub(r'(\\*)("|\Z)', lambda at: at[1] * 2 + at[2].replace('"', '\\"'), template[3])
        return f'{template[1]}="{text}"'
    return _UNQUOTED_HOME.sub(r'\1="\2"', word) if _UNQUOTED_HOME.fullmatch(word) else word
