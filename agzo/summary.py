"""What an optimizer moves, and what a step and its state cost, before a step is taken.

| kind     | a tensor of this kind moves                                                  |
|----------|------------------------------------------------------------------------------|
| `basis`  | inside a subspace, see `agzo.tuned.coordinates`                                    |
| `dense`  | in each coordinate                                                           |
| `seen`   | on the rows of a batch's tokens (embeddings="seen"); counted is the table    |
| `frozen` | not at all                                                                   |

A model whose linear layers are not `nn.Linear` shows them in the first step (`agzo.tuned.roles`);
before it they count as dense.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from agzo.torch_calls.inputs import is_low_precision
from agzo.tuned.coordinates import coordinates

WORDS = {"basis": "in a basis", "dense": "dense", "seen": "rows seen", "frozen": "frozen"}


@dataclass(frozen=True)
class Summary:
    """Tensors and coordinates by what they get, and costs; `about` is all of it as plain values."""

    method: str
    tensors: dict[str, int]
    coordinates: dict[str, int]
    smaller_ranks: dict[str, int]
    """Matrices too small for the rank, and the one that they have."""
    forwards_per_step: int
    """Of a step that takes new bases; other steps of a two-sided method take one less."""
    state_bytes: int
    """Of the optimizer's tensors, at most: layers that share an input share a basis."""

    def about(self) -> dict[str, Any]:
        """Return the fields as a dict of plain values."""
        return asdict(self)

    def __str__(self) -> str:
        moved = ", ".join(
            f"{self.coordinates[kind]:,} {word} ({self.tensors[kind]} tensors)"
            for kind, word in WORDS.items()
            if self.tensors[kind]
        )
        return f"{self.method}: {moved}; {self.costs}"

    @property
    def costs(self) -> str:
        """What a step and the state cost, in words."""
        unit, size = ("MiB", 2**20) if self.state_bytes >= 2**20 else ("KiB", 2**10)
        state = f"{self.state_bytes / size:,.3g} {unit} of state"
        return f"{self.forwards_per_step} forwards a step, {state}"


def summary(optimizer: Any) -> Summary:
    """Return the summary of a `ZeroOrderOptimizer` as it stands."""
    found = coordinates(optimizer.model, optimizer)
    tensors, values = {**found.tensors, "seen": 0}, {**found.values, "seen": 0}
    if optimizer.embeddings == "seen":
        tables = [e.parameter.numel() for e in optimizer.tuned if e.role == "embedding"]
        for counts, count in ((tensors, len(tables)), (values, sum(tables))):
            counts["seen"] += count
            counts["basis"] -= count
    return Summary(
        type(optimizer).__name__,
        {kind: tensors[kind] for kind in WORDS},
        {kind: values[kind] for kind in WORDS},
        found.smaller_ranks,
        optimizer.forwards_per_step,
        _state_bytes(optimizer),
    )


def _state_bytes(optimizer: Any) -> int:
    """Count moments (with the factor they are for), bases, float32 copies, and the scalar."""
    moments, sampler = optimizer._moments, optimizer._sampler
    count = 8 if optimizer.update == "scalar" else 0
    for each in optimizer.tuned:
        held = sampler.kept(each) if moments is None else moments.size(*sampler.sizes(each))
        master = optimizer.rounding == "master" and is_low_precision(each.parameter.dtype)
        count += 4 * (held + (each.parameter.numel() if master else 0))
    return count
