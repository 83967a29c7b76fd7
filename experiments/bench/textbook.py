"""Textbook steps in eager PyTorch, as published code performs them: the benchmark's yardstick.

What they include, because the published trainers (MeZO and LOZO, princeton-nlp/MeZO's
`large_models/trainer.py` and its descendants) do:

* noise passes over the weights themselves, in the parameter's dtype, one parameter at a time, in
  eager PyTorch: MeZO and LOZO four of them, +eps, -2 eps, +eps and the update, each with its
  tensor of noise (LOZO: the product U V^T) and the temporaries of ``p + scale * z * eps``; AGZO's
  Algorithm 2 two, since it restores and updates in one, and it takes a basis for every linear
  layer, from a hook, apart;
* torch's global generator, seeded again for each pass, so that the noise is drawn anew;
* restoring by subtraction;
* a wait for the device: the projected gradient and the loss are read by ``.item()``.

The full-vocabulary logits of published code are its forward's: `experiments.bench.losses`. Left
out, so that the yardstick is not made slow: the update's weight-decay term (one more pass, also at
weight decay 0), logging, and the separate forward for the bases of AGZO's prototype.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from agzo.torch_calls.surroundings import Closure
from agzo.tuned.select import roles


class TextbookMeZO:
    """MeZO as published: +eps, -2 eps, +eps, then the update; a tensor of noise at a time."""

    def __init__(self, model: nn.Module, lr: float, eps: float) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.lr, self.eps = lr, eps
        self.seed = 0

    def noise(self, p: nn.Parameter) -> Tensor:
        """Draw the direction of one parameter from the running global stream."""
        return torch.normal(mean=0, std=1, size=p.size(), device=p.device, dtype=p.dtype)

    def perturb(self, scale: float) -> None:
        """Add ``scale * eps * z`` to every weight, replaying the step's noise."""
        torch.manual_seed(self.seed)
        for p in self.parameters:
            p.data = p.data + scale * self.noise(p) * self.eps

    @torch.no_grad()
    def step(self, closure: Closure, token_mask: Tensor | None = None) -> float:
        """Take one step; return the loss at W + eps z, as published."""
        self.seed += 1
        self.perturb(1.0)
        plus = closure()
        self.perturb(-2.0)
        minus = closure()
        self.perturb(1.0)
        projected_grad = ((plus - minus) / (2 * self.eps)).item()
        torch.manual_seed(self.seed)
        for p in self.parameters:
            p.data = p.data - self.lr * (projected_grad * self.noise(p))
        return plus.item()


class TextbookLOZO(TextbookMeZO):
    """LOZO as published: U V^T formed for every matrix at each pass over the weights."""

    def __init__(self, model: nn.Module, lr: float, eps: float, rank: int = 2, nu: int = 50):
        super().__init__(model, lr, eps)
        self.rank, self.nu = rank, nu
        self.right: dict[int, Tensor] = {}

    def noise(self, p: nn.Parameter) -> Tensor:
        """Draw the direction of one parameter: U anew, V as it was kept."""
        if p.dim() < 2:
            return super().noise(p)
        left = torch.randn(p.size(0), self.rank, device=p.device, dtype=p.dtype)
        return left @ self.right[id(p)].t()

    @torch.no_grad()
    def step(self, closure: Closure, token_mask: Tensor | None = None) -> float:
        """Take one step; V is drawn anew every nu steps."""
        if self.seed % self.nu == 0:
            for p in self.parameters:
                if p.dim() >= 2:
                    size = (p.size(1), self.rank)
                    self.right[id(p)] = torch.randn(size, device=p.device, dtype=p.dtype)
        return super().step(closure, token_mask)


class TextbookAGZO:
    """AGZO's Algorithm 2 in place: bases by forward hooks, one base and one perturbed forward."""

    def __init__(
        self, model: nn.Module, lr: float, eps: float, rank: int = 1, power_steps: int = 3
    ) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.lr, self.eps, self.rank, self.power_steps = lr, eps, rank, power_steps
        self.seed = 0
        self.bases: dict[int, Tensor] = {}
        linear = {id(p) for p, role in roles(model).items() if role == "linear"}
        self.linear = [
            module
            for module in model.modules()
            if isinstance(module, nn.Linear) and id(module.weight) in linear
        ]

    def _hook(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        h = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
        v = torch.randn(h.shape[1], self.rank, device=h.device)
        for _ in range(self.power_steps):
            v = h.t() @ (h @ v)
            v = v / v.norm() if self.rank == 1 else torch.linalg.qr(v).Q
        assert isinstance(module, nn.Linear)
        self.bases[id(module.weight)] = v

    def noise(self, p: nn.Parameter) -> Tensor:
        """Draw the direction of one parameter: R A^T where it has a basis."""
        basis = self.bases.get(id(p))
        if basis is None:
            return torch.randn(p.size(), device=p.device, dtype=p.dtype)
        left = torch.randn(p.size(0), self.rank, device=p.device, dtype=p.dtype)
        return left @ basis.to(p.dtype).t()

    @torch.no_grad()
    def step(self, closure: Closure, token_mask: Tensor | None = None) -> float:
        """Take one step: restore and update in one pass, as in Algorithm 2."""
        self.seed += 1
        hooks = [module.register_forward_pre_hook(self._hook) for module in self.linear]
        base = closure()
        for hook in hooks:
            hook.remove()
        torch.manual_seed(self.seed)
        for p in self.parameters:
            p.data += self.eps * self.noise(p)
        plus = closure()
        projected_grad = ((plus - base) / self.eps).item()
        torch.manual_seed(self.seed)
        for p in self.parameters:
            p.data -= (self.eps + self.lr * projected_grad) * self.noise(p)
        return base.item()
