"""The methods of this folder as plain functions on the weights, in the words of `agzo.reference`.

    W        the tuned weights, name -> parameter
    f        () -> loss of one minibatch, 0-dim
    eta, mu  learning rate and size of the perturbation (lr and eps elsewhere)
    state    a dict that the caller keeps between the steps

Each takes one step, writing the perturbations into the weights, and returns the slopes it measured.
For float32 and float64; tests hold the optimizers to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from agzo.reference import Loss, Weights, add

Direction = Callable[[str, nn.Parameter], Tensor]
Probe = Callable[[str, nn.Parameter], Tensor | tuple[Tensor, Tensor, Tensor]]
Flip = Callable[[str, nn.Parameter], tuple[Tensor, Tensor]]


def one_sided(W: Weights, f: Loss, mu: float, directions: Sequence[Direction]) -> Tensor:
    """Return (f(W + mu D_i) - f(W)) / mu for each direction; W is as it was, but for rounding."""
    l_0, losses = f(), []
    for D in directions:
        add(W, D, mu)
        losses.append(f())
        add(W, D, -mu)
    return (torch.stack(losses) - l_0) / mu


def two_sided(W: Weights, f: Loss, mu: float, D: Direction) -> tuple[Tensor, Tensor]:
    """Return f(W + mu D) and f(W - mu D); W is as it was, but for rounding."""
    add(W, D, mu)
    plus = f()
    add(W, D, -2 * mu)
    minus = f()
    add(W, D, mu)
    return plus, minus


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
def subzero(
    W: Weights, f: Loss, eta: float, mu: float, Z: Sequence[Direction],
    U: Mapping[str, Tensor], V: Mapping[str, Tensor],
) -> list[float]:  # fmt: skip
    """Take a step of SubZero+ with SGD (arXiv 2608.15665); U and V are kept by the caller.

    Z holds K directions, r x r of a matrix. Zbar = 1 / K sum ((l_k - l_0) / mu) Z_k;
    W <- W - eta U Zbar V^T
    """

    def inside(Z_k: Direction) -> Direction:
        return lambda name, w: U[name] @ Z_k(name, w) @ V[name].T if name in U else Z_k(name, w)

    slopes = one_sided(W, f, mu, [inside(Z_k) for Z_k in Z])

    def Zbar(name: str, w: nn.Parameter) -> Tensor:
        return torch.stack([g * Z_k(name, w) for g, Z_k in zip(slopes, Z, strict=True)]).mean(0)

    add(W, inside(Zbar), -eta)
    return slopes.tolist()


@torch.no_grad()
def zo_muon(
    W: Weights, f: Loss, eta: float, mu: float, Psi: Sequence[Direction], P: Mapping[str, Tensor],
    vector_rate: float,
) -> list[float]:  # fmt: skip
    """Take a step of ZO-Muon (arXiv 2602.17155); P is kept by the caller.

    Psi holds N directions, (r, d_in) of a matrix. G = 1 / N sum ((l_i - l_0) / mu) P Psi_i;
    W <- W - eta msign(G), and W - eta vector_rate G of what is no matrix
    """

    def inside(Psi_i: Direction) -> Direction:
        return lambda name, w: P[name] @ Psi_i(name, w) if name in P else Psi_i(name, w)

    slopes = one_sided(W, f, mu, [inside(Psi_i) for Psi_i in Psi])

    def step(name: str, w: nn.Parameter) -> Tensor:
        each = [g * inside(Psi_i)(name, w) for g, Psi_i in zip(slopes, Psi, strict=True)]
        G = torch.stack(each).mean(0)
        return msign(G) if name in P else vector_rate * G

    add(W, step, -eta)
    return slopes.tolist()


def msign(G: Tensor) -> Tensor:
    """Return U phi(S) V^T of G = U S V^T: Muon's odd polynomial of each singular value, 5 times."""
    U, S, Vh = torch.linalg.svd(G / (G.norm() + 1e-7), full_matrices=False)
    for _ in range(5):
        S = 3.4445 * S - 4.7750 * S**3 + 2.0315 * S**5
    return U @ (S[:, None] * Vh)


@torch.no_grad()
def aim_zo(
    W: Weights, f: Loss, eta: float, mu: float, Q: dict[str, Tensor], eta_q: float,
    probes: Sequence[Probe], inputs: Callable[[], Mapping[str, Tensor]],
) -> list[float]:  # fmt: skip
    """Take a step of AIM-ZO (arXiv 2609.35257) at mu = eps_t; Q is kept by the caller.

    Q <- qf(Q + eta_q / n H (H^T Q));  Z_i as long as a Gaussian matrix along a (Q[:, columns] b)^T
    W <- W - eta / ((N - 1) mu) sum (y_i - mean of y) Z_i

    Args:
        probes: N functions, (name, w) -> (a, b, columns) of a weight with a Q; Z_i of any other.
        inputs: () -> the input H (d_in, n) of each weight with a Q, in a forward at W.
    """
    for name, H in inputs().items():
        Y = Q[name] + eta_q / H.shape[1] * (H @ (H.T @ Q[name]))
        q, R = torch.linalg.qr(Y)
        Q[name] = q * R.diagonal().sign()

    def inside(probe: Probe) -> Direction:
        def Z(name: str, w: nn.Parameter) -> Tensor:
            drawn = probe(name, w)
            if isinstance(drawn, Tensor):
                return drawn
            a, b, columns = drawn
            U = torch.outer(a, Q[name][:, columns] @ b)
            return math.sqrt(U.numel()) / U.norm() * U

        return Z

    Z = [inside(probe) for probe in probes]
    slopes = one_sided(W, f, mu, Z)
    for Z_i, g_i in zip(Z, slopes, strict=True):
        add(W, Z_i, (-eta * (g_i - slopes.mean()) / (len(Z) - 1)).item())
    return slopes.tolist()


@torch.no_grad()
def grzo(
    W: Weights, f: Sequence[Loss], eta: float, mu: float, U: Direction, flips: Sequence[Flip]
) -> list[float]:
    """Take a step of GRZO (arXiv 2606.02857); f holds the losses of B examples, flips their signs.

    flips[i]: (name, w) -> r_i (d_out,), s_i (d_in,); s_i of a vector is 0-dim
    delta_i = (l+ - l-) / 2;  a = delta / std(delta);  W <- W - eta / (2 mu B) U o (R^T diag(a) S)
    """

    def Delta(flip: Flip) -> Direction:
        def of(name: str, w: nn.Parameter) -> Tensor:
            r, s = flip(name, w)
            return U(name, w) * (torch.outer(r, s) if s.dim() else r * s)

        return of

    both = [two_sided(W, f_i, mu, Delta(flip)) for f_i, flip in zip(f, flips, strict=True)]
    delta = torch.stack([(plus - minus) / 2 for plus, minus in both])
    a = delta / delta.std()

    def step(name: str, w: nn.Parameter) -> Tensor:
        r, s = zip(*(flip(name, w) for flip in flips), strict=True)
        R, S = torch.stack(r), torch.stack(s)
        A = R.T @ (a[:, None] * S) if S.dim() > 1 else R.T @ (a * S)
        return U(name, w) * A

    add(W, step, -eta / (2 * mu * len(f)))
    return (delta / mu).tolist()


@torch.no_grad()
def zo_grasp(W: Weights, f: Loss, mu: float, Z: Sequence[Direction]) -> dict[str, Tensor]:
    """Return DeepZero's scores |W o (g(W + mu g(W)) - g(W)) / mu| (arXiv 2310.02025).

    g(V) = 1 / q sum (f(V + mu z_j) - f(V)) / mu z_j, with the q directions Z for both g
    """

    def along(slopes: Tensor) -> Direction:
        return lambda name, w: sum(g * z(name, w) for g, z in zip(slopes, Z, strict=True)) / len(Z)  # pyright: ignore

    before = one_sided(W, f, mu, Z)
    add(W, along(before), mu)
    after = one_sided(W, f, mu, Z)
    add(W, along(before), -mu)
    bend = along((after - before) / mu)
    return {name: (w * bend(name, w)).abs() for name, w in W.items()}


@torch.no_grad()
def deepzero(
    W: Weights, f: Loss, eta: float, mu: float, S: Sequence[tuple[str, int]]
) -> list[float]:
    """Take a step of DeepZero (arXiv 2310.02025) on the coordinates S, (name, place) each.

    W <- W - eta sum (f(W + mu e_c) - f(W)) / mu e_c
    """

    def e(name: str, place: int) -> Direction:
        def unit(own: str, w: nn.Parameter) -> Tensor:
            found = torch.zeros_like(w)
            if own == name:
                found.view(-1)[place] = 1.0
            return found

        return unit

    units = [e(*each) for each in S]
    slopes = one_sided(W, f, mu, units)
    for unit, g in zip(units, slopes, strict=True):
        add(W, unit, (-eta * g).item())
    return slopes.tolist()


@torch.no_grad()
def hizoo(
    W: Weights, f: Loss, eta: float, mu: float, z: Direction, alpha: float, H: dict[str, Tensor]
) -> float:
    """Take a step of HiZOO (arXiv 2402.15173); H is empty at first, and then the inverse of Sigma.

    Delta = H^(-1/2) z;  W <- W - eta g Delta
    H <- (1 - alpha) H + alpha |l+ + l- - 2 l| / (2 mu^2) H z^2
    """
    for name, w in W.items():
        H.setdefault(name, torch.ones_like(w))

    def Delta(name: str, w: nn.Parameter) -> Tensor:
        return z(name, w) / H[name].sqrt()

    l_0 = f()
    plus, minus = two_sided(W, f, mu, Delta)
    g = ((plus - minus) / (2 * mu)).item()
    add(W, Delta, -eta * g)
    bend = (plus + minus - 2 * l_0).abs() / (2 * mu**2)
    for name, w in W.items():
        H[name] = (1 - alpha) * H[name] + alpha * bend * H[name] * z(name, w) ** 2
    return g


@torch.no_grad()
def conmezo(
    W: Weights, f: Loss, eta: float, mu: float, u: Direction, theta: float, beta: float,
    m: dict[str, Tensor],
) -> float:  # fmt: skip
    """Take a step of ConMeZO (arXiv 2511.02757); m is empty at first, and then the momentum.

    z = cos(theta) sqrt(d) m / |m| + sin(theta) u;  W <- W - eta g z;  m <- beta m + (1 - beta) g z
    """
    d = sum(w.numel() for w in W.values())
    length = sum(each.square().sum() for each in m.values()) ** 0.5
    old = dict(m)

    def z(name: str, w: nn.Parameter) -> Tensor:
        if not old:
            return u(name, w)
        cone = math.cos(theta) * math.sqrt(d) / length * old[name]
        return cone + math.sin(theta) * u(name, w)

    plus, minus = two_sided(W, f, mu, z)
    g = ((plus - minus) / (2 * mu)).item()
    add(W, z, -eta * g)
    for name, w in W.items():
        m[name] = beta * old.get(name, torch.zeros_like(w)) + (1 - beta) * g * z(name, w)
    return g


@torch.no_grad()
def meazo(
    W: Weights, f: Loss, eta: float, mu: float, Z: Direction, beta: float, state: dict[str, float]
) -> float:
    """Take a step of MEAZO (arXiv 2605.03869) with one direction, two-sided.

    v <- beta v + (1 - beta) g^2;  W <- W - eta g / (sqrt(v / (1 - beta^t)) + 1e-8) Z
    """
    plus, minus = two_sided(W, f, mu, Z)
    g = ((plus - minus) / (2 * mu)).item()
    t = state["t"] = state.get("t", 0) + 1
    v = state["v"] = beta * state.get("v", 0.0) + (1 - beta) * g * g
    add(W, Z, -eta * g / ((v / (1 - beta**t)) ** 0.5 + 1e-8))
    return g
