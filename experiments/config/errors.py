"""The error of everything that a user gave and that cannot be used."""


class BadInput(ValueError):
    """Something the user gave cannot be used; the message says what, and what is allowed."""
