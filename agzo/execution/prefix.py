"""Run the first layers of a model once, and answer them from what they gave in later evaluations.

Where only weights behind layer k change between evaluations of one batch, the hidden state that
enters layer k does not. So the last of the first k layers' output is kept, and from then on each of
the k returns it at once: its own output has the same kind and shape, and what follows takes the
last one. What lies before them (embedding, positions, masks) is run as ever. Memory: one hidden
state for each call of the model in an evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from agzo.torch_calls.inputs import tensors, version


class Prefix:
    """The first layers of a model.

        with Prefix(layers[:k]) as prefix:
            prefix.begin()
            first = closure()  # runs everything
            prefix.begin()
            second = closure()  # runs what follows the k layers

    Outside the `with` the model is untouched and nothing is kept. A closure may run the model
    several times; its calls are told apart by their number.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._layers = list(layers)
        self._kept: list[tuple[Any, list[int], torch.Size]] = []  # output, versions, input's shape
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

    def __exit__(self, *_: object) -> None:
        for layer, before in zip(self._layers, self._before, strict=True):
            if before is None:
                del layer.forward
            else:
                layer.forward = before
        self._kept.clear()
        self._before.clear()

    def _answer(self, index: int, forward: Any, *args: Any, **kwargs: Any) -> Any:
        if index == 0:
            self._call += 1
        shape = tensors((args, kwargs))[0].shape
        if self._call >= len(self._kept):
            output = forward(*args, **kwargs)
            if index == len(self._layers) - 1:
                self._kept.append((output, _versions(output), shape))
            return output
        output, versions, expected = self._kept[self._call]
        if shape != expected or _versions(output) != versions:
            raise ValueError(
                f"the layers before the tuned one got {tuple(shape)} after {tuple(expected)}, or "
                "what they returned was changed in place: it cannot be reused; set "
                "reuse_prefix=False (method.reuse_prefix=false of a run)"
            )
        return output


def _versions(output: Any) -> list[int]:
    return [version(t) for t in tensors(output)]
