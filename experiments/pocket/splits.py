"""Which part of the world a piece of text belongs to: its hash decides.

Pre-training text, training rows and validation rows draw from the same grammar, and the SHA-256
of the text itself says which of the three may use it, so they are disjoint at any size and seed.
"""

from __future__ import annotations

import hashlib

TEXT, TRAIN, VALIDATION = "text", "train", "validation"
SPLITS = (TRAIN, VALIDATION)
_BUCKETS = (TEXT, TEXT, TEXT, TEXT, TRAIN, TRAIN, TRAIN, VALIDATION)


def part_of(text: str) -> str:
    """Return the part ("text", "train" or "validation") that owns `text`."""
    return _BUCKETS[hashlib.sha256(text.encode()).digest()[0] % len(_BUCKETS)]
