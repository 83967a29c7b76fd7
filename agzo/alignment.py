"""How well a random direction aligns with the gradient: measured, and as the theory predicts it.

For one parameter or several taken together, with G the gradient and Delta the direction:

    cosine            <Delta, G> / (|Delta| |G|)                           (AGZO Eq. 21)
    beta_D            E|U_1|, U uniform on the unit sphere of R^D          (Eqs. 24, 25)
    expected_cosine   beta_D |G A| / |G|, D = sum over layers of d_out r   (Theorem 5.4)

A dense Gaussian direction is the case A = I: D counts its coordinates and |G A| = |G|
(Corollary 5.5). Several parameters, of either kind, count as one long vector, because |R A^T| = |R|
for orthonormal A.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from agzo.directions.direction import Dense, Direction
from agzo.directions.low_rank import LowRank
from agzo.directions.seen import SeenRows
from agzo.execution.perturb import Directions

Gradients = Mapping[nn.Parameter, Tensor]


def beta(dimension: int) -> float:
    """Return beta_D = Gamma(D/2) / (sqrt(pi) Gamma((D+1)/2)), about sqrt(2 / (pi D))."""
    if dimension < 1:
        raise ValueError(f"dimension={dimension}: allowed are 1 and more")
    if dimension > 1000:  # a difference of two large log-gammas loses digits: Stirling's series
        x = 1.0 / dimension  # to D^-4; the next term is below 1e-17
        series = 1.0 + x * (1 / 4 + x * (1 / 32 - x * (5 / 128 + x * (21 / 2048))))
        return math.sqrt(2.0 / (math.pi * dimension)) * series
    return math.exp(math.lgamma(dimension / 2) - math.lgamma((dimension + 1) / 2)) / math.sqrt(
        math.pi
    )


def norm(gradients: Gradients) -> Tensor:
    """Return |G| over all parameters together (0-dim float64)."""
    return torch.stack([g.double().square().sum() for g in gradients.values()]).sum().sqrt()


def inner(directions: Directions, gradients: Gradients) -> Tensor:
    """Return <Delta, G> over the parameters of `gradients` (0-dim float64)."""
    return torch.stack([directions[p].inner(g).double() for p, g in gradients.items()]).sum()


def cosine(directions: Directions, gradients: Gradients) -> Tensor:
    """Return the cosine of a direction and the gradient over the parameters of `gradients`.

    Its sign is that of the exact slope <Delta, G>; an estimate ``projected_grad * Delta`` has the
    same cosine with the sign of ``projected_grad * <Delta, G>``.
    """
    lengths = torch.stack([directions[p].norm() for p in gradients])
    return inner(directions, gradients) / (lengths.norm() * norm(gradients))


def captured(gradient: Tensor, basis: Tensor) -> Tensor:
    """Return |G A| / |G|, the cosine of G and its projection G A A^T (0-dim float64).

    Args:
        gradient: G, (d_out, d_in).
        basis: A, (d_in, r) with orthonormal columns.
    """
    g = gradient.double()
    return (g @ basis.double()).norm() / g.norm()


def expected_cosine(directions: Directions, gradients: Gradients) -> float:
    """Return E|cos| of Theorem 5.4 for directions of this kind, over `gradients` together.

    With B the right factor of a low-rank direction (I for a dense one) and D the number of
    Gaussian numbers drawn:

        beta_D sqrt(D) sqrt(sum |G B|^2) / (|G| sqrt(E |Delta|^2)),   E |Delta|^2 = sum d_out |B|^2

    Of an embedding table G counts on the rows seen, and a head's R A^T as that of a linear layer.
    Parts of a direction that are drawn apart add their squares. Exact for dense and for AGZO's
    directions, where B is orthonormal and E |Delta|^2 = D. LOZO's V is not, and parts of unequal
    scale are not alike: <G, Delta> is exactly Gaussian there too, but |Delta| only concentrates
    around its root mean square, so for few numbers drawn the value is approximate. Signs (`Signs`)
    have that length exactly, and <G, Delta> is nearly Gaussian where G is spread over many values.
    """
    parts = [part for p, g in gradients.items() for part in _parts(directions[p], g)]
    drawn = sum(part.drawn for part in parts)
    kept, length = (torch.stack(each).sum() for each in zip(*(p[1:] for p in parts), strict=True))
    return beta(drawn) * math.sqrt(drawn) * ((kept / length).sqrt() / norm(gradients)).item()


class _Part(NamedTuple):
    """Of a part of a direction that is drawn apart from the others."""

    drawn: int  # Gaussian numbers
    kept: Tensor  # E <G, Delta>^2
    length: Tensor  # E |Delta|^2


def _parts(direction: Direction, gradient: Tensor) -> Iterator[_Part]:
    g = gradient.double()
    if isinstance(direction, LowRank):
        known, height = direction.known.double(), direction.drawn.shape[0]
        length = known.square().sum() * height
        kept = (direction.facing(g) @ known).square().sum()
        yield _Part(direction.drawn.numel(), kept, length)
    elif isinstance(direction, SeenRows):
        rows = direction.seen.member.nonzero().view(-1)
        source = direction.source
        if isinstance(source, LowRank):
            yield from _parts(LowRank(source.left[rows], source.right), g[rows])
        else:
            yield from _parts(source, g[rows])
        if direction.head is not None:
            yield from _parts(direction.head, g)
    elif isinstance(direction, Dense):
        yield _Part(g.numel(), g.square().sum(), g.new_tensor(g.numel()))
    else:
        raise ValueError(
            f"{type(direction).__name__}: the theory covers directions whose coordinates are drawn "
            "alike, dense or in a basis; allowed are those"
        )
