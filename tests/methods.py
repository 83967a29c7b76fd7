"""The one list of zeroth-order methods: every rule in test_rules.py runs over all of it.

Adding a method to the tests is one line here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from agzo import AGZO, ZeroOrderOptimizer
from baselines import LOZO, DominantLayer, MeZO, ZOAct
from tests.networks import NETWORKS, Network, stack


@dataclass(frozen=True)
class Method:
    name: str
    optimizer: Callable[..., ZeroOrderOptimizer]
    options: dict[str, Any] = field(default_factory=dict)
    part: str = ""  # what the names of the tuned parameters hold; "": all of the model's own

    def make(self, net: Network, **options: Any) -> ZeroOrderOptimizer:
        """Construct the method on a network and let it study its batch, if it wants to."""
        given = {"lr": 1e-3, "eps": 1e-3, **self.options, **options}
        optimizer = self.optimizer(net.model, **given)
        if optimizer.studies:
            optimizer.study([(net.closure, net.token_mask)] * optimizer.studies)
        return optimizer

    def network(self, name: str, dtype: torch.dtype = torch.float32) -> Network:
        """A network by its name; one with layers instead of "mlp" for a method that needs them."""
        return (stack if name == "mlp" and self.one_layer else NETWORKS[name])(dtype)

    @property
    def one_layer(self) -> bool:
        return issubclass(self.optimizer, DominantLayer)  # pyright: ignore[reportArgumentType]

    def tunes(self, name: str) -> bool:
        """Whether this parameter may move."""
        return self.part in name

    def __str__(self) -> str:
        return self.name


METHODS = [
    Method("agzo", AGZO),
    Method("agzo-prototype", AGZO, {"estimator": "two_sided", "include_padding": True}),
    Method("agzo-r2-lagged-q2", AGZO, {"rank": 2, "refresh_every": 3, "queries": 2}),
    Method("mezo", MeZO),
    Method("mezo-one-sided-q3", MeZO, {"estimator": "one_sided", "queries": 3}),
    Method("lozo", LOZO, {"refresh_every": 3}),
    Method("zo_act", ZOAct, {"update": "sgd", "calibration_batches": 1}, "zo_act"),
    Method(
        "zo_act-r3-one-sided-q2",
        ZOAct,
        {"update": "sgd", "rank": 3, "estimator": "one_sided", "queries": 2},
        "zo_act",
    ),
    Method("dominant-layer", DominantLayer, {"layer": 1, "scan_batches": 0}, "layers.1."),
    Method(
        "dominant-layer-agzo",
        DominantLayer,
        {"layer": 1, "scan_batches": 0, "base": "agzo"},
        "layers.1.",
    ),
]
EVERYTHING = [method for method in METHODS if not method.part]  # those that tune all weights
EXECUTIONS = ["side_branch", "in_place"]
