"""The methods of this folder as plain functions on the weights, in the words of `agzo.reference`.

    W        the tuned weights, name -> parameter
    f        () -> loss of one minibatch, 0-dim
    eta, mu  learning rate and size of the perturbation (lr and eps elsewhere)
    state    a dict that the caller keeps between the steps

Each takes one step, writing the perturbations into the weights, and returns the slopes it measured.
For float32 and float64; tests hold the optimizers to them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from agzo.reference import Loss, Weights, add

Direction = Callable[[str, nn.Parameter], Tensor]


def one_sided(W: Weights, f: Loss, mu: float, directions: Sequence[Direction]) -> Tensor:
    """Return (f(W + mu D_i) - f(W)) / mu for each direction; W is as it was, but for rounding."""
    l_0, losses = f(), []
    for D in directions:
        add(W, D, mu)
        losses.append(f())
        add(W, D, -mu)
    return (torch.stack(losses) - l_0) / mu


@torch.no_grad()
def fzoo(W: Weights, f: Loss, eta: float, mu: float, u: Sequence[Direction]) -> list[float]:
    """Take a step of FZOO (arXiv 2506.09034): u holds N directions of signs.

    l_i = f(W + mu u_i);  g = 1 / (mu N) sum (l_i - l_0) u_i;  W <- W - eta g / std(l)
    """
    slopes = one_sided(W, f, mu, u)
    sigma = (slopes * mu).std()  # that of the losses: l_0 is the same for all
    for u_i, g_i in zip(u, slopes, strict=True):
        add(W, u_i, -(eta * g_i / (len(u) * sigma)).item())
    return slopes.tolist()


@torch.no_grad()
def meazo(
    W: Weights, f: Loss, eta: float, mu: float, Z: Direction, beta: float, state: dict[str, float]
) -> float:
    """Take a step of MEAZO (arXiv 2605.03869) with one direction, two-sided.

    v <- beta v + (1 - beta) g^2;  W <- W - eta g / (sqrt(v / (1 - beta^t)) + 1e-8) Z
    """
    add(W, Z, mu)
    f_plus = f()
    add(W, Z, -2 * mu)
    f_minus = f()
    add(W, Z, mu)
    g = ((f_plus - f_minus) / (2 * mu)).item()
    t = state["t"] = state.get("t", 0) + 1
    v = state["v"] = beta * state.get("v", 0.0) + (1 - beta) * g * g
    add(W, Z, -eta * g / ((v / (1 - beta**t)) ** 0.5 + 1e-8))
    return g
