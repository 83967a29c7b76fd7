"""Where a model's activation outliers begin: three detectors, scored for each layer in one scan.

massive_activations   min(a / 100, a / (1000 m)) > 1: a the largest and m the median |value| of an
                      example's hidden state behind the layer; the largest of all examples
                      (Sun et al., arXiv 2402.17762: both constants are theirs)
super_weight          min(x, y) > 10: x the largest |input| of the layer's last matrix and y its
                      largest |output|, each divided by its median over layers
                      (Yu et al., arXiv 2411.07191: a layer where both spike)
first_token           n > 10: n the norm of an example's first token behind the layer over the
                      median norm of its tokens; the median of all examples
                      (the massive emergence layer, arXiv 2605.08504)

The first layer whose score is above its threshold is the outlier layer. The super-weight paper
reads its spikes off a plot, and the constants of reimplementations (50, 70, 1000) are absolute and
differ, so ours is relative; the first token's norm is said to jump by tens to hundreds. Only real
tokens count: padding on the left would pass for a first token. Memory: float32 copies of one
layer's output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from agzo.distributed.pieces import mask_now

LARGE = 100.0  # |a| of a massive activation, Sun et al.
TIMES_MEDIAN = 1000.0  # and its ratio to the median |a| of the hidden state, Sun et al.
TINY = torch.finfo(torch.float32).tiny  # instead of a median of 0
THRESHOLDS = {"massive_activations": 1.0, "super_weight": 10.0, "first_token": 10.0}
DETECTORS = tuple(THRESHOLDS)

Scores = dict[str, list[float]]  # detector -> a score per layer


def first_above(scores: Sequence[float], threshold: float) -> int | None:
    """Return the first layer whose score is above the threshold, None if there is none."""
    return next((layer for layer, score in enumerate(scores) if score > threshold), None)


class Scan:
    """Watches forwards and keeps a few numbers for each layer and example.

    Args:
        layers: the decoder layers in order.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._layers = list(layers)
        count = range(len(self._layers))
        self._massive: list[list[Tensor]] = [[] for _ in count]  # of each example
        self._first: list[list[Tensor]] = [[] for _ in count]
        self._inputs: list[list[Tensor]] = [[] for _ in count]  # largest |x|, of each batch
        self._outputs: list[list[Tensor]] = [[] for _ in count]
        self._mask: Tensor | None = None

    @torch.no_grad()
    def look(self, run: Callable[[], object], mask: Tensor | None) -> None:
        """Watch one forward; `mask` (batch, sequence) is True at real tokens, None at all."""
        self._mask = mask
        handles = []
        try:
            for index, layer in enumerate(self._layers):
                matrix = last_matrix(layer)
                handles += [
                    layer.register_forward_hook(partial(self._after_layer, index)),
                    matrix.register_forward_hook(partial(self._after_matrix, index)),
                ]
            run()
        finally:
            for handle in handles:
                handle.remove()

    def scores(self) -> Scores:
        """Return every detector's scores; a value that is not finite is an error."""
        x = torch.stack([torch.stack(values).amax() for values in self._inputs])
        y = torch.stack([torch.stack(values).amax() for values in self._outputs])
        spike = torch.minimum(x / x.median().clamp_min(TINY), y / y.median().clamp_min(TINY))
        found: Scores = {
            "massive_activations": [torch.cat(v).amax().item() for v in self._massive],
            "super_weight": spike.tolist(),
            "first_token": [torch.cat(v).median().item() for v in self._first],
        }
        if not all(math.isfinite(score) for scores in found.values() for score in scores):
            raise ValueError("the scan met an activation that is not finite; allowed are finite")
        return found

    def _after_layer(self, index: int, _: nn.Module, args: Any, output: Any) -> None:
        hidden = (output if isinstance(output, Tensor) else output[0]).float()  # (B, T, d)
        padding = ~self._real(hidden)  # (B, T)
        size = hidden.abs().masked_fill_(padding[..., None], float("nan")).flatten(1)
        median = size.nanmedian(dim=1).values  # (B,)
        largest = size.nan_to_num_(0.0, posinf=float("inf")).amax(dim=1)
        times = largest / median.clamp_min(TINY)
        self._massive[index].append(torch.minimum(largest / LARGE, times / TIMES_MEDIAN))
        norms = hidden.norm(dim=-1)  # (B, T)
        first = norms.gather(1, (~padding).int().argmax(dim=1, keepdim=True))[:, 0]
        middle = norms.masked_fill_(padding, float("nan")).nanmedian(dim=1).values
        self._first[index].append(first / middle.clamp_min(TINY))

    def _after_matrix(self, index: int, matrix: nn.Module, args: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            raise ValueError(
                f"{type(self._layers[index]).__name__}: its last matrix is that of a "
                f"{type(matrix).__name__}, which returns a {type(output).__name__} (a router's, "
                "say), so the layers cannot be scored; allowed is a layer of your choice with "
                "scan_batches=0"
            )
        for value, kept in ((args[0], self._inputs), (output, self._outputs)):
            rows = value.float().abs().reshape(-1, value.shape[-1])  # (tokens, d)
            mask = mask_now(self._mask)
            if mask is not None and rows.shape[0] == mask.numel():
                rows = rows.masked_fill(~mask.reshape(-1, 1), 0.0)
            kept[index].append(rows.amax())

    def _real(self, hidden: Tensor) -> Tensor:
        """Return the mask of real tokens, (B, T)."""
        shape = hidden.shape[:-1]
        mask = mask_now(self._mask)
        if mask is None:
            return torch.ones(shape, dtype=torch.bool, device=hidden.device)
        if mask.shape != shape:
            raise ValueError(
                f"token_mask of shape {tuple(mask.shape)}: allowed is {tuple(shape)}, "
                "(batch, sequence) of what the layers get"
            )
        return mask


def last_matrix(layer: nn.Module) -> nn.Module:
    """Return the module behind a feed-forward's hidden units, `mlp.down_proj` in Llama and Qwen3.

    The last module of a layer with a matrix at least half as large as the largest: half, because
    gate and up may be one matrix; so large, because adapters are not meant.
    """
    matrices = [
        (module, weight.numel())
        for module in layer.modules()
        if isinstance(weight := getattr(module, "weight", None), Tensor)
        and weight.dim() == 2
        and not any(module.children())
    ]
    if not matrices:
        raise ValueError(f"{type(layer).__name__}: holds no matrix, so nothing can be scored")
    largest = max(size for _, size in matrices)
    return [module for module, size in matrices if 2 * size >= largest][-1]
