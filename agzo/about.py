"""What a runner must know of a method before it makes one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class About:
    """A method in four facts; a class has them as `about`.

    Args:
        trains: takes steps at all.
        alters: adds to the model, or holds part of it in another dtype.
        needs_gradient: back-propagates.
        fixed: names of arguments that it sets itself or has no use for.
    """

    trains: bool = True
    alters: bool = False
    needs_gradient: bool = False
    fixed: tuple[str, ...] = ()
