"""Which parameters of a test the default suite takes; the others are in the slow tests."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def quick(values: Iterable[Any], *kept: Any, name: Callable[[Any], str] = str) -> list[Any]:
    """Return the values as parameters by their names, slow but for those that are `kept`."""
    named = [(value, name(value)) for value in values]
    unknown = set(kept) - {found for _, found in named}
    assert not unknown, f"{unknown}: no such parameter"
    return [
        pytest.param(value, id=found, marks=[] if found in kept else pytest.mark.slow)
        for value, found in named
    ]
