"""What stands around a step: autocast, torch.compile, function modes; each evaluation is alike."""

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agzo import AGZO
from agzo.activations.capture import ActivationCapture
from agzo.execution.compiled import CompiledLayers
from agzo.execution.stream import StreamedLayers
from agzo.rng import Noise
from baselines import LOZO, SGD, AdamW, MeZO, ZOAct, on_dominant_layer
from tests.networks import Network, opt, qwen3, stack, weights

ALL: dict[str, Callable[..., Any]] = {
    "mezo": MeZO,
    "mezo-one-sided": lambda model, **k: MeZO(model, estimator="one_sided", **k),
    "lozo": LOZO,
    "agzo": AGZO,
    "agzo-two-sided": lambda model, **k: AGZO(model, estimator="two_sided", refresh_every=2, **k),
    "zo_act": lambda model, **k: ZOAct(model, calibration_batches=1, update="sgd", **k),
    "dominant": lambda model, **k: on_dominant_layer(
        model, layer=1, base="agzo", scan_batches=0, **k
    ),
}
every_method = pytest.mark.parametrize("name", ALL)
every_execution = pytest.mark.parametrize("execution", ["side_branch", "in_place", "batched"])


def amp() -> Any:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def make(name: str, net: Network, **options: Any) -> Any:
    optimizer = ALL[name](net.model, lr=1e-2, eps=1e-2, **options)
    if optimizer.wants_batches:
        optimizer.calibrate([(net.closure, net.token_mask)])
    return optimizer


def run(optimizer: Any, closure: Callable[[], Tensor], steps: int = 3) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(optimizer.step(closure).item())
        if optimizer.projected_grad is not None:
            found += optimizer.projected_grad.tolist()
    return found


def same(first: nn.Module, second: nn.Module) -> None:
    others = weights(second)
    for name, value in weights(first).items():
        assert value.equal(others[name]), name


def within(closure: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def cast() -> Tensor:
        with amp():
            return closure()

    return cast


@every_execution
@every_method
def test_autocast_around_a_step_is_autocast_inside_the_closure(name, execution):
    inner, outer = stack(), stack()
    inner.closure = within(inner.closure)
    wanted = run(make(name, inner, execution=execution), inner.closure)
    with amp():
        found = run(make(name, outer, execution=execution), outer.closure)
    assert found == wanted
    same(inner.model, outer.model)


@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_autocast_around_a_step_of_backpropagation(kind):
    inner, outer = stack(), stack()
    wanted = run(kind(inner.model, lr=1e-2), within(inner.closure))
    with amp():
        found = run(kind(outer.model, lr=1e-2), outer.closure)
    assert found == wanted
    same(inner.model, outer.model)


@pytest.mark.parametrize("name", ["agzo", "lozo", "mezo"])
def test_autocast_around_a_step_of_streamed_layers(name):
    inner, outer = qwen3(), qwen3()
    wanted = run(
        make(name, inner, stream=StreamedLayers(inner.model, "cpu")), within(inner.closure)
    )
    with amp():
        streamed = make(name, outer, stream=StreamedLayers(outer.model, "cpu"))
        assert run(streamed, outer.closure) == wanted
        outer.model.state_dict()  # the last change is made here, in its own precision
    streamed._weights.flush()
    inner.model.state_dict()
    same(inner.model, outer.model)


@pytest.mark.parametrize("name", ["agzo", "lozo", "mezo"])
def test_autocast_around_a_step_of_compiled_layers(name):
    inner, outer = stack(), stack()
    with CompiledLayers(inner.model, backend="eager"):
        wanted = run(make(name, inner), within(inner.closure))
    with CompiledLayers(outer.model, backend="eager"), amp():
        assert run(make(name, outer), outer.closure) == wanted
    same(inner.model, outer.model)


@pytest.mark.parametrize("name", ["agzo", "mezo"])
def test_a_forward_after_a_step_within_one_autocast_sees_the_new_weights(name):
    net = stack()
    with amp():
        optimizer = make(name, net)
        net.closure()
        optimizer.step(net.closure)
        with torch.no_grad():
            found = net.closure()
    with amp(), torch.no_grad():
        assert net.closure().equal(found)


def test_an_autocast_that_is_off_around_a_step_keeps_no_casts_either():
    inner, outer = stack(), stack()
    wanted = run(make("mezo", inner), within(inner.closure))
    with amp(), torch.autocast("cpu", enabled=False):
        assert run(make("mezo", outer), within(outer.closure)) == wanted


@every_method
def test_a_step_leaves_the_surroundings_as_they_were(name):
    net = stack()
    optimizer = make(name, net)
    optimizer.step(net.closure)

    def state() -> list[Any]:
        return [
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            torch.is_grad_enabled(),
            torch._C._len_torch_function_stack(),
            torch._dynamo.eval_frame._stance.stance,
        ]

    def failing() -> Tensor:
        raise KeyError("mine")

    with torch.autocast("cpu", dtype=torch.float16):
        before = state()
        optimizer.step(net.closure)
        with pytest.raises(KeyError, match="mine"):
            optimizer.step(failing)
        assert state() == before


@pytest.mark.parametrize("name", ["agzo", "lozo"])
def test_bases_directions_and_updates_are_never_rounded_to_autocasts_precision(name):
    """The input of the first layer is what it is, so its basis and direction are as without."""
    found = []
    for cast in (False, True):
        net = stack()
        optimizer = make(name, net)
        with amp() if cast else contextlib.nullcontext():
            directions = optimizer.estimate(net.closure).queries[0][0]
            direction = directions[net.model.get_parameter("first.weight")]
            found.append([direction.left, direction.right, direction.dense()])
            if name == "lozo":
                optimizer.replay(torch.tensor([0.5]))
                found[-1] += list(weights(net.model).values())
    for exact, cast in zip(*found, strict=True):
        assert exact.equal(cast)


def test_zo_act_adds_its_branch_in_the_precision_of_its_coefficients_under_autocast():
    found = []
    for value in (0.1, 0.1 + 1e-4):  # one spacing of bfloat16 at .1 is 5e-4
        net = stack()
        make("zo_act", net)
        branch: Any = net.model.get_submodule("first.zo_act")
        with torch.no_grad(), amp():
            branch.coefficients.fill_(value)
            found.append(branch.add(None, (torch.ones(1, 6),), {}, torch.zeros(1, 8)))
    assert not found[0].equal(found[1])


class Seen(nn.Module):
    """Notes how torch is set whenever it runs, and what a parameter is for torch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 2)
        self.notes: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        w = self.linear.weight.real  # of a real tensor that is the tensor itself
        self.notes.append(
            (
                torch.overrides.has_torch_function((x,)),
                torch.is_grad_enabled(),
                torch.is_inference_mode_enabled(),
                torch.is_autocast_enabled("cpu"),
                torch._dynamo.eval_frame._stance.stance,
                type(w),
                w.requires_grad,
                w.is_leaf,
                w.stride(),
            )
        )
        return self.linear(x).square().mean()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("execution", ["side_branch", "in_place"])
@pytest.mark.parametrize("name", ["mezo", "mezo-one-sided", "lozo", "agzo", "agzo-two-sided"])
def test_every_evaluation_finds_torch_set_alike(name, execution, autocast):
    model, x = Seen(), torch.randn(5, 4)
    with amp() if autocast else contextlib.nullcontext():
        optimizer = ALL[name](model, lr=1e-2, eps=1e-2, execution=execution)
        for _ in range(3):
            optimizer.step(lambda: model(x))
        directions, _ = optimizer.directions(lambda: model(x))
        optimizer.losses(lambda: model(x), directions[0], [0.1, -0.1])
        optimizer.estimate(lambda: model(x))
    assert len(model.notes) > 10
    assert set(model.notes) == {model.notes[0]}
    assert model.notes[0][:6] == (True, False, False, autocast, "force_eager", nn.Parameter)


class Fused(nn.Module):
    """torch's encoder: with a padding mask its fused layers give zeros where the others do not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.double().eval()
        self.x = torch.randn(3, 6, 8, dtype=torch.float64)
        self.padding = torch.zeros(3, 6, dtype=torch.bool)
        self.padding[:, 4:] = True

    def forward(self) -> Tensor:
        return self.encoder(self.x, src_key_padding_mask=self.padding).square().mean()


@pytest.mark.parametrize("execution", ["side_branch", "in_place"])
@pytest.mark.parametrize(
    "make",
    [
        lambda m, **k: MeZO(m, lr=0.0, eps=1e-6, estimator="one_sided", **k),
        lambda m, **k: AGZO(m, lr=0.0, eps=1e-6, refresh_every=5, **k),
    ],
    ids=["mezo", "agzo"],
)
def test_torchs_own_encoder_takes_one_path_in_all_evaluations(make, execution):
    model = Fused()
    optimizer = make(model, execution=execution)
    for _ in range(3):  # without new bases from the second step on
        optimizer.step(model)
    directions, slope = optimizer.estimate(model).queries[0]
    gradients = torch.autograd.grad(model(), list(directions))
    true = sum(directions[p].inner(g).item() for p, g in zip(directions, gradients, strict=True))
    assert slope.item() == pytest.approx(true, rel=1e-3)


COMPILED = {
    "module": lambda model: torch.compile(model, backend="eager"),
    "in_place": lambda model: model.compile(backend="eager") or model,
    "inductor": lambda model: torch.compile(model),
}


@pytest.mark.parametrize("how", COMPILED)
@pytest.mark.parametrize("given", [False, True])
@every_method
def test_a_compiled_model_gives_the_eager_models_bits(name, how, given):
    torch._dynamo.reset()
    eager, other = stack(), stack()
    compiled = COMPILED[how](other.model)
    x = torch.randn(20, 6)
    used = copy.copy(other)
    if given:  # to the optimizer as well, not to the closure alone
        used.model = compiled
    used.closure = lambda: compiled(x).square().mean()
    eager.closure = lambda: eager.model(x).square().mean()
    first, second = make(name, eager), make(name, used)
    assert run(first, eager.closure) == run(second, used.closure)
    same(eager.model, other.model)
    assert [each.name for each in first.tuned] == [each.name for each in second.tuned]


def test_a_compiled_closure_and_a_compiled_loop_are_run_as_they_are_written():
    torch._dynamo.reset()
    nets = [stack() for _ in range(3)]
    optimizers = [make("lozo", net) for net in nets]
    wanted = run(optimizers[0], nets[0].closure)
    assert run(optimizers[1], torch.compile(nets[1].closure, backend="eager")) == wanted
    step = torch.compile(lambda: optimizers[2].step(nets[2].closure), backend="eager")
    for _ in range(3):
        step()
    same(nets[0].model, nets[2].model)


def test_a_model_is_compiled_again_after_a_step():
    torch._dynamo.reset()
    calls = []

    def backend(graph: Any, _: Any) -> Any:
        calls.append(1)
        return graph.forward

    net = stack()
    compiled, x = torch.compile(net.model, backend=backend), torch.randn(3, 6)
    make("mezo", net).step(lambda: compiled(x).square().mean())
    assert not calls
    with torch.no_grad():
        compiled(x)
    assert calls


def test_compiled_layers_are_compiled_within_a_step(monkeypatch):
    torch._dynamo.reset()
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    net = stack()
    with CompiledLayers(net.model, backend=backend):  # pyright: ignore
        make("agzo", net).step(net.closure)
    assert len(graphs) == 2  # at W with bases taken, at W + eps Delta


def test_a_default_device_is_the_lockstep_threads_too():
    net = opt()
    devices = []

    def closure() -> Tensor:
        devices.append(torch.empty(0).device.type)
        with torch.device("cpu"):
            return net.closure()

    optimizer = MeZO(net.model, lr=1e-3, eps=1e-3, stream=StreamedLayers(net.model, "cpu"))
    with torch.device("meta"):
        optimizer.step(closure)
    assert set(devices) == {"meta"}


def test_a_basis_is_taken_without_autocast():
    layer = nn.Linear(16, 4)
    x = torch.randn(50, 16)
    bases = []
    for cast in (False, True):
        tuned = MeZO(layer, lr=0.0, eps=1.0).tuned[:1]
        capture = ActivationCapture(tuned, 2, 3, Noise(0, 0), None)
        with torch.no_grad(), amp() if cast else contextlib.nullcontext():
            capture.watch(lambda: layer(x).sum())
        bases.append(capture.bases["weight"])
    assert bases[0].equal(bases[1])
