"""Data: rows from a source (`pocket`, `local`, `hub`), sampled as MeZO's protocol samples them."""

from experiments.data.sampling import Splits, protocol
from experiments.data.sources import SOURCES, RawData, load_splits

__all__ = ["SOURCES", "RawData", "Splits", "load_splits", "protocol"]
