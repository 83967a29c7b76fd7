"""The one list of zeroth-order methods: every rule in test_rules.py runs over all of it.

Adding a method to the tests is one line here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from agzo import AGZO, ZeroOrderOptimizer
from agzo.distributed.pieces import Piece
from baselines import (
    AIMZO,
    FZOO,
    GRZO,
    LOZO,
    LOZOM,
    ConMeZO,
    DeepZero,
    HiZOO,
    MeZO,
    SubZero,
    ZOAct,
    ZOMuon,
    on_dominant_layer,
)
from baselines.reference import msign
from tests.networks import NETWORKS, Network, stack


class InPieces(ZeroOrderOptimizer):
    """Takes a closure for a batch of three micro-batches that are alike."""

    def _measured(self, closure: Any, mask: Any) -> Any:
        return super()._measured(_in_pieces(closure, mask), None)

    def estimate(self, closure: Any, token_mask: Any = None, step: int | None = None) -> Any:
        return super().estimate(_in_pieces(closure, token_mask), None, step)


def _in_pieces(closure: Any, mask: Any) -> Any:
    return [Piece(closure, mask)] * 3 if callable(closure) else closure


class GRZOInPieces(InPieces, GRZO): ...


class AGZOInPieces(InPieces, AGZO): ...


@dataclass(frozen=True)
class Method:
    name: str
    optimizer: Callable[..., ZeroOrderOptimizer]
    options: dict[str, Any] = field(default_factory=dict)
    part: str = ""  # what the names of the tuned parameters hold; "": all of the model's own
    networks: tuple[str, ...] = tuple(NETWORKS)  # on which the rules of every network are run
    becomes: Callable[[torch.Tensor], torch.Tensor] | None = None  # of a weight's whole estimate
    rounding: float = 1e-6  # how far the change may be off by, as a part of its largest number
    pieces: int = 1  # how often a closure is called for a forward
    some: bool = False  # whether it moves some of the tensors in a step
    unit: float = 1.0  # in which a rule's lr is given, for a method whose steps are longer

    def make(self, net: Network, **options: Any) -> ZeroOrderOptimizer:
        """Construct the method on a network and calibrate it on its batch, if it wants to."""
        given = {"lr": 1e-3, "eps": 1e-3, **self.options, **options}
        given["lr"] *= self.unit
        optimizer = self.optimizer(net.model, **given)
        if optimizer.wants_batches:
            optimizer.calibrate([(net.closure, net.token_mask)] * optimizer.wants_batches)
        return optimizer

    def network(self, name: str, dtype: torch.dtype = torch.float32) -> Network:
        """A network by its name; one with layers instead of "mlp" for a method that needs them."""
        return (stack if name == "mlp" and self.one_layer else NETWORKS[name])(dtype)

    @property
    def kind(self) -> Any:
        """The method's own class, without what takes pieces here; or what makes it."""
        made = self.optimizer
        return made.__mro__[2] if isinstance(made, type) and issubclass(made, InPieces) else made

    @property
    def one_layer(self) -> bool:
        return self.optimizer is on_dominant_layer

    def tunes(self, name: str) -> bool:
        """Whether this parameter may move."""
        return self.part in name

    def __str__(self) -> str:
        return self.name


TWO = ("qwen3-tied", "llama-untied")  # for time: with a tied head, and without

METHODS = [
    Method("agzo", AGZO),
    Method("agzo-prototype", AGZO, {"estimator": "two_sided", "include_padding": True}),
    Method("agzo-r2-every3-q2", AGZO, {"rank": 2, "refresh_every": 3, "queries": 2}),
    Method("agzo-seen", AGZO, {"embeddings": "seen"}, networks=("llama-untied", "opt-tied")),
    Method("mezo", MeZO),
    Method("mezo-seen", MeZO, {"embeddings": "seen"}, networks=("qwen3-tied",)),
    Method("mezo-one-sided-q3", MeZO, {"estimator": "one_sided", "queries": 3}),
    Method("lozo", LOZO, {"refresh_every": 3}),
    Method("fzoo", FZOO, {"queries": 3}, unit=1e-3, networks=TWO),
    Method("hizoo", HiZOO, {"curvature_rate": 0.1, "large_state": True}, networks=TWO),
    Method("conmezo", ConMeZO, {"theta": 1.0, "large_state": True}, networks=TWO),
    Method("subzero", SubZero, {"rank": 2, "refresh_every": 3, "queries": 2}, networks=TWO),
    Method(
        "zo_muon",
        ZOMuon,
        {"rank": 2, "refresh_every": 3, "vector_rate": 1e-2},
        becomes=lambda E: msign(E) if E.dim() == 2 else 1e-2 * E,
        networks=TWO,
        rounding=1e-4,  # small singular values, with their rounding, are magnified 485 times
    ),
    Method(
        "aim_zo",
        AIMZO,
        {"rank": 4, "active": 3, "leading": 1, "queries": 3, "eps_steps": 6},
        networks=TWO[1:],
    ),
    Method("grzo", GRZOInPieces, {"accumulation": 3}, unit=1e-3, networks=TWO[:1], pieces=3),
    Method(
        "agzo-per-piece",
        AGZOInPieces,
        {"estimator": "per_piece", "update": "spread", "accumulation": 3},
        networks=("opt-tied",),
        unit=1e-3,
        pieces=3,
    ),
    Method(
        "deepzero",
        DeepZero,
        {"queries": 5, "density": 0.5, "score_queries": 2},
        becomes=lambda E: 5 * E,
        networks=TWO[:1],
        some=True,
    ),
    Method("zo_act", ZOAct, {"update": "sgd", "calibration_batches": 1}, part="zo_act"),
    Method(
        "zo_act-r3-one-sided-q2",
        ZOAct,
        {"update": "sgd", "rank": 3, "estimator": "one_sided", "queries": 2},
        part="zo_act",
    ),
    Method("dominant-layer", on_dominant_layer, {"layer": 1, "scan_batches": 0}, part="layers.1."),
    Method(
        "dominant-layer-agzo",
        on_dominant_layer,
        {"layer": 1, "scan_batches": 0, "base": "agzo"},
        part="layers.1.",
    ),
    # Other updates and other choices of AGZO, for time on one network each. The momentum is small
    # so that a step shows its own estimate, and the networks are too small for small moments.
    Method(
        "lozo-m",
        LOZOM,
        {"refresh_every": 3, "momentum": 0.5, "large_state": True},
        networks=("llama-untied",),
    ),
    Method(
        "agzo-momentum-every3",
        AGZO,
        {
            **{"rank": 2, "refresh_every": 3, "estimator": "two_sided"},
            **{"update": "momentum", "momentum": 0.5, "large_state": True},
        },
        networks=("opt-tied",),
    ),
    Method(
        "mezo-adam-large", MeZO, {"update": "adam", "large_state": True}, networks=("qwen3-tied",)
    ),
    Method(
        "agzo-exact-once-q2",
        AGZO,
        {"basis": "exact", "refresh_every": None, "queries": 2},
        networks=("qwen3-untied",),
    ),
    Method(
        "dominant-layer-lozo-m",
        on_dominant_layer,
        {
            **{"layer": 1, "scan_batches": 0, "base": "lozo_m", "refresh_every": 3},
            **{"momentum": 0.5, "large_state": True},
        },
        part="layers.1.",
        networks=("mlp", "llama-untied"),
    ),
    Method(
        "dominant-layer-agzo-momentum",
        on_dominant_layer,
        {
            **{"layer": 1, "scan_batches": 0, "base": "agzo", "estimator": "two_sided"},
            **{"update": "momentum", "momentum": 0.5, "large_state": True},
        },
        part="layers.1.",
        networks=("qwen3-tied",),
    ),
    Method(
        "zo_act-adam",
        ZOAct,
        {"rank": 2, "calibration_batches": 1, "large_state": True},
        part="zo_act",
        networks=("qwen3-tied",),
    ),
    Method("mezo-signs", MeZO, {"noise": "rademacher"}, networks=("opt-tied",)),
    Method(
        "agzo-seen-signs",
        AGZO,
        {"embeddings": "seen", "noise": "rademacher", "estimator": "two_sided"},
        networks=("qwen3-tied",),
    ),
    Method("mezo-scalar", MeZO, {"update": "scalar", "queries": 2}, networks=("qwen3-tied",)),
    Method(
        "agzo-spread",
        AGZO,
        {"update": "spread", "queries": 3},
        networks=("opt-tied",),
        unit=1e-3,
    ),
    Method(
        "agzo-warm",
        AGZO,
        {"rank": 2, "power_steps": 1, "warm_start": True},
        networks=("qwen3-tied", "llama-untied"),
    ),
]
EVERYTHING = [method for method in METHODS if not method.part]  # those that tune all weights
EXECUTIONS = ["side_branch", "in_place"]

CHIEF = ("agzo", "mezo", "lozo")  # tested on all of their networks at once, others on their first
FIELD = (
    *("fzoo", "hizoo", "conmezo", "subzero", "zo_muon", "aim_zo", "grzo", "deepzero"),
    *("mezo-scalar", "agzo-spread", "agzo-per-piece", "agzo-seen-signs"),
)


def slow_for_the_field(methods: list[Method], *begins: str) -> list[Any]:
    """Return them as parameters, for the slow tests those of `FIELD` and of names that begin so."""
    return [
        pytest.param(
            each,
            id=str(each),
            marks=pytest.mark.slow if each.name in FIELD or each.name.startswith(begins) else [],
        )
        for each in methods
    ]


def _marks(method: Method, network: str | None, execution: str) -> Any:
    """Leave to the slow tests: other networks of the others, and what the reference repeats."""
    first = network in (None, method.networks[0])
    chief = method.name in CHIEF
    wanted = first or chief if execution == "side_branch" else first and chief
    return [] if wanted else pytest.mark.slow


every_method = pytest.mark.parametrize("method", METHODS, ids=str)
every_method_and_execution = pytest.mark.parametrize(
    ("method", "execution"),
    [
        pytest.param(m, execution, id=f"{m}-{execution}", marks=_marks(m, None, execution))
        for m in METHODS
        for execution in EXECUTIONS
    ],
)
every_method_network_and_execution = pytest.mark.parametrize(
    ("method", "network", "execution"),
    [
        pytest.param(
            m, net, execution, id=f"{m}-{net}-{execution}", marks=_marks(m, net, execution)
        )
        for m in METHODS
        for net in m.networks
        for execution in EXECUTIONS
    ],
)

chief_method_and_network = pytest.mark.parametrize(  # a long test: of the others in the slow tests
    ("method", "network"),
    [
        pytest.param(
            m, network, id=f"{m}-{network}", marks=[] if m.name in CHIEF else pytest.mark.slow
        )
        for m in METHODS
        for network in m.networks
    ],
)
