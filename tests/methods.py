"""The one list of zeroth-order methods: every rule in test_rules.py runs over all of it.

Adding a method to the tests is one line here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from agzo import AGZO, ZeroOrderOptimizer
from baselines import LOZO, DominantLayer, MeZO
from tests.networks import NETWORKS, Network, stack


@dataclass(frozen=True)
class Method:
    name: str
    optimizer: Callable[..., ZeroOrderOptimizer]
    options: dict[str, Any] = field(default_factory=dict)

    def make(self, model: nn.Module, **options: Any) -> ZeroOrderOptimizer:
        return self.optimizer(model, **{"lr": 1e-3, "eps": 1e-3, **self.options, **options})

    def network(self, name: str, dtype: torch.dtype = torch.float32) -> Network:
        """A network by its name; one with layers instead of "mlp" for a method that needs them."""
        return (stack if name == "mlp" and self.one_layer else NETWORKS[name])(dtype)

    @property
    def one_layer(self) -> bool:
        return issubclass(self.optimizer, DominantLayer)  # pyright: ignore[reportArgumentType]

    def tunes(self, name: str) -> bool:
        """Whether this parameter may move."""
        return not self.one_layer or f"layers.{self.options['layer']}." in name

    def __str__(self) -> str:
        return self.name


METHODS = [
    Method("agzo", AGZO),
    Method("agzo-prototype", AGZO, {"estimator": "two_sided", "include_padding": True}),
    Method("agzo-r2-lagged-q2", AGZO, {"rank": 2, "refresh_every": 3, "queries": 2}),
    Method("mezo", MeZO),
    Method("mezo-one-sided-q3", MeZO, {"estimator": "one_sided", "queries": 3}),
    Method("lozo", LOZO, {"refresh_every": 3}),
    Method("dominant-layer", DominantLayer, {"layer": 1, "scan_batches": 0}),
    Method("dominant-layer-agzo", DominantLayer, {"layer": 1, "scan_batches": 0, "base": "agzo"}),
]
EVERYTHING = [method for method in METHODS if not method.one_layer]  # those that tune all weights
EXECUTIONS = ["side_branch", "in_place"]
