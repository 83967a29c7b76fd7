"""Reads list fields of a row: `answers`, `entities`, and the lists inside objects."""

from experiments.config.shorten import shortened
from experiments.tasks.base import Row
from experiments.tasks.text import blank, check_whole


def texts(row: Row, field: str, inside: str | None = None) -> tuple[str, ...]:
    """Return the texts that `field` lists, or that the object in `field` lists under `inside`.

    Raises ValueError for anything but a list of at least one text, none of them blank. The texts
    are returned as they are, spaces included.
    """
    value = row[field] if inside is None else row[field].get(inside)
    if not isinstance(value, (list, tuple)) or not value:
        holder = "a list of" if inside is None else f"an object whose {inside!r} lists"
        raise ValueError(
            f"field {field!r} is {shortened(row[field])}, allowed: {holder} at least one text"
        )
    for text in value:
        if not isinstance(text, str) or blank(text):
            raise ValueError(f"field {field!r} holds {shortened(text)}, allowed: text")
        check_whole(field, text)
    return tuple(value)
