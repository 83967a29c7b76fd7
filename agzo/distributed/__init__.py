"""Several processes, and micro-batches."""

from agzo.distributed.group import ALONE, Processes
from agzo.distributed.pieces import Piece

__all__ = ["ALONE", "Piece", "Processes"]
