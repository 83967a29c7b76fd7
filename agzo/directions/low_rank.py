"""Directions that are added beside a layer: low-rank ones, and the one that is zero."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from agzo import kernels
from agzo.directions.direction import ByRows, at_least_float32
from agzo.kernels import native, thin
from agzo.rng import chunks
from agzo.torch_calls.surroundings import exactly


class Branch(ByRows):
    """A direction whose part of a linear layer's output is cheaper to add than to multiply in."""

    def add_linear(self, y: Tensor, x: Tensor, scale: float) -> None:
        """Set y to ``y + scale * x direction^T`` in place.

        Args:
            y: (tokens, d_out), any float dtype.
            x: (tokens, d_in), of y's dtype.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class LowRank(Branch):
    """``left @ right.T`` with left (rows, r) and right (columns, r), both float32.

    One factor is `drawn` for the step, (d_out, r), and one is `known`, (d_in, r): the right one of
    a weight (d_out, d_in), the left one where `inputs` is 0, of a weight (d_in, d_out).
    Either layout will do; with contiguous columns no copy is made, see `agzo.kernels.thin`.
    """

    left: Tensor
    right: Tensor
    inputs: int = 1

    @staticmethod
    def of(drawn: Tensor, known: Tensor, inputs: int | None) -> LowRank:
        """Return the direction of a weight whose input comes in by this dimension."""
        return LowRank(known, drawn, 0) if inputs == 0 else LowRank(drawn, known)

    @property
    def drawn(self) -> Tensor:
        """The factor that is drawn."""
        return self.left if self.inputs else self.right

    @property
    def known(self) -> Tensor:
        """The factor that is known beside it: a basis, or LOZO's V."""
        return self.right if self.inputs else self.left

    @property
    def turned(self) -> LowRank:
        """The direction of the transposed weight."""
        return LowRank(self.right, self.left, 1 - self.inputs)

    def facing(self, gradient: Tensor) -> Tensor:
        """Return a gradient of the weight, turned where need be: its columns are the inputs'."""
        return gradient if self.inputs else gradient.T

    @property
    def shape(self) -> torch.Size:
        """Shape of the product, and of the weight."""
        return torch.Size((self.left.shape[0], self.right.shape[0]))

    def rows(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yield the product in blocks of rows."""
        for start, stop in chunks(self.shape):
            yield start, stop, self._on(self.left[start:stop])

    def take(self, ids: Tensor) -> Tensor:
        """Return some rows of the product; see `Direction.take`."""
        return self._on(self.left[ids])

    def _on(self, left: Tensor) -> Tensor:
        with exactly(left.device):
            return left @ self.right.T

    def add_linear(self, y: Tensor, x: Tensor, scale: float) -> None:
        """Set y to ``y + scale * (x right) left^T``; see `Branch.add_linear`."""
        thin.add_branch(y, x, thin.rows(self.right), thin.rows(self.left), scale)

    def add_to(
        self, weight: Tensor, keep: Tensor | None, scale: Tensor, rounding: kernels.Key | None
    ) -> None:
        """Set weight to ``keep * weight + scale * direction`` in one pass; see `Direction`."""
        if kernels.adds_low_rank(weight):
            kernels.add_low_rank(weight, self.left, self.right, keep, scale, rounding)
        elif weight.dtype == at_least_float32(weight.dtype):
            if keep is not None:
                weight.mul_(keep)
            left = thin.rows(self.left).to(weight.dtype) * scale
            thin.add_product(weight, left, thin.rows(self.right).to(weight.dtype))
        elif rounding is None and thin.takes_float32(weight, thin.rows(self.left)):
            own = 1.0 if keep is None else float(keep)
            factors = thin.rows(self.left), thin.rows(self.right)
            native.add_thin_bfloat16(weight, *factors, own, float(scale))
        else:
            super().add_to(weight, keep, scale, rounding)


class Still(LowRank):
    """The direction zero, of a matrix that the batch does not reach."""


def still(shape: torch.Size, device: torch.device) -> Still:
    """Return the direction zero of a matrix."""
    height, width = (torch.zeros(n, 1, dtype=torch.float32, device=device) for n in shape)
    return Still(height, width)
