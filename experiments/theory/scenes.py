"""Small problems with known gradients, and draws from the library's estimator on them.

A scene is a module in float64 and the closure of a batch. `Draws` are the directions and projected
gradients of `ZeroOrderOptimizer.estimate`, flattened over all tuned parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agzo import ZeroOrderOptimizer
from agzo.activations.spectrum import gradients
from agzo.directions.activation_subspace import ActivationSubspace
from agzo.execution.perturb import Directions, perturbed_copy
from agzo.rng import Noise
from agzo.torch_calls.surroundings import Closure
from experiments.theory.evidence import PILOT

EPS = 1e-6  # the limit of a small perturbation, in float64
HOLD = 10**9  # refresh_every: the bases of step 0 for all later steps
BLOCK = 100  # queries of one estimate
LATER = 10**6  # the first step after a pilot's


@dataclass(frozen=True)
class LinearLoss:
    """f(W) = <Q, X W^T>: its gradient is Q^T X everywhere, X (tokens, d_in), Q (tokens, d_out)."""

    x: Tensor
    q: Tensor
    model: nn.Linear

    @staticmethod
    def make(x: Tensor, q: Tensor) -> LinearLoss:
        """Build the layer, with zero weights: the gradient does not depend on them."""
        model = nn.Linear(x.shape[1], q.shape[1], bias=False, dtype=torch.float64)
        nn.init.zeros_(model.weight)
        return LinearLoss(x.double(), q.double(), model.eval())

    def closure(self) -> Tensor:
        """Return the loss."""
        return (self.model(self.x) * self.q).sum()

    @property
    def gradient(self) -> Tensor:
        """Return Q^T X, (d_out, d_in) float64."""
        return self.q.T @ self.x


class TwoInputs(nn.Module):
    """y = L1(x1) + L2(x2): two linear layers with bias, and a loss quadratic in all of them."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.first = nn.Linear(5, 3, dtype=torch.float64)
        self.second = nn.Linear(6, 3, dtype=torch.float64)
        _fill(self, generator)

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Return (tokens, 3)."""
        return self.first(x1) + self.second(x2)


def tanh_network(generator: torch.Generator) -> nn.Sequential:
    """Return a smooth network: 6 inputs, 5 hidden units, 3 outputs, biases, float64."""
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double().eval()
    _fill(model, generator)
    return model


def _fill(model: nn.Module, generator: torch.Generator) -> None:
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Return standard normal numbers, float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def rotation(generator: torch.Generator, rows: int, columns: int) -> Tensor:
    """Return random orthonormal columns, (rows, columns) float64."""
    return torch.linalg.qr(normal(generator, rows, columns)).Q


@dataclass(frozen=True)
class Draws:
    """`delta` (n, coordinates) and `g` (n,): directions and projected gradients, float64."""

    delta: Tensor
    g: Tensor

    @property
    def estimates(self) -> Tensor:
        """Return the estimates g Delta, (n, coordinates)."""
        return self.g[:, None] * self.delta

    def cosines(self, gradient: Tensor) -> Tensor:
        """Return cos(g Delta, gradient), (n,): Eq. 21."""
        inner = self.delta @ gradient
        return self.g.sign() * inner / (self.delta.norm(dim=1) * gradient.norm())


def draw(
    optimizer: ZeroOrderOptimizer, closures: Sequence[Closure], samples: int, first_step: int = 1
) -> Draws:
    """Take at least `samples` measurements, equally many with each closure in turn.

    An estimate gives `optimizer.queries` measurements, at a step (an address of noise) of its own.
    """
    deltas, gs = [], []
    rounds = math.ceil(samples / (optimizer.queries * len(closures)))
    for index in range(rounds * len(closures)):
        closure = closures[index % len(closures)]
        for directions, g in optimizer.estimate(closure, step=first_step + index).queries:
            deltas.append(flat_directions(optimizer, directions))
            gs.append(g)
    return Draws(torch.stack(deltas).double(), torch.stack(gs).double())


def draw_enough(
    optimizer: ZeroOrderOptimizer, closures: Sequence[Closure], size: Callable[[Draws], int]
) -> Draws:
    """Take a pilot, ask it how many samples are needed, and take that many fresh ones."""
    return draw(optimizer, closures, size(draw(optimizer, closures, PILOT)), LATER)


def hold_bases(optimizer: ZeroOrderOptimizer, closure: Closure) -> dict[str, Tensor]:
    """Take bases on this batch, for all later steps of an AGZO with refresh_every=HOLD."""
    optimizer.step(closure)  # with lr = 0
    look = optimizer._sampler
    assert isinstance(look, ActivationSubspace)
    return {name: basis.double() for name, basis in look.bases.items()}


def flat_directions(optimizer: ZeroOrderOptimizer, directions: Directions) -> Tensor:
    """Return a direction over all tuned parameters as one vector (float32)."""
    return torch.cat([directions[t.parameter].dense().reshape(-1) for t in optimizer.tuned])


def flat_gradient(optimizer: ZeroOrderOptimizer, closure: Closure) -> Tensor:
    """Return the exact gradient over all tuned parameters as one vector (float64)."""
    found = gradients(closure, optimizer.tuned)
    return torch.cat([found[t.parameter].double().reshape(-1) for t in optimizer.tuned])


def projected(optimizer: ZeroOrderOptimizer, vector: Tensor, bases: Mapping[str, Tensor]) -> Tensor:
    """Return G A A^T for each weight with a basis and G for the rest, as one vector."""
    parts, start = [], 0
    for each in optimizer.tuned:
        stop = start + each.parameter.numel()
        part = vector[..., start:stop]
        if each.name in bases:
            a = bases[each.name]
            matrix = part.reshape(*vector.shape[:-1], *each.parameter.shape)
            part = (matrix @ a @ a.T).reshape(part.shape)
        parts.append(part)
        start = stop
    return torch.cat(parts, dim=-1)


def smoothed_gradients(
    optimizer: ZeroOrderOptimizer,
    loss: Callable[[Mapping[str, Tensor]], Tensor],
    mu: float,
    steps: Sequence[int],
) -> Tensor:
    """Return the exact gradient at W + mu Delta for fresh directions, (n, coordinates).

    Its mean is the gradient of the smoothed loss, found without any finite difference.

    Args:
        optimizer: gives the directions.
        loss: of the weights by name.
        mu: size of the perturbation.
        steps: whose directions to take, BLOCK queries each; not those of an estimate's draws.
    """
    found = []
    for step in steps:
        for query in range(BLOCK):
            directions = optimizer._directions(Noise(optimizer.seed, step, query))
            moved = {
                t.name: perturbed_copy(t.parameter.detach(), directions[t.parameter], mu)
                for t in optimizer.tuned
            }
            for weight in moved.values():
                weight.requires_grad_()
            parts = torch.autograd.grad(loss(moved), list(moved.values()))
            found.append(torch.cat([part.reshape(-1) for part in parts]))
    return torch.stack(found)
