"""The methods AGZO is compared with, all behind the same `step(closure, token_mask=None)`."""

from baselines.aim_zo import AIMZO
from baselines.backprop import SGD, AdamW
from baselines.conmezo import ConMeZO
from baselines.deepzero import DeepZero
from baselines.dominant_layer import DominantLayer, on_dominant_layer
from baselines.fzoo import FZOO
from baselines.grzo import GRZO
from baselines.hizoo import HiZOO
from baselines.icl import ICL
from baselines.lozo import LOZO
from baselines.lozo_m import LOZOM
from baselines.mezo import MeZO
from baselines.subzero import SubZero
from baselines.zero_shot import ZeroShot
from baselines.zo_act import ZOAct
from baselines.zo_muon import ZOMuon

__all__ = [
    "AIMZO",
    "FZOO",
    "GRZO",
    "ICL",
    "LOZO",
    "LOZOM",
    "SGD",
    "AdamW",
    "ConMeZO",
    "DeepZero",
    "DominantLayer",
    "HiZOO",
    "MeZO",
    "SubZero",
    "ZOAct",
    "ZOMuon",
    "ZeroShot",
    "on_dominant_layer",
]
