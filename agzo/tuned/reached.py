"""What a batch does not reach: experts that none of its tokens chooses, weights that nothing uses.

Both look alike in one forward. What tells them apart is the company: a parameter that nothing used,
while the same parameter of another member of its `nn.ModuleList` was used, belongs to an expert (or
a layer) that this batch passes by. It waits: it is neither perturbed nor moved until a batch has
reached it for the first time. Any other one that nothing uses is an error, see
`agzo.execution.loss_check`.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def passed_by(model: nn.Module, unused: Iterable[str], used: Iterable[str]) -> list[str]:
    """Return those of the unused parameters whose like in another member of a list is used."""
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    in_use = {place for name in used for place in _places(lists, name)}
    return [name for name in unused if in_use & _places(lists, name)]


def _places(lists: Iterable[str], name: str) -> set[tuple[str, str]]:
    """Return (list, name inside of its member) for each list that holds a parameter."""
    found: set[tuple[str, str]] = set()
    for each in lists:
        start = f"{each}." if each else ""
        if name.startswith(start):
            found.add((each, name.removeprefix(start).partition(".")[2]))
    return found
