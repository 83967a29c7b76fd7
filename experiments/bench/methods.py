"""What the benchmark measures, by name: this library's methods, and the textbook step of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from agzo import AGZO
from baselines import (
    AIMZO,
    FZOO,
    GRZO,
    LOZO,
    LOZOM,
    SGD,
    AdamW,
    ConMeZO,
    DeepZero,
    HiZOO,
    MeZO,
    SubZero,
    ZOAct,
    ZOMuon,
    on_dominant_layer,
)
from experiments.bench.textbook import TextbookAGZO, TextbookLOZO, TextbookMeZO

LR, EPS = 1e-7, 1e-3


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Args:
        family: the algorithm, as targets and figures name it.
        make: (model, lr, eps, and rank=r where `rank` is a number) -> optimizer.
        rank: its rank unless the command line gives others; None for a method without one.
        textbook: the row that is its yardstick; a textbook's own name marks the yardstick itself.
        judged: whether the targets of its family are meant for it.
        layers: "eager", "compiled" or "graphs": how decoder layers run, in its forwards too.
        apart: whether each row of the batch is measured alone.
    """

    family: str
    make: Callable[..., Any]
    rank: int | None = None
    textbook: str | None = None
    judged: bool = False
    layers: str = "eager"
    apart: bool = False

    def build(self, model: nn.Module, rank: int | None, rows: int) -> Any:
        """Return the optimizer of a model, for batches of so many rows."""
        own = {} if rank is None else {"rank": rank}
        if self.apart:
            own["accumulation"] = rows
        return self.make(model, LR, EPS, **own)


def _with(make: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    return lambda *arguments, **more: make(*arguments, **settings, **more)


def _sgd(model: nn.Module, lr: float, eps: float) -> SGD:
    return SGD(model, lr)


def _adamw(model: nn.Module, lr: float, eps: float) -> AdamW:
    return AdamW(model, lr)


_WARM: dict[str, Any] = {"warm_start": True, "power_steps": 1}
_FROZEN: dict[str, Any] = {"embeddings": "frozen"}
_SEEN: dict[str, Any] = {"embeddings": "seen"}
_SIGNS: dict[str, Any] = {"noise": "rademacher"}
_IN_PLACE: dict[str, Any] = {"execution": "in_place"}

# A textbook comes before what is compared with it, so that each printed line can say by how much.
METHODS: dict[str, Method] = {
    "agzo_textbook": Method("agzo", TextbookAGZO, 1, "agzo_textbook"),
    "agzo": Method("agzo", AGZO, 1, "agzo_textbook", True),
    "agzo_warm": Method("agzo", _with(AGZO, **_WARM), 1, "agzo_textbook", True),
    "agzo_compiled": Method("agzo", AGZO, 1, "agzo_textbook", True, "compiled"),
    "agzo_graphs": Method("agzo", AGZO, 1, "agzo_textbook", True, "graphs"),
    "agzo_frozen": Method("agzo", _with(AGZO, **_FROZEN), 1, "agzo_textbook", True),
    "agzo_seen": Method("agzo", _with(AGZO, **_SEEN), 1, "agzo_textbook", True),
    "agzo_in_place": Method("agzo", _with(AGZO, **_IN_PLACE), 1, "agzo_textbook"),
    "lozo_textbook": Method("lozo", TextbookLOZO, 2, "lozo_textbook"),
    "lozo": Method("lozo", LOZO, 2, "lozo_textbook", True),
    "lozo_compiled": Method("lozo", LOZO, 2, "lozo_textbook", True, "compiled"),
    "lozo_graphs": Method("lozo", LOZO, 2, "lozo_textbook", True, "graphs"),
    "lozo_in_place": Method("lozo", _with(LOZO, **_IN_PLACE), 2, "lozo_textbook"),
    "lozo_m": Method("lozo_m", _with(LOZOM, large_state=True), 2),
    "mezo_textbook": Method("mezo", TextbookMeZO, None, "mezo_textbook"),
    "mezo": Method("mezo", MeZO, None, "mezo_textbook", True),
    "mezo_signs": Method("mezo", _with(MeZO, **_SIGNS), None, "mezo_textbook"),
    "mezo_compiled": Method("mezo", MeZO, None, "mezo_textbook", True, "compiled"),
    "mezo_graphs": Method("mezo", MeZO, None, "mezo_textbook", True, "graphs"),
    "mezo_in_place": Method("mezo", _with(MeZO, **_IN_PLACE), None, "mezo_textbook"),
    "fzoo": Method("fzoo", FZOO),
    "hizoo": Method("hizoo", _with(HiZOO, large_state=True)),
    "subzero": Method("subzero", _with(SubZero, queries=2), 2),
    "zo_muon": Method("zo_muon", ZOMuon, 2),
    "aim_zo": Method("aim_zo", _with(AIMZO, active=2, leading=1, queries=2), 2),
    "grzo": Method("grzo", GRZO, apart=True),
    "deepzero": Method("deepzero", _with(DeepZero, queries=2, score_queries=2)),
    "conmezo": Method("conmezo", _with(ConMeZO, large_state=True)),
    "zo_act": Method("zo_act", _with(ZOAct, calibration_batches=1), 1),
    "dominant_layer": Method("dominant_layer", _with(on_dominant_layer, layer=1, scan_batches=0)),
    "sgd": Method("sgd", _sgd),
    "adamw": Method("adamw", _adamw),
}
# Those that the targets are about, with their yardsticks: what a long sweep measures.
CHIEF = (
    *("agzo_textbook", "agzo", "agzo_warm"),
    *("lozo_textbook", "lozo", "mezo_textbook", "mezo"),
)
OF_EMBEDDINGS = ("agzo_frozen", "agzo_seen")
ON_CPU = tuple(
    name
    for name, method in METHODS.items()
    if method.layers != "graphs" and name not in OF_EMBEDDINGS
)
REAL = (*CHIEF, "mezo_signs", *OF_EMBEDDINGS, "sgd")  # on prompts of real lengths
ON_CUDA = (*CHIEF, "agzo_graphs", "lozo_graphs", "mezo_graphs")
