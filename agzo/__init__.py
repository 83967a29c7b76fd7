"""AGZO and the frame it lives in: zeroth-order fine-tuning as sampler x estimator x update."""

from agzo.activations.subspace import subspace_extract
from agzo.agzo import AGZO
from agzo.directions.direction import Dense, Direction
from agzo.directions.low_rank import LowRank
from agzo.optimizer import ZeroOrderOptimizer

__all__ = ["AGZO", "Dense", "Direction", "LowRank", "ZeroOrderOptimizer", "subspace_extract"]
