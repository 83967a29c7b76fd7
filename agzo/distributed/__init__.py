"""Several processes, and micro-batches."""

from agzo.distributed.group import ALONE
from agzo.distributed.pieces import Piece
from agzo.distributed.processes import Processes

__all__ = ["ALONE", "Piece", "Processes"]
