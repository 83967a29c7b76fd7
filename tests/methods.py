"""The one list of zeroth-order methods: every rule in test_rules.py runs over all of it.

Adding a method to the tests is one line here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from torch import nn

from agzo import AGZO, ZeroOrderOptimizer
from baselines import LOZO, LOZOM, MeZO
from tests.networks import NETWORKS


@dataclass(frozen=True)
class Method:
    name: str
    optimizer: Callable[..., ZeroOrderOptimizer]
    options: dict[str, Any] = field(default_factory=dict)
    networks: tuple[str, ...] = tuple(NETWORKS)  # on which the rules of every network are run

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
    # Other updates and other choices of AGZO, for time on one network each. The momentum is small
    # so that a step shows its own estimate, and the networks are too small for small moments.
    Method(
        "lozo-m",
        LOZOM,
        {"refresh_every": 3, "momentum": 0.5, "large_state": True},
        ("llama-untied",),
    ),
    Method(
        "agzo-momentum-lagged",
        AGZO,
        {
            **{"rank": 2, "refresh_every": 3, "lagged": True, "estimator": "two_sided"},
            **{"update": "momentum", "momentum": 0.5, "large_state": True},
        },
        ("opt-tied",),
    ),
    Method("mezo-adam-large", MeZO, {"update": "adam", "large_state": True}, ("qwen3-tied",)),
    Method(
        "agzo-exact-once-q2",
        AGZO,
        {"basis": "exact", "refresh_every": None, "scale": "mezo", "queries": 2},
        ("qwen3-untied",),
    ),
    Method("agzo-isotropic-lagged", AGZO, {"isotropic": 0.3, "lagged": True}, ("mlp",)),
]
EXECUTIONS = ["side_branch", "in_place"]

every_method = pytest.mark.parametrize("method", METHODS, ids=str)
every_method_and_network = pytest.mark.parametrize(
    ("method", "network"),
    [pytest.param(m, network, id=f"{m}-{network}") for m in METHODS for network in m.networks],
)
