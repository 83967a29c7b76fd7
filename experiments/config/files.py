"""SHA-256 of files: what a result was made from, and whether a checkpoint is whole."""

import functools
import hashlib
from pathlib import Path


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, read again only when its size or time of change is another."""
    return _sha256_at(path, path.stat().st_size, path.stat().st_mtime_ns)


@functools.cache
def _sha256_at(path: Path, size: int, changed: int) -> str:
    return file_sha256(path)
