"""execution="batched": f(W + eps Delta) and f(W - eps Delta) in one pass, as one larger batch.

The closure runs once under ``torch.func.vmap`` over the two scales, so every layer sees both
points: half the kernel launches, one product with a weight for both, and dense noise made once. It
pays where a forward is bound by launches or by reading weights (short batches on a GPU); on a CPU
in float32 it is slower. Memory: the activations of two forwards, for dense noise a chunk twice.

It is for two-sided steps. An evaluation that a basis is captured in stays alone, and one-sided
steps run as with "side_branch", whose numbers these are up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from agzo.direction import Direction, LowRank, at_least_float32
from agzo.kernels import thin
from agzo.perturb import Closure, Directions, Perturbed, SideBranch


class Batched(SideBranch):
    """Evaluates a closure at several weights at once."""

    @torch.no_grad()
    def evaluate_all(
        self, closure: Closure, directions: Directions, scales: Sequence[float]
    ) -> Tensor:
        """Return ``closure()`` at W + scale * direction for each scale, (scales,)."""
        device = next(iter(directions)).device

        def at(scale: Tensor) -> Tensor:
            with _Together(directions, scale):
                return closure()

        self.points = len(scales)
        try:
            return torch.func.vmap(at)(torch.tensor(scales, dtype=torch.float64, device=device))
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
            raise ValueError(
                "execution='batched': the closure does what cannot be done for several weights at "
                f"once ({str(error).splitlines()[0][:200]}); allowed is side_branch"
            ) from error
        finally:
            self.points = 1


def runs_over_points(tensor: Tensor) -> bool:
    """Tell whether a tensor stands for one of each point: nothing can be added to others in place.

    torch has no public name for this.
    """
    return torch._C._functorch.is_batchedtensor(tensor)  # pyright: ignore[reportAttributeAccessIssue]


class _Together(Perturbed):
    """As `Perturbed`, with a scale that vmap runs over: nothing is done in place."""

    def __init__(self, directions: Directions, scale: Tensor) -> None:
        super().__init__(directions, 1.0)
        self._point = scale

    def _moved(self, weight: Tensor, values: Tensor) -> Tensor:
        """Return weight + scale * values in the weight's dtype, computed in at least float32."""
        exact = at_least_float32(weight.dtype)
        change = values.to(exact) * self._point.to(exact)
        return (weight.to(exact) + change).to(weight.dtype)

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if bias is not None:
            bias = self._substitute(bias)
        direction = self.direction(weight)
        if direction is None:
            return F.linear(input, weight, bias)
        if isinstance(direction, LowRank):
            y = F.linear(input, weight, bias)
            inner = input @ direction.right.to(input.dtype)  # (..., r)
            exact = at_least_float32(y.dtype)
            left = (thin.rows(direction.left).to(exact) * self._point.to(exact)).to(y.dtype)
            return y + inner @ left
        blocks = [
            F.linear(input, self._moved(weight[start:stop], values))
            for start, stop, values in direction.rows()
        ]
        y = torch.cat(blocks, -1)
        return y if bias is None else y + bias

    def _embedding(self, input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if len(args) > 1 or kwargs.get("max_norm") is not None:  # max_norm rewrites the weight
            return F.embedding(input, self._substitute(weight), *args, **kwargs)
        direction = self.direction(weight)
        assert direction is not None
        values = direction.take(input.reshape(-1))
        return self._moved(weight[input], values.view(*input.shape, weight.shape[1]))

    def _copy(self, parameter: Tensor, direction: Direction) -> Tensor:
        return self._moved(parameter, direction.dense())
