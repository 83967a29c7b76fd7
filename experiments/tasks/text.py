"""What is no text: nothing to see, or half a character."""

import unicodedata

from experiments.config.shorten import shortened

INVISIBLE = {"Cc", "Cf"}  # control and format characters: a zero-width space is one


def blank(text: str) -> bool:
    """Tell whether a text has nothing that can be seen."""
    return all(char.isspace() or unicodedata.category(char) in INVISIBLE for char in text)


def check_whole(field: str, text: str) -> None:
    """Raise ValueError for a text of a row that holds half of a surrogate pair.

    JSON can write one, as programs do that cut an emoji in two; no tokenizer can read it.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half, at = text[error.start], error.start + 1
        raise ValueError(
            f"field {field!r} holds {half!r} at character {at}, half of a surrogate pair (an emoji "
            f"cut in two?), in {shortened(text)}, allowed: whole characters"
        ) from error
