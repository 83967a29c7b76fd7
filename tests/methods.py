"""The one list of zeroth-order methods: every rule in test_rules.py runs over all of it.

Adding a method to the tests is one line here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from agzo import AGZO, ZeroOrderOptimizer
from baselines import LOZO, MeZO


@dataclass(frozen=True)
class Method:
    name: str
    optimizer: Callable[..., ZeroOrderOptimizer]
    options: dict[str, Any] = field(default_factory=dict)

    def make(self, model: nn.Module, **options: Any) -> ZeroOrderOptimizer:
        return self.optimizer(model, **{"lr": 1e-3, "eps": 1e-3, **self.options, **options})

    def __str__(self) -> str:
        return self.name


METHODS = [
    Method("agzo", AGZO),
    Method("agzo-prototype", AGZO, {"estimator": "two_sided", "include_padding": True}),
    Method("agzo-r2-lagged-q2", AGZO, {"rank": 2, "refresh_every": 3, "queries": 2}),
    Method("mezo", MeZO),
    Method("mezo-one-sided-q3", MeZO, {"estimator": "one_sided", "queries": 3}),
    Method("lozo", LOZO, {"refresh_every": 3}),
]
EXECUTIONS = ["side_branch", "in_place"]
