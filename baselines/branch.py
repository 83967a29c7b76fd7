"""A branch C V^T beside a linear layer that is left as it is: y = layer(x) + (x V) C^T.

A forward hook on the layer adds it, so every use of the model sees W + C V^T: training, evaluation,
generation, with a quantised layer as well. C and V are a parameter and a buffer of the model, under
<layer>.zo_act, and so part of its state_dict.

C is float32 (float64 beside float64 weights) and its product is added in that precision: beside a
coefficient of .1 a perturbation of 1e-3 is 3 spacings of bfloat16. The sum is in the layer's dtype.

The layer may hold its weight either way round, (d_out, d_in) or (d_in, d_out). A layer narrower
than r has a V of its whole width.

Memory: C (d_out, r), V (d_in, r), and 32 MiB during a call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from agzo.activations.subspace import COPY
from agzo.execution.batched import runs_over_points
from agzo.torch_calls.surroundings import exactly
from agzo.tuned.linears import held, is_quantised, sizes, weight_inputs

NAME = "zo_act"


class Branch(nn.Module):
    """C and V of one layer on a device (None: the layer's), and the hook that adds C V^T."""

    basis: Tensor

    def __init__(self, layer: nn.Module, rank: int, device: torch.device | None = None) -> None:
        super().__init__()
        d_in, d_out = sizes(layer)
        rank = min(rank, d_in)
        self.inputs = weight_inputs(layer)
        like = held(layer)
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        where = device or like.device
        self.coefficients = nn.Parameter(torch.zeros(d_out, rank, dtype=dtype, device=where))
        self.register_buffer("basis", torch.zeros(d_in, rank, dtype=dtype, device=where))
        layer.add_module(NAME, self)
        self._hook = layer.register_forward_hook(self.add, with_kwargs=True)

    def add(self, layer: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        """Return ``output + (x V) C^T``."""
        x: Tensor = args[0] if args else kwargs["input"]
        with exactly(x.device):
            return self._added(x, output)

    def _added(self, x: Tensor, output: Tensor) -> Tensor:
        turned = self.coefficients.T  # the one use of C in a call: a perturbation is drawn once
        inner = x.reshape(-1, x.shape[-1]) @ self.basis.to(x.dtype)  # (tokens, r)
        y = output.reshape(-1, output.shape[-1])  # (tokens, d_out)
        if torch.is_grad_enabled() or runs_over_points(turned):
            y = (y + inner.to(turned.dtype) @ turned).to(output.dtype)
        else:
            size = max(1, COPY // y.shape[1])
            for start in range(0, y.shape[0], size):
                rows = slice(start, start + size)
                y[rows] += inner[rows].to(turned.dtype) @ turned
        return y.view(output.shape)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Put a copy of the basis into a state dict.

        Layers with one input hold one tensor, and `save_pretrained` refuses what shares memory.
        """
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not keep_vars:
            destination[f"{prefix}basis"] = self.basis.clone()

    def remove(self, layer: nn.Module) -> None:
        """Leave the layer as it was before."""
        self._hook.remove()
        delattr(layer, NAME)

    @torch.no_grad()
    def merge(self, layer: nn.Module) -> None:
        """Add C V^T to the layer's weight, summed in float32 and rounded once, by rows."""
        weight = held(layer)
        left, right = self.coefficients, self.basis
        if self.inputs == 0:
            left, right = right, left
        size = max(1, COPY // weight.shape[1])
        for start in range(0, weight.shape[0], size):
            rows = slice(start, start + size)
            added = (left[rows] @ right.T).to(weight.device)
            weight[rows] = (weight[rows] + added).to(weight.dtype)


def refuse_merge(name: str, layer: nn.Module) -> None:
    """Raise ValueError for a layer into whose weight nothing can be added."""
    weight = held(layer)
    if is_quantised(weight) or getattr(layer, "weight", None) is not weight:
        raise ValueError(
            f"merge: the weight of layer {name} is quantised ({type(weight).__name__}); allowed "
            "are plain floats: keep the branches, or save them as an adapter"
        )
