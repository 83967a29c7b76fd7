"""MeZO, LOZO and AGZO as plain functions on the weights: read these first.

Each takes one step and returns the slope g. They write the perturbation into the weights and take
it out again, as published code does, with a tensor of noise for one weight at a time; what the rest
of this package does is the same without writing, in low precision too, and in less time. Tests hold
every fast way to these functions.

    W        the tuned weights, name -> parameter
    f        () -> loss of one minibatch, 0-dim
    eta, mu  learning rate and size of the perturbation (lr and eps elsewhere)
    normal   (name, shape, role) -> standard normal numbers, the same ones at each call of a step;
             role tells apart what is drawn for one weight: "dense", "left", "right", "omega"

In bfloat16 and float16 W + mu D - mu D is not W: these are for float32 and float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

Weights = Mapping[str, nn.Parameter]
Normal = Callable[[str, tuple[int, ...], str], Tensor]
Loss = Callable[[], Tensor]


def add(W: Weights, direction: Callable[[str, nn.Parameter], Tensor], scale: float) -> None:
    """Set each weight to W + scale * direction; only one weight's direction is held at a time."""
    for name, w in W.items():
        w.data.add_(direction(name, w).to(w.dtype), alpha=scale)


@torch.no_grad()
def mezo(W: Weights, f: Loss, eta: float, mu: float, normal: Normal) -> float:
    """Take a step of MeZO (arXiv 2305.17333, Algorithm 1), two-sided.

    Z ~ N(0, 1);  g = (f(W + mu Z) - f(W - mu Z)) / (2 mu);  W <- W - eta g Z
    """

    def Z(name: str, w: nn.Parameter) -> Tensor:
        return normal(name, tuple(w.shape), "dense")

    return _two_sided(W, f, eta, mu, Z)


@torch.no_grad()
def lozo(
    W: Weights, f: Loss, eta: float, mu: float, normal: Normal, r: int, V: Mapping[str, Tensor]
) -> float:
    """Take a step of LOZO (arXiv 2410.07698, Algorithm 1), two-sided.

    Delta = U V^T of a matrix, U (m, r) ~ N(0, 1), and V (n, r), which the caller keeps for nu
    steps; Z of any other weight. As in its code there is no division by r.
    """

    def Delta(name: str, w: nn.Parameter) -> Tensor:
        if w.dim() != 2:
            return normal(name, tuple(w.shape), "dense")
        return normal(name, (w.shape[0], r), "left") @ V[name].T

    return _two_sided(W, f, eta, mu, Delta)


def _two_sided(
    W: Weights, f: Loss, eta: float, mu: float, direction: Callable[[str, nn.Parameter], Tensor]
) -> float:
    add(W, direction, mu)
    f_plus = f()
    add(W, direction, -2 * mu)
    f_minus = f()
    add(W, direction, mu)
    g = ((f_plus - f_minus) / (2 * mu)).item()
    add(W, direction, -eta * g)
    return g


@torch.no_grad()
def agzo(
    W: Weights, f: Loss, eta: float, mu: float, normal: Normal, r: int, K: int,
    layers: Mapping[str, nn.Linear], real: Tensor | None = None,
) -> float:  # fmt: skip
    """Take a step of AGZO (arXiv 2601.17261, Algorithm 2), one-sided.

    At f0 = f(W) each linear layer's input H gives A = SubspaceExtract(H, r, K). Then
    Delta = R A^T for its weight, R (m, r) ~ N(0, 1), and Z for any other weight;
    g = (f(W + mu Delta) - f0) / mu;  W <- W - mu Delta - eta g Delta, in one pass.

    Args:
        layers: the linear layers with a weight in W, by the weight's name.
        real: boolean (tokens,), False for padding; None counts all.
    """
    A: dict[str, Tensor] = {}

    def look(name: str, h: Tensor) -> None:
        H = h.reshape(-1, h.shape[-1]).T  # (n, tokens)
        H = H if real is None else H[:, real]
        H = H.to(torch.promote_types(H.dtype, torch.float32))
        omega = normal(name, (H.shape[1], r), "omega").to(H.dtype)
        A[name] = subspace_extract(H, omega, K)

    def hook(name: str) -> Callable[..., None]:
        return lambda module, inputs: look(name, inputs[0])

    hooks = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    f_0 = f()
    for each in hooks:
        each.remove()

    def Delta(name: str, w: nn.Parameter) -> Tensor:
        if name not in A:
            return normal(name, tuple(w.shape), "dense")
        return normal(name, (w.shape[0], r), "left") @ A[name].T

    add(W, Delta, mu)
    g = ((f() - f_0) / mu).item()
    add(W, Delta, -(mu + eta * g))
    return g


def subspace_extract(H: Tensor, omega: Tensor, K: int) -> Tensor:
    """Return A (n, r), orthonormal: Algorithm 1 on H (n, m) with Omega (m, r)."""
    Y = H @ omega
    for _ in range(K):
        Q, _ = torch.linalg.qr(Y)
        Y = H @ (H.T @ Q)
    return torch.linalg.qr(Y).Q
