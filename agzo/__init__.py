"""AGZO and the frame it lives in: zeroth-order fine-tuning as sampler x estimator x update."""

from agzo.agzo import AGZO
from agzo.direction import Dense, Direction, LowRank
from agzo.optimizer import ZeroOrderOptimizer
from agzo.subspace import subspace_extract

__all__ = ["AGZO", "Dense", "Direction", "LowRank", "ZeroOrderOptimizer", "subspace_extract"]
