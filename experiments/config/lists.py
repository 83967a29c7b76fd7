"""Reading the probes' options: numbers and names, alone or in lists, each error one line."""

from collections.abc import Iterable

from agzo.check import check_number


def whole_numbers(key: str, text: str, least: int = 0) -> list[int]:
    """Read a list such as 0,100,200, ascending."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or numbers != sorted(set(numbers)) or numbers[0] < least:
        raise ValueError(f"{key}={text}: allowed are ascending whole numbers from {least} on: 1,2")
    return numbers


def count(key: str, text: str, least: int = 1) -> int:
    """Read one whole number."""
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"{key}={text}: allowed are whole numbers from {least} on")
    return int(text)


def positive_numbers(key: str, text: str) -> list[float]:
    """Read a list such as 1e-4,1e-3: above 0, ascending."""
    try:
        values = [float(part) for part in text.split(",")]
        for value in values:
            check_number(key, value, above=0.0)
    except ValueError:
        values = []
    if not values or values != sorted(set(values)):
        raise ValueError(f"{key}={text}: allowed are ascending numbers above 0: 1e-4,1e-3")
    return values


def words(key: str, text: str, allowed: Iterable[str]) -> list[str]:
    """Read a list of names, each once; `all` is every one of them."""
    known = list(allowed)
    names = known if text == "all" else text.split(",")
    if any(name not in known for name in names) or len(set(names)) < len(names):
        raise ValueError(f"{key}={text}: allowed are, each once, {', '.join(known)}; or all")
    return names
