"""execution="batched": f(W + eps Delta) and f(W - eps Delta) in one pass, as one larger batch.

The closure runs once under ``torch.func.vmap`` over the two scales, so every layer sees both
points: half the kernel launches, one product with a weight for both, and dense noise made once. It
pays where a forward is bound by launches or by reading weights (short batches on a GPU); on a CPU
in float32 it is slower. Memory: the activations of two forwards, for dense noise a chunk twice.

It is for two-sided steps. An evaluation that a basis is captured in stays alone, and one-sided
steps run as with "side_branch", whose numbers these are up to rounding.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from agzo.directions.direction import Direction, at_least_float32
from agzo.directions.low_rank import Branch, LowRank
from agzo.execution.perturb import SideBranch
from agzo.execution.perturbed import Directions, Perturbed
from agzo.kernels import thin
from agzo.torch_calls.surroundings import Closure
from agzo.torch_calls.uses import ADDRESSES, holds

REFUSED = re.compile(
    "vmap|Vmap|functorch|[Bb]atching rule|BatchedTensor|transformed by|have storage|NestedTensor"
)
"""What torch says of a call that cannot be made for several points at once."""


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
        except (RuntimeError, ValueError, KeyError) as error:
            if "execution='batched'" in str(error) or not REFUSED.search(str(error)):
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

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Answer a call of torch."""
        if func in ADDRESSES and holds(self._parameters, args):
            raise ValueError(
                "execution='batched': the closure takes the address of a tuned parameter, which "
                "has several values at once; allowed is side_branch"
            )
        return super().call(func, args, kwargs)

    def _followed(self, *inputs: Tensor | None) -> bool:
        return False  # all that is done here can be differentiated and transformed

    def _moved(self, weight: Tensor, values: Tensor) -> Tensor:
        """Return weight + scale * values in the weight's dtype, computed in at least float32."""
        exact = at_least_float32(weight.dtype)
        change = values.to(exact) * self._point.to(exact)
        return (weight.to(exact) + change).to(weight.dtype)

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        direction = self.direction(weight)
        assert direction is not None
        if isinstance(direction, LowRank):
            return self._with_branch(F.linear(x, weight, bias), x, direction)
        blocks = [
            F.linear(x, self._moved(weight[start:stop], values))
            for start, stop, values in direction.rows()
        ]
        y = torch.cat(blocks, -1)
        return y if bias is None else y + bias

    def _with_branch(self, y: Tensor, x: Tensor, direction: Branch, times: float = 1.0) -> Tensor:
        assert isinstance(direction, LowRank)
        inner = x @ direction.right.to(x.dtype)  # (..., r)
        exact = at_least_float32(y.dtype)
        left = (thin.rows(direction.left).to(exact) * (self._point * times).to(exact)).to(y.dtype)
        return y + inner.to(y.dtype) @ left

    def _rows(self, weight: Tensor, ids: Tensor) -> Tensor:
        direction = self.direction(weight)
        assert direction is not None
        return self._moved(weight[ids], direction.take(ids))

    def _copy(self, parameter: Tensor, direction: Direction) -> Tensor:
        return self._moved(parameter, direction.dense())
