"""What `progress` measures: methods, ranks, and parts of the model."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from agzo.tuned.linears import body_linears, held

SCOPES = ("linear", "all", "roles", "depths")


@dataclass(frozen=True)
class Case:
    """What is measured: a method, what it perturbs, and the rank of AGZO's bases."""

    scope: str
    method: str
    rank: int
    embeddings: str
    most: int

    @property
    def label(self) -> dict[str, Any]:
        """The columns that name it in a table."""
        return {
            "scope": self.scope, "method": self.method, "rank": self.rank,
            "embeddings": self.embeddings,
        }  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a parameter belongs: its role among the weights, and its decoder layer from 0."""

    role: str
    depth: int | None


def places(model: nn.Module) -> dict[nn.Parameter, Place]:
    """Map each parameter to its role and depth."""
    linear = {id(held(layer)): name for name, layer in body_linears(model).items()}
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    found = {}
    for name, parameter in model.named_parameters():
        numbers = [int(word) for word in name.split(".") if word.isdecimal()]
        role = "embedding" if id(parameter) in tables else "rest"
        if id(parameter) in linear:
            role = linear[id(parameter)].rpartition(".")[2]
        found[parameter] = Place(role, numbers[0] if numbers else None)
    return found


def scopes(model: nn.Module, depths: int) -> dict[str, Callable[[Place], bool]]:
    """Return each scope by name, as a test of a parameter's place."""
    known = places(model).values()
    roles = list(dict.fromkeys(p.role for p in known))
    body = [role for role in roles if role not in ("embedding", "rest")]
    found: dict[str, Callable[[Place], bool]] = {
        "linear": lambda place: place.role in body,
        "all": lambda place: True,
    }
    for role in roles:
        found[f"role {role}"] = lambda place, role=role: place.role == role
    layers = 1 + max((p.depth for p in known if p.depth is not None), default=-1)
    for part in range(min(depths, layers)):
        low, high = layers * part // depths, layers * (part + 1) // depths
        own = range(low, high)
        name = f"depth {low}-{high - 1}"
        found[name] = lambda p, own=own: p.role in body and p.depth in own
    return found


def cases(
    names: Sequence[str],
    chosen: Sequence[str],
    methods: Sequence[str],
    ranks: Sequence[int],
    most: int,
    few: int,
) -> list[Case]:
    """List the cases: every method and rank for `linear`, ways with the embedding for `all`."""
    made = []
    for method in methods if "linear" in chosen else ():
        for rank in ranks if method == "agzo" else ranks[:1]:
            made.append(Case("linear", method, rank, "frozen", most))
    if "all" in chosen:
        ways = itertools.product(methods, ("tuned", "seen"))
        made += [Case("all", method, ranks[0], way, most) for method, way in ways]
    for name in names:
        kind = name.partition(" ")[0]
        if f"{kind}s" in chosen:
            embeddings = "seen" if name == "role embedding" else "tuned"
            one = [m for m in methods if m == "mezo" or (m == "agzo" and name != "role rest")]
            made += [Case(name, method, ranks[0], embeddings, few) for method in one]
    return made
