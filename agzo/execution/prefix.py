"""Run the first layers of a model once, and answer them from what they gave in later evaluations.

Where only weights behind layer k change between evaluations of one batch, the hidden state that
enters layer k does not. So the last of the first k layers' output is kept, and from then on each of
the k returns it at once: its own output has the same kind and shape, and what follows takes the
last one. What lies before them (embedding, positions, masks) is run as ever.

A closure may call the model again with what came out of its first call, a token that it chose say:
then the perturbed weights are in that input too. So what enters the first layer in a second or
later call is compared with what entered it before; the device is waited for once, after the step.
Memory: one hidden state for the model's first call in an evaluation, two for each other call.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from agzo.torch_calls.inputs import is_transformed, tensors, version


class Kept(NamedTuple):
    """What the first layers gave in one call of the model, and with which versions."""

    output: Any
    versions: list[int]
    shape: torch.Size  # of what entered them
    entered: Tensor | None  # that itself; of the first call, which no weight can have changed, None


class Prefix:
    """The first layers of a model.

        with Prefix(layers[:k]) as prefix:
            prefix.begin()
            first = closure()  # runs everything
            prefix.begin()
            second = closure()  # runs what follows the k layers

    Outside the `with` the model is untouched and nothing is kept. A closure may run the model
    several times; its calls are told apart by their number.

    Raises:
        ValueError: what the layers gave cannot be reused; in the `with` or where it ends.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._layers = list(layers)
        self._kept: list[Kept] = []
        self._entering: Tensor | None = None
        self._same: list[Tensor] = []  # of later calls: whether the same entered (0-dim bool)
        self._call = -1  # of the model, in this evaluation
        self._before: list[Any] = []

    def begin(self) -> None:
        """Start an evaluation of the closure."""
        self._call = -1

    def __enter__(self) -> Prefix:
        self._before = [vars(layer).get("forward") for layer in self._layers]
        for index, layer in enumerate(self._layers):
            layer.forward = partial(self._answer, index, layer.forward)
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        for layer, before in zip(self._layers, self._before, strict=True):
            if before is None:
                del layer.forward
            else:
                layer.forward = before
        same, self._same, self._entering = self._same, [], None
        self._kept.clear()
        self._before.clear()
        if error is None and same and not torch.stack(same).all():
            raise _refused("got another input in a later call of the model in one evaluation")

    def _answer(self, index: int, forward: Any, *args: Any, **kwargs: Any) -> Any:
        entering = tensors((args, kwargs))[0]
        if index == 0:
            self._call += 1
            self._entering = entering if self._call > 0 else None
            if self._call > 0 and is_transformed(entering):  # it differs from point to point
                raise _refused("got another input for each of several weights at once")
        if self._call >= len(self._kept):
            output = forward(*args, **kwargs)
            if index == len(self._layers) - 1:
                versions = _versions((output, self._entering))
                self._kept.append(Kept(output, versions, entering.shape, self._entering))
            return output
        kept = self._kept[self._call]
        if entering.shape != kept.shape:
            raise _refused(f"got {tuple(entering.shape)} after {tuple(kept.shape)}")
        if _versions((kept.output, kept.entered)) != kept.versions:
            raise _refused("got or returned what was changed in place")
        if index == 0 and kept.entered is not None:
            either_nan = entering.isnan() & kept.entered.isnan()
            self._same.append(((entering == kept.entered) | either_nan).all())
        return kept.output


def _versions(value: Any) -> list[int]:
    return [version(t) for t in tensors(value)]


def _refused(why: str) -> ValueError:
    return ValueError(
        f"the layers before the tuned one {why}: what they gave cannot be reused; allowed is "
        "reuse_prefix=False (method.reuse_prefix=false of a run)"
    )
