"""Reads list fields of a row: `answers`, `entities`, and the lists inside objects."""

from experiments.tasks.base import Row


def texts(row: Row, field: str, inside: str | None = None) -> tuple[str, ...]:
    """Return the texts that `field` lists, or that the object in `field` lists under `inside`.

    Raises ValueError for anything but a list of at least one text, none of them blank. The texts
    are returned as they are, spaces included.
    """
    value = row[field] if inside is None else row[field].get(inside)
    if not isinstance(value, (list, tuple)) or not value:
        holder = "a list of" if inside is None else f"an object whose {inside!r} lists"
        raise ValueError(f"field {field!r} is {row[field]!r}, allowed: {holder} at least one text")
    for text in value:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"field {field!r} holds {text!r}, allowed: text")
    return tuple(value)
