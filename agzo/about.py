"""What others must know of a method before one is made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class About:
    """A method in a few facts; its class has them as `about`, and a subclass may `replace` some.

    Args:
        trains: takes steps at all.
        alters: adds to the model, or holds part of it in another dtype.
        adds: moves parameters that it adds to the model, and none of the model's own.
        needs_gradient: back-propagates.
        needs_data: why its directions cannot be made again without the batches; None: they can.
        needs_loss: two-sided steps evaluate f(W) too.
        fixed: names of arguments that it sets itself or has no use for.
        settings: attributes of its own that a loaded state must have in common with it.
        updates: values of `update` that it allows; None is all of them.
        estimators: values of `estimator`; None is one_sided and two_sided.
    """

    trains: bool = True
    alters: bool = False
    adds: bool = False
    needs_gradient: bool = False
    needs_data: str | None = None
    needs_loss: bool = False
    fixed: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    updates: tuple[str, ...] | None = None
    estimators: tuple[str, ...] | None = None
