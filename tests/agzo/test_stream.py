"""Streamed layers: bit for bit the run of a resident model, two layers on the device at a time."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from agzo import AGZO, ZeroOrderOptimizer
from agzo.execution.lockstep import Lockstep
from agzo.execution.stream import StreamedLayers
from agzo.tuned.layers import decoder_layers
from baselines import LOZO, SGD, MeZO, on_dominant_layer
from tests.methods import METHODS, Method, slow_for_the_field
from tests.networks import NETWORKS, Network, llama, qwen3, stack, weights

CASES = {
    "mezo": (MeZO, {}),
    "mezo-q2-decay": (MeZO, {"queries": 2, "weight_decay": 0.1}),
    "lozo": (LOZO, {"refresh_every": 3}),
    "agzo": (AGZO, {}),
    "agzo-two-sided": (AGZO, {"estimator": "two_sided", "rank": 2}),
    "agzo-q2": (AGZO, {"queries": 2, "refresh_every": 3}),
    "agzo-two-sided-q2": (AGZO, {"estimator": "two_sided", "queries": 2}),
    "agzo-warm": (AGZO, {"warm_start": True}),
}
LANGUAGE_MODELS = [name for name in NETWORKS if name != "mlp"]
STEPS = 4


@dataclass
class Run:
    net: Network
    optimizer: ZeroOrderOptimizer
    stream: StreamedLayers | None

    def go(self, steps: int) -> list[Tensor]:
        return [self.optimizer.step(self.net.closure, self.net.token_mask) for _ in range(steps)]

    def weights(self) -> dict[str, Tensor]:
        if self.stream is not None:
            self.stream.flush()
        return weights(self.net.model)


def make(net: Network, method: type, options: dict, streamed: bool) -> Run:
    stream = StreamedLayers(net.model, "cpu") if streamed else None
    given = {"lr": 1e-2, "eps": 1e-3, **options, **({"stream": stream} if stream else {})}
    return Run(net, method(net.model, **given), stream)


def assert_same(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    assert [name for name in one if not one[name].equal(two[name])] == []


def assert_same_run(network: Callable[[], Network], method: type, options: dict) -> None:
    resident = make(network(), method, options, streamed=False)
    streamed = make(network(), method, options, streamed=True)
    before = weights(resident.net.model)
    losses = resident.go(STEPS), streamed.go(STEPS)
    assert torch.stack(losses[0]).equal(torch.stack(losses[1]))
    assert resident.optimizer.forwards == streamed.optimizer.forwards
    after = resident.weights()
    assert all(not after[name].equal(value) for name, value in before.items())
    assert_same(after, streamed.weights())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("network", LANGUAGE_MODELS)
@pytest.mark.parametrize("case", CASES)
def test_a_streamed_run_is_the_resident_run(case, network, dtype):
    method, options = CASES[case]
    rounding = {"rounding": "stochastic"} if dtype == torch.bfloat16 else {}
    assert_same_run(lambda: NETWORKS[network](dtype), method, {**options, **rounding})


@pytest.mark.parametrize(
    "method",
    slow_for_the_field(
        [m for m in METHODS if not m.name.startswith(("agzo-seen", "deepzero")) and m.pieces == 1]
    ),
)
def test_every_method_is_the_same(method: Method):
    name = method.networks[-1]
    nets = method.network(name), method.network(name)
    if not any(isinstance(module, nn.ModuleList) for module in nets[0].model.modules()):
        nets = stack(), stack()
    stream = StreamedLayers(nets[1].model, "cpu")
    given = {"reuse_prefix": False} if method.one_layer else {}
    runs = (
        Run(nets[0], method.make(nets[0], **given), None),
        Run(nets[1], method.make(nets[1], stream=stream, **given), stream),
    )
    losses = [torch.stack(run.go(STEPS)) for run in runs]
    assert losses[0].equal(losses[1])
    assert_same(runs[0].weights(), runs[1].weights())


@pytest.mark.parametrize("case", CASES)
def test_resume_is_bit_exact_and_a_save_changes_nothing(case):
    method, options = CASES[case]
    straight = make(qwen3(), method, options, streamed=True)
    straight.go(6)
    first = make(qwen3(), method, options, streamed=True)
    first.go(3)
    state, saved = first.optimizer.state_dict(), first.net.model.state_dict()
    saved = {name: value.clone() for name, value in saved.items()}
    second = make(qwen3(), method, options, streamed=True)
    second.go(1)  # what is pending here must not survive the load
    second.net.model.load_state_dict(saved)
    second.optimizer.load_state_dict(state)
    second.go(3)
    assert_same(straight.weights(), second.weights())
    first.go(3)
    assert_same(straight.weights(), first.weights())


def deep(depth: int = 5) -> Network:
    net = llama()
    config = net.model.config
    config.num_hidden_layers = depth  # pyright: ignore
    torch.manual_seed(0)
    model = type(net.model)(config).eval()  # pyright: ignore
    ids = torch.randint(4, 40, (3, 7), generator=torch.Generator().manual_seed(1))

    @torch.no_grad()
    def closure() -> Tensor:
        return model(input_ids=ids, use_cache=False).logits.float().logsumexp(-1).mean()

    return Network(model, closure, None)


def size(layer: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in layer.parameters())


@pytest.mark.parametrize("options", [{}, {"estimator": "two_sided", "queries": 3}], ids=str)
def test_a_step_uploads_each_layer_once_and_holds_two(options):
    net = deep()
    layers = decoder_layers(net.model)[1]
    homes = {id(p): p.data_ptr() for layer in layers for p in layer.parameters()}
    run = make(net, AGZO, options, streamed=True)
    assert run.stream is not None
    here: list[int] = []

    def look(module: nn.Module, args: object) -> None:
        with torch._C.DisableTorchFunction():  # a look is no use of a weight
            own = [p for layer in layers for p in layer.parameters()]
            away = [p for p in own if p.data_ptr() != homes[id(p)]]
            here.append(sum(p.numel() * p.element_size() for p in away))

    for module in net.model.modules():
        module.register_forward_pre_hook(look)
    run.go(1)
    before = run.stream.uploads
    run.go(4)
    assert run.stream.uploads - before == 4 * len(layers)
    run.stream.flush()
    assert max(here) == size(layers[0])  # one in use, and one on its way beside it:
    held = run.stream.about()["device_gib"] * 2**30
    assert 2 * size(layers[0]) <= held <= 2 * size(layers[0]) + 2 * 256 * 20
    assert all(p.data_ptr() == homes[id(p)] for layer in layers for p in layer.parameters())


def test_a_forward_anywhere_sees_the_weights_as_they_are_now():
    runs = [make(deep(), MeZO, {}, streamed=streamed) for streamed in (False, True)]
    found = []
    for run in runs:
        losses = []
        for _ in range(3):
            run.go(1)
            losses += [run.net.closure(), run.net.closure()]
        found.append(torch.stack(losses))
    assert found[0].equal(found[1])
    assert_same(runs[0].weights(), runs[1].weights())


def test_measuring_alone_moves_nothing():
    runs = [make(deep(), AGZO, {}, streamed=streamed) for streamed in (False, True)]
    found = [run.optimizer.estimate(run.net.closure, None, step=4) for run in runs]
    assert found[0].loss.equal(found[1].loss)
    assert found[0].queries[0][1].equal(found[1].queries[0][1])
    assert_same(weights(deep().model), runs[1].weights())


@pytest.mark.parametrize("evaluation", [1, 2, 3])
@pytest.mark.parametrize("place", ["model.embed_tokens", "model.layers.2.mlp", "model.norm"])
def test_an_error_in_the_closure_comes_out_and_leaves_the_weights(place, evaluation):
    """Before the layers, inside one, behind them; in each of the three evaluations."""
    run, expected = (make(deep(), AGZO, {"queries": 2}, streamed) for streamed in (True, False))
    run.go(3)  # the last step's changes are pending when the next one fails
    expected.go(3)
    calls = 0

    def fail(module: nn.Module, args: object) -> None:
        nonlocal calls
        calls += 1
        if calls == evaluation:
            raise KeyError("broken")

    hook = run.net.model.get_submodule(place).register_forward_pre_hook(fail)
    threads = threading.active_count()
    with pytest.raises(KeyError, match="broken"):
        run.go(1)
    assert threading.active_count() == threads
    hook.remove()
    assert_same(expected.weights(), run.weights())
    expected.go(2)
    run.go(2)
    assert_same(expected.weights(), run.weights())


def test_a_loss_that_is_not_finite_freezes_the_weights():
    runs = [make(deep(), MeZO, {}, streamed=streamed) for streamed in (False, True)]
    for run in runs:
        run.go(2)
        whole = run.net.closure
        run.optimizer.step(lambda whole=whole: whole() * float("nan"))
        assert not run.optimizer.finite
        with pytest.raises(FloatingPointError, match="of step 3"):
            run.go(1)
    assert_same(runs[0].weights(), runs[1].weights())


def test_a_closure_that_runs_the_model_several_times_and_not_always_as_often():
    """As one that generates does: the evaluations come to the layers at different times."""
    ends = []
    for streamed in (False, True):
        run = make(deep(), AGZO, {"queries": 2}, streamed=streamed)
        once = run.net.closure

        def closure(once=once) -> Tensor:
            loss = once()
            more = int(loss.item() * 1e6) % 3  # another number of passes in each evaluation
            for _ in range(more):
                loss = loss + once()
            return loss

        for _ in range(STEPS):
            run.optimizer.step(closure)
        ends.append(run.weights())
    assert_same(*ends)


def test_a_layer_can_be_left_out_of_some_steps():
    """Layers that a batch does not visit move as they do in a resident model."""
    ends = []
    for streamed in (False, True):
        net = stack()
        visited: list[nn.Module] = list(net.model.layers)  # pyright: ignore

        def forward(x: Tensor, net=net, visited=visited) -> Tensor:
            x = net.model.first(x)  # pyright: ignore
            for layer in visited:
                x = layer(x)
            return net.model.last(x)  # pyright: ignore

        net.model.forward = forward
        run = make(net, LOZO, {"rank": 1}, streamed=streamed)
        run.go(2)
        skipped = visited.pop()
        run.go(3)
        visited.append(skipped)
        run.go(1)
        ends.append(run.weights())
    assert_same(*ends)


def test_a_tuned_weight_that_is_never_used_is_an_error():
    net = stack()
    net.model.layers[0].spare = nn.Parameter(torch.ones(3))  # pyright: ignore
    run = make(net, MeZO, {}, streamed=True)
    with pytest.raises(ValueError, match=r"does not use 1 tuned parameter\(s\): layers\.0\.spare"):
        run.go(1)


def test_layers_of_other_sizes_and_dtypes_take_turns():
    ends = []
    for streamed in (False, True):
        net = stack()
        for width, layer in zip((4, 16), net.model.layers, strict=True):  # pyright: ignore
            layer.scale = nn.Parameter(torch.linspace(1, 2, width).double())  # pyright: ignore
            plain = layer.forward
            layer.forward = lambda x, plain=plain, layer=layer: plain(x) * layer.scale.sum().float()
        run = make(net, MeZO, {"lr": 1e-4}, streamed=streamed)
        run.go(STEPS)
        ends.append(run.weights())
    assert_same(*ends)


def test_backpropagation_is_refused():
    net = qwen3()
    StreamedLayers(net.model, "cpu")
    with pytest.raises(ValueError, match="gradients are recorded"):
        SGD(net.model, lr=0.1).step(net.closure)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"execution": "in_place"}, "execution='in_place': with streamed layers allowed is side"),
        ({"rounding": "master"}, "rounding='master': with streamed layers allowed are nearest"),
        ({"layer": 1}, "reuse_prefix=True: the evaluations of streamed layers run side by side"),
    ],
)
def test_what_needs_all_weights_at_once_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(qwen3(), on_dominant_layer if "layer" in options else MeZO, options, streamed=True)


def test_a_heads_basis_that_comes_too_late_is_refused():
    with pytest.raises(ValueError, match="embeddings='seen': the evaluations of streamed layers"):
        make(qwen3(), AGZO, {"embeddings": "seen"}, streamed=True)


def test_layers_that_share_weights_are_refused():
    net = stack()
    net.model.layers[1].linear.weight = net.model.layers[0].linear.weight  # pyright: ignore
    with pytest.raises(ValueError, match=r"layers\.0: shares layers\.1\.linear\.weight"):
        StreamedLayers(net.model, "cpu")
    with pytest.raises(ValueError, match="has no decoder layers"):
        StreamedLayers(nn.Sequential(nn.Linear(2, 2)), "cpu")


def test_lockstep_runs_one_at_a_time_in_order_and_keeps_the_thread_setting():
    said: list[str] = []
    lockstep: Lockstep

    def evaluation(name: str, places: list[int]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            assert not torch.is_grad_enabled()
            for place in places:
                assert lockstep.wait(place)
                said.append(f"{name}{place}")
            return torch.tensor(float(len(places)))

        return run

    with torch.no_grad():
        lockstep = Lockstep([evaluation("a", [0, 1, 0, 1]), evaluation("b", [0, 1])])
        with lockstep:
            assert not lockstep.wait(0)  # this thread is no evaluation
            while (place := lockstep.place) is not None:
                lockstep.pass_through(place)
            assert lockstep.results == [4.0, 2.0]
    assert said == ["a0", "b0", "a1", "b1", "a0", "a1"]


def test_an_evaluation_runs_under_the_settings_of_its_step():
    found = []

    def evaluation() -> Tensor:
        found.append((torch.is_grad_enabled(), torch.get_num_threads()))
        return torch.ones(2, 2) @ torch.ones(2, 2)

    for grad in (False, True):
        with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype=torch.bfloat16):
            with Lockstep([evaluation]) as lockstep:
                assert lockstep.place is None
            assert lockstep.results[0].dtype == torch.bfloat16
    assert found == [(False, torch.get_num_threads()), (True, torch.get_num_threads())]


def test_an_interrupt_between_two_layers_ends_every_evaluation():
    """As Ctrl-C does: it comes to the thread that steps, not to those that evaluate."""
    run = make(deep(), AGZO, {}, streamed=True)
    run.go(2)
    before = run.weights()
    stream, threads = run.stream, threading.active_count()
    assert stream is not None
    here, calls = stream._here, 0

    def interrupted(index: int, ahead: bool = True):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return here(index, ahead)

    stream._here = interrupted  # pyright: ignore
    with pytest.raises(KeyboardInterrupt):
        run.go(1)
    stream._here = here
    assert threading.active_count() == threads
    assert_same(before, run.weights())


def test_a_change_that_is_put_off_keeps_its_lr():
    """Torch's schedulers change an lr that is a tensor in place."""
    ends = []
    for lr, streamed in ((0.1, False), (torch.tensor(0.1), False), (torch.tensor(0.1), True)):
        net = stack()
        stream = StreamedLayers(net.model, torch.device("cpu")) if streamed else None
        optimizer = MeZO(net.model, lr=lr, eps=1e-3, stream=stream)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
        for _ in range(3):
            optimizer.step(net.closure)
            scheduler.step()
        ends.append(net.model.state_dict())
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value)
        assert ends[2][name].equal(ends[1][name])
