"""What changes inside the model between the evaluations of a step is an error that names where."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from agzo import AGZO
from baselines import LOZO, MeZO
from tests.networks import weights

METHODS = [
    pytest.param(MeZO, {}, id="mezo"),
    pytest.param(MeZO, {"execution": "in_place"}, id="mezo-in-place"),
    pytest.param(LOZO, {"rank": 1, "estimator": "one_sided"}, id="lozo-one-sided"),
    pytest.param(AGZO, {}, id="agzo"),
    pytest.param(AGZO, {"estimator": "two_sided"}, id="agzo-two-sided"),
]
X = torch.randn(12, 8, generator=torch.Generator().manual_seed(3))
every_method = pytest.mark.parametrize(("method", "options"), METHODS)


class Noisy(nn.Module):
    """A layer whose noise is no module's."""

    def __init__(self, draw: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.draw, self.p, self.own = draw, 0.0, torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.draw(self, self.linear(x))


def net(middle: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), middle, nn.Linear(8, 1)).eval()


def closure_of(model: nn.Module) -> Callable[[], Tensor]:
    return lambda: model(X).square().mean()


SWITCHED: dict[str, Callable[[Any, Tensor], Tensor]] = {  # by train()
    "functional dropout": lambda m, x: F.dropout(x, 0.1, m.training),
    "attention's dropout": lambda m, x: F.scaled_dot_product_attention(
        *([x[None]] * 3), dropout_p=0.1 * m.training
    )[0],
    "Gaussian": lambda m, x: x + 1e-3 * torch.randn_like(x) if m.training else x,
    "its own generator": lambda m, x: x * (1 + torch.rand(1, generator=m.own)) if m.training else x,
    "Python's": lambda m, x: x * random.random() if m.training else x,
    "layer drop": lambda m, x: x if not m.training or torch.rand(()) < 0.99 else 2 * x,
}


@every_method
@pytest.mark.parametrize("kind", SWITCHED)
def test_noise_that_train_switches_on_names_its_module(kind, method, options):
    model = net(Noisy(SWITCHED[kind]))
    optimizer = method(model, lr=1e-2, eps=1e-3, **options)
    for _ in range(2):
        optimizer.step(closure_of(model))
    model.train()
    before = weights(model)
    with pytest.raises(ValueError, match=r"^module 2 \(Noisy\) (is not deterministic|draws)"):
        optimizer.step(closure_of(model))
    assert all(p.equal(before[n]) for n, p in model.named_parameters())
    model.eval()
    optimizer.step(closure_of(model))
    assert optimizer.finite


@every_method
@pytest.mark.parametrize("first", [True, False])
def test_noise_that_no_mode_tells_of_names_its_module(first, method, options):
    model = net(Noisy(lambda m, x: F.dropout(x, m.p, True)))
    optimizer = method(model, lr=1e-2, eps=1e-3, **options)
    if not first:
        optimizer.step(closure_of(model))
    model[2].p = 0.1
    before = weights(model)
    with pytest.raises(ValueError, match=r"^module 2 \(Noisy\) draws"):
        optimizer.step(closure_of(model))
    assert all(p.equal(before[n]) for n, p in model.named_parameters())


@every_method
def test_noise_that_the_closure_seeds_is_a_function(method, options):
    model = net(Noisy(lambda m, x: F.dropout(x, 0.1, True)))

    def closure() -> Tensor:
        torch.manual_seed(7)
        return closure_of(model)()

    optimizer = method(model, lr=1e-2, eps=1e-3, **options)
    for _ in range(3):
        optimizer.step(closure)
    assert optimizer.finite


class Cache(nn.Module):
    """A buffer that is filled at need, as a table of positions is."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(0))

    def forward(self, x: Tensor) -> Tensor:
        if len(self.table) < len(x):
            self.table = torch.arange(float(len(x)))
        return x + 0.01 * self.table[: len(x), None]


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


class FunctionalNorm(nn.Module):
    """Batch norm by torch's function, which tells nobody that it writes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("variance", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.variance, training=self.training)


MOVING = {
    "BatchNorm": (lambda: nn.BatchNorm1d(8), "2: a BatchNorm1d whose buffer running_"),
    "spectral norm": (
        lambda: spectral_norm(nn.Linear(8, 8)),
        r"2\.parametrizations\.weight\.0: a _SpectralNorm whose buffer _[uv]",
    ),
    "functional batch norm": (FunctionalNorm, "2: a FunctionalNorm whose buffer mean"),
    "a count": (Counter, "2: a Counter whose buffer calls"),
}


@every_method
@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("kind", MOVING)
def test_a_buffer_that_evaluations_change_is_refused_before_a_slope_is_used(
    kind, later, method, options
):
    make, message = MOVING[kind]
    model = net(make())
    if kind == "a count" and later:
        return  # no mode keeps it
    optimizer = method(model, lr=1e-2, eps=1e-3, **options)
    if later:
        optimizer.step(closure_of(model))
    model.train()
    before = weights(model)
    with pytest.raises(ValueError, match=f"^module {message}"):
        optimizer.step(closure_of(model))
    assert all(p.equal(before[n]) for n, p in model.named_parameters())
    if kind != "a count":
        model.eval()
        optimizer.step(closure_of(model))


@every_method
def test_a_buffer_that_is_filled_once_is_no_matter(method, options):
    model = net(Cache())
    optimizer = method(model, lr=1e-2, eps=1e-3, **options)
    for rows in (3, 12):
        optimizer.step(lambda rows=rows: model(X[:rows]).square().mean())
    assert len(model[2].table) == 12


def test_looking_at_a_method_sees_noise_and_buffers_too():
    for middle, message in ((nn.BatchNorm1d(8), "buffer"), (Noisy(SWITCHED["Gaussian"]), "")):
        model = net(middle)
        optimizer = MeZO(model, lr=1e-2, eps=1e-3)
        optimizer.step(closure_of(model))
        model.train()
        with pytest.raises(ValueError, match=f"^module 2.*{message}"):
            optimizer.estimate(closure_of(model))


@every_method
@pytest.mark.parametrize("within", [False, True])
def test_a_closure_made_for_backward_is_an_error_and_leaves_no_gradient(within, method, options):
    model = net(nn.Linear(8, 8))
    passes = []

    def closure() -> Tensor:
        with torch.enable_grad():
            loss = closure_of(model)()
            loss.backward()
            passes.append(1)
        return loss.detach() if within else loss

    with pytest.raises(ValueError, match=r"^the closure ran a backward pass: .* 6 tuned .*0\.weig"):
        method(model, lr=1e-2, eps=1e-3, **options).step(closure)
    assert len(passes) == 1
    assert all(p.grad is None for p in model.parameters())


@every_method
def test_torchs_own_closure_is_an_error_of_one_line(method, options):
    model = net(nn.Linear(8, 8))
    optimizer = method(model, lr=1e-2, eps=1e-3, **options)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = closure_of(model)()
        loss.backward()
        return loss

    with pytest.raises(ValueError, match=r"^the closure ran a backward pass: no gradient is rec"):
        optimizer.step(closure)


def test_gradients_with_respect_to_inputs_are_a_closures_own_affair():
    model = net(nn.Linear(8, 8))

    def closure() -> Tensor:
        with torch.enable_grad():
            x = X.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(model(x).sum(), x)
        return gradient.square().mean()

    optimizer = MeZO(model, lr=1e-2, eps=1e-3)
    optimizer.step(closure)
    assert optimizer.projected_grad.abs() > 0


def test_a_step_that_was_refused_is_refused_again():
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + random.random() if self.training else x  # of no generator of torch

    model = nn.Sequential(nn.Linear(4, 4), Noisy(), nn.Linear(4, 1)).eval()
    x = torch.randn(6, 4)
    optimizer = MeZO(model, lr=1e-3, eps=1e-3)
    optimizer.step(lambda: model(x).square().mean())
    model.train()
    for _ in range(2):
        with pytest.raises(ValueError, match="is not deterministic"):
            optimizer.step(lambda: model(x).square().mean())
    model.eval()
    optimizer.step(lambda: model(x).square().mean())


def test_what_a_refused_batch_has_shown_is_no_step_s():
    class Loop(nn.Module):
        """A layer that is used once in training, at random, and twice in evaluation."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer, self.out = nn.Linear(6, 6), nn.Linear(6, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.layer(x))
            if not self.training:
                x = torch.tanh(self.layer(x))
            return self.out(x) + (random.random() if self.training else 0.0)

    x, ends = torch.randn(9, 6, generator=torch.Generator().manual_seed(3)), []
    for refused in (False, True):
        model = Loop().eval()
        optimizer = AGZO(model, lr=1e-1, eps=1e-3, rank=2)

        def closure(model: nn.Module = model) -> Tensor:
            return model(x).square().mean()

        optimizer.step(closure)
        if refused:
            model.train()
            with pytest.raises(ValueError, match="is not deterministic"):
                optimizer.step(closure)
            model.eval()
        optimizer.step(closure)
        ends.append(weights(model))
    assert all(value.equal(ends[1][name]) for name, value in ends[0].items())
