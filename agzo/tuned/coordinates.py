"""How many coordinates of a model a method moves, and where it looks for a direction in them.

| kind     | a tensor of this kind                                                          |
|----------|--------------------------------------------------------------------------------|
| `basis`  | moves inside a subspace: AGZO, ZO-Act (of activations), LOZO (a random one),   |
|          | or in the rows of a batch's tokens (embeddings="seen")                         |
| `dense`  | moves in each coordinate: Gaussian noise, or a gradient                        |
| `frozen` | does not move                                                                  |

A matrix with a side shorter than r has the rank of that side: it is among the `smaller_ranks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

KINDS = ("basis", "dense", "frozen")


@dataclass(frozen=True)
class Moved:
    """A tensor that a method moves: `inside` a basis, or densely.

    `rank` is that of its directions and `asked` the one that was asked for; None where neither is.
    """

    name: str
    values: int
    inside: bool = False
    rank: int | None = None
    asked: int | None = None


@dataclass
class Coordinates:
    """Tensors and coordinates of each kind."""

    tensors: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    values: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    smaller_ranks: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, values: int) -> None:
        """Count a tensor."""
        self.tensors[kind] += 1
        self.values[kind] += values

    def about(self) -> dict[str, Any]:
        """Return the counts as plain dicts: {"basis": {"tensors": 2, "coordinates": 48}, ...}."""
        counts: dict[str, Any] = {
            kind: {"tensors": self.tensors[kind], "coordinates": self.values[kind]}
            for kind in KINDS
        }
        return counts | {"smaller_ranks": self.smaller_ranks}

    def __str__(self) -> str:
        basis, dense, frozen = (f"{self.values[k]:,} ({self.tensors[k]} tensors)" for k in KINDS)
        said = f"of its coordinates {basis} move in a basis, {dense} densely, {frozen} are frozen"
        if not self.smaller_ranks:
            return said
        name, rank = next(iter(self.smaller_ranks.items()))
        return (
            f"{said}; {len(self.smaller_ranks)} matrices are too small for the rank and have that "
            f"of their shorter side ({name}: {rank})"
        )


def coordinates(model: nn.Module, optimizer: Any) -> Coordinates:
    """Count what an optimizer moves of a model, and what it leaves as it is.

    Any optimizer will do that lists its tensors in `tuned`; one with a method `moved` says of each
    whether it has a basis.
    """
    tuned = [Moved(each.name, each.parameter.numel()) for each in optimizer.tuned]
    moved: Sequence[Moved] = optimizer.moved() if hasattr(optimizer, "moved") else tuned
    found = Coordinates()
    for each in moved:
        found.add("basis" if each.inside else "dense", each.values)
        if each.rank is not None and each.asked is not None and each.rank < each.asked:
            found.smaller_ranks[each.name] = each.rank
    known = {each.name for each in (*tuned, *moved)}
    for name, parameter in model.named_parameters():
        if name not in known:
            found.add("frozen", parameter.numel())
    return found
