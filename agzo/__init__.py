"""AGZO and the frame it lives in: zeroth-order fine-tuning as sampler x estimator x update."""

from agzo.activations.subspace import subspace_extract
from agzo.agzo import AGZO
from agzo.directions.direction import Dense, Direction
from agzo.directions.low_rank import LowRank
from agzo.finder import EpsWindow, find_eps
from agzo.observed import Measured
from agzo.optimizer import ZeroOrderOptimizer
from agzo.summary import Summary

__version__ = "0.1.0"

__all__ = [
    "AGZO",
    "Dense",
    "Direction",
    "EpsWindow",
    "LowRank",
    "Measured",
    "Summary",
    "ZeroOrderOptimizer",
    "__version__",
    "find_eps",
    "subspace_extract",
]
