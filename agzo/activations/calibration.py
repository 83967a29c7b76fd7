"""The leading directions of what enters linear layers, over several batches together.

With X (tokens, d_in) all inputs of a layer over all batches, the columns of the wanted V (d_in, r)
are the right singular vectors of X's r largest singular values. X is never held: subspace iteration
with l = r + 8 columns reads it anew in each pass,

    Q <- orthonormal(Y),  Y = sum over batches of X^T (X Q)         `passes` times, Q Gaussian first
    V  = the r leading left singular vectors of the last Y

A pass takes one forward of each batch. The error of the span falls as (sigma_{l+1} / sigma_r)^(2
passes); where l reaches d_in one pass is exact. All in float32, the last step in float64.

Memory: two (d_in, l) float32 for each distinct input. A Gram matrix would need one forward a batch
and (d_in, d_in): 33 GB over the 128 distinct inputs of an 8B Llama, against 61 MB here (r = 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from agzo.activations.subspace import COPY
from agzo.distributed.pieces import mask_now
from agzo.kernels.orthonormal import orthonormal
from agzo.rng import Noise
from agzo.torch_calls.inputs import Leaders, fits
from agzo.torch_calls.surroundings import Closure, exactly

OVERSAMPLING = 8  # columns beside the r wanted (Halko, Martinsson and Tropp 2011: 5 to 10)

Batches = Sequence[tuple[Closure, Tensor | None]]


@torch.no_grad()
def leading_inputs(
    layers: Mapping[str, nn.Module],
    batches: Batches,
    rank: int,
    passes: int,
    noise: Noise,
    forward: Callable[[Closure], Any],
) -> dict[str, Tensor]:
    """Return V (d_in, rank), float32 orthonormal columns, for each layer that a batch reaches.

    A layer narrower than `rank` gets as many columns as it has inputs. Layers fed by one tensor
    (the same object: q/k/v, gate/up) get one and the same V.

    Args:
        layers: linear layers by name.
        batches: (closure, token mask) pairs; where the mask is False is padding and left out.
        rank, passes: as above.
        noise: address of the first Q.
        forward: runs a closure.

    Raises:
        ValueError: no batches, fewer tokens than `rank`, no layer that a batch reaches, a mask
            that fits no input, an input that is not finite.
    """
    if not batches:
        raise ValueError("calibration: no batches; allowed is at least one")
    seen = _Inputs(layers, rank, noise)
    hooks = [
        layer.register_forward_pre_hook(partial(seen.see, name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        for turn in range(passes):
            for closure, mask in batches:
                seen.begin(mask)
                forward(closure)
            if turn == 0:
                seen.check()
            if turn < passes - 1:
                seen.turn()
    finally:
        for hook in hooks:
            hook.remove()
    return seen.bases()


@dataclass
class _Sketch:
    """Q and Y of one distinct input, and how many tokens were seen."""

    q: Tensor  # (d_in, l)
    y: Tensor  # (d_in, l)
    tokens: int = 0


class _Inputs:
    def __init__(self, layers: Mapping[str, nn.Module], rank: int, noise: Noise) -> None:
        self._layers, self._rank, self._noise = layers, rank, noise
        self._leaders = Leaders()
        self._sketches: dict[str, _Sketch] = {}
        self._mask: Tensor | None = None
        self._masked = self._mask_used = False

    def begin(self, mask: Tensor | None) -> None:
        """Prepare for the forward of a batch."""
        self._mask = mask
        self._masked |= mask is not None
        self._leaders.next_pass()

    def see(self, name: str, layer: nn.Module, args: Any, kwargs: Any) -> None:
        """Take in what enters the layer `name`: a forward pre-hook."""
        x: Tensor = args[0] if args else kwargs["input"]
        if self._leaders.leads(x, name):
            with exactly(x.device):
                self._add(name, x)

    def _add(self, name: str, x: Tensor) -> None:
        flat = x.detach().reshape(-1, x.shape[-1])  # (tokens, d_in)
        mask, keep = mask_now(self._mask), None
        if mask is not None and fits(x, mask):
            keep, self._mask_used = mask.reshape(-1), True
        if name not in self._sketches:
            shape = (x.shape[-1], min(x.shape[-1], self._rank + OVERSAMPLING))
            q = orthonormal(self._noise.tensor(shape, x.device, name, "calibration"))
            self._sketches[name] = _Sketch(q, torch.zeros_like(q))
        sketch = self._sketches[name]
        sketch.tokens += flat.shape[0] if keep is None else int(keep.sum())
        size = max(1, COPY // x.shape[-1])
        for start in range(0, flat.shape[0], size):
            h = flat[start : start + size].float()
            coefficients = h @ sketch.q
            if keep is not None:
                coefficients.masked_fill_(~keep[start : start + size, None], 0.0)
            sketch.y += h.T @ coefficients

    def check(self) -> None:
        """Raise ValueError where the batches, read once, do not do for every layer."""
        if self._masked and not self._mask_used:
            raise ValueError(
                "calibration: the token mask fits no layer's input; allowed is (batch, sequence) "
                "of the batch that the closure evaluates"
            )
        if not self._leaders.of:
            raise ValueError(
                f"calibration: no batch reaches any of {len(self._layers)} layers; needed are "
                "batches that run the model"
            )
        for name in self._reached() or self._leaders.of:
            sketch = self._sketches[self._leaders.of[name]]
            if sketch.tokens < min(self._rank, sketch.q.shape[0]):
                raise ValueError(
                    f"rank={self._rank}: the calibration batches hold {sketch.tokens} tokens for "
                    f"layer {name}; allowed are at least as many as rank, padding not counted"
                )
            if not torch.isfinite(sketch.y).all():
                raise ValueError(
                    f"calibration: the input of layer {name} is not finite, or too large for "
                    "float32; allowed are finite activations"
                )

    def _reached(self) -> list[str]:
        """Name the layers that a token came to: an expert may have been called with none."""
        return [name for name, leader in self._leaders.of.items() if self._sketches[leader].tokens]

    def turn(self) -> None:
        """End a pass: the next one begins from the span that this one found."""
        for sketch in self._sketches.values():
            sketch.q, sketch.y = orthonormal(sketch.y), torch.zeros_like(sketch.y)

    def bases(self) -> dict[str, Tensor]:
        """Return V of each layer that was reached; layers with one input get one tensor."""
        found = {}
        for name, sketch in self._sketches.items():
            left = torch.linalg.svd(sketch.y.double(), full_matrices=False).U
            found[name] = left[:, : self._rank].float().contiguous()
        return {name: found[self._leaders.of[name]] for name in self._reached()}
