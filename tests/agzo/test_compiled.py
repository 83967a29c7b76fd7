"""Compiled decoder layers: the numbers of the eager ones, and what a run decides."""

import functools

import pytest
import tiny_run
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agzo import AGZO
from agzo.activations import capture
from agzo.execution.compiled import CompiledLayers
from agzo.execution.slotted import Slotted
from agzo.tuned.layers import decoder_layers
from baselines import LOZO, SGD, MeZO
from experiments.config.composed import compose
from experiments.config.errors import BadInput
from experiments.data.batches import collate, collate_rows
from experiments.data.encode import Encoder
from experiments.models import attention
from experiments.models.loss import label_logits, loss
from experiments.records.interrupt import Interrupted
from experiments.tasks import TASKS, Example
from experiments.training import compile_choice
from experiments.training.parts import Parts
from experiments.training.session import run
from tests.methods import METHODS, Method, slow_for_the_field
from tests.networks import Block, Network, Stack, mlp, qwen3, stack, weights
from tests.text_models import byte_tokenizer, random_model

ENCODER = Encoder(byte_tokenizer(), 64)
EXAMPLES = [Example("I", ("x", "y"), 1), Example("a much longer prompt. It was", ("x", "y"), 0)]


def flat(net: Network) -> Tensor:
    return torch.cat([w.flatten() for w in weights(net.model).values()])


def trajectory(net: Network, optimizer, layers: CompiledLayers | None, steps: int = 6):
    closure = net.closure if layers is None else layers.around(net.closure)
    losses = [optimizer.step(closure, net.token_mask) for _ in range(steps)]
    return torch.stack(losses), flat(net), torch.tensor(optimizer.forwards)


@pytest.mark.parametrize("method", slow_for_the_field(METHODS, "dominant", "zo_act-"))
def test_they_give_the_trajectory_of_eager_layers(method: Method):
    networks = [name for name in method.networks if name in ("qwen3-tied", "opt-tied")]
    if not networks:
        pytest.skip("its network is without layers, or it has others with more to show")
    for network in networks:
        compare(method, network)


def compare(method: Method, network: str):
    ends = []
    for compiled in (False, True):
        net = method.network(network, torch.float64)
        optimizer = method.make(net, lr=1e-4)
        layers = CompiledLayers(net.model, backend="eager") if compiled else None
        ends.append(trajectory(net, optimizer, layers))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-6, atol=1e-8)


@pytest.mark.slow  # the run below has generated code too
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", [AGZO, LOZO, MeZO])
def test_generated_code_gives_it_too(method, dtype):
    ends = []
    for compiled in (False, True):
        net = qwen3(dtype)
        optimizer = method(net.model, lr=1e-4, eps=1e-2)
        ends.append(trajectory(net, optimizer, CompiledLayers(net.model) if compiled else None, 2))
    near = {"rtol": 1e-6, "atol": 1e-8} if dtype == torch.float64 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(ends[0][:2], ends[1][:2], **near)


@pytest.mark.parametrize("method", [AGZO, LOZO, MeZO])
def test_measuring_leaves_the_weights_bit_for_bit(method):
    net = qwen3()
    optimizer = method(net.model, lr=1e-2, eps=1e-2)
    before = weights(net.model)
    with CompiledLayers(net.model, backend="eager"):
        optimizer.estimate(net.closure, net.token_mask)
    for name, weight in weights(net.model).items():
        assert torch.equal(weight, before[name])


def test_layers_that_share_an_input_share_its_basis(monkeypatch):
    counts = []
    extract = capture.subspace_extract

    def counted(*arguments):
        counts[-1] += 1
        return extract(*arguments)

    monkeypatch.setattr(capture, "subspace_extract", counted)
    for compiled in (False, True):
        net = qwen3()
        optimizer = AGZO(net.model, lr=0.0, eps=1e-2)
        layers = CompiledLayers(net.model, backend="eager") if compiled else None
        counts.append(0)
        trajectory(net, optimizer, layers, 1)
    assert counts == [8, 8]  # two layers of seven linear ones; the head is tied, dense


def test_the_model_keeps_its_names_and_is_left_as_it_was():
    net = qwen3()
    names = list(net.model.state_dict())
    modules = [type(module) for module in net.model.modules()]
    layers = CompiledLayers(net.model, backend="eager")
    assert list(net.model.state_dict()) == names
    assert sum(isinstance(module, Slotted) for module in net.model.modules()) == 14
    AGZO(net.model, lr=1e-3, eps=1e-3).step(layers.around(net.closure), net.token_mask)
    layers.remove()
    layers.remove()
    assert [type(module) for module in net.model.modules()] == modules
    for module in net.model.modules():
        assert not {"forward", "number", "right", "left", "inputs"} & vars(module).keys()


def test_elsewhere_the_layers_are_eager(monkeypatch):
    net = qwen3()
    with torch.no_grad():
        wanted = net.closure()
    layers = CompiledLayers(net.model, backend="eager")

    def forbidden(*_: object):
        raise AssertionError("compiled")

    for layer in layers._layers:
        monkeypatch.setattr(layer, "_run", forbidden)
    with torch.no_grad():
        assert torch.equal(net.closure(), wanted)
    with layers:
        net.closure().backward()  # with gradients
        with pytest.raises(AssertionError, match="compiled"), torch.no_grad():
            net.closure()


def test_they_may_be_entered_within_themselves():
    net = qwen3()
    layers = CompiledLayers(net.model, backend="eager")
    with torch.no_grad(), layers:
        with layers:
            assert layers.on
        layers.around(net.closure)()
        assert layers.on
        with pytest.raises(KeyError), layers:
            raise KeyError
        assert layers.on
    assert not layers.on


class Functional(Block):
    """A layer that uses its linear weight without the linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        return x + F.linear(torch.tanh(self.norm(x)), self.linear.weight, self.linear.bias)


def transposed(model: Stack, layer: Block) -> None:
    layer.linear.forward = lambda x: x @ layer.linear.weight.T + layer.linear.bias


def replaced(model: Stack, layer: Block) -> None:
    layer.linear.forward = lambda x: 2 * nn.Linear.forward(layer.linear, x)


def functional(model: Stack, layer: Block) -> None:
    for each in model.layers:
        each.__class__ = Functional


def another_module(model: Stack, layer: Block) -> None:
    layer.linear.register_forward_hook(lambda _, args, y: y + args[0] @ model.own.weight)


def another_parameter(model: Stack, layer: Block) -> None:
    layer.norm.register_forward_hook(lambda _, args, y: y + model.own.bias)


def added_later(model: Stack, layer: Block) -> None:
    layer.linear.branch_of_mine = nn.Linear(8, 8)
    layer.linear.register_forward_hook(lambda own, args, y: y + own.branch_of_mine(args[0]))


UNSEEN = {
    transposed: r"layers\.1\.linear\.weight: .* this weight of an nn\.Linear without calling",
    replaced: r"layers\.1\.linear\.weight: .* or the module's forward was replaced",
    functional: r"layers\.0\.linear\.weight: .* this weight of an nn\.Linear without calling",
    another_module: r"own\.weight: .*; allowed are parameters of its own",
    another_parameter: r"own\.bias: .*; allowed are parameters of its own",
    added_later: r"branch_of_mine\.weight: .*; allowed are parameters of its own",
}


@pytest.mark.parametrize(
    ("change", "message"), UNSEEN.items(), ids=lambda c: getattr(c, "__name__", "")
)
def test_what_compiled_code_would_not_perturb_is_an_error(change, message):
    net = stack()
    assert isinstance(net.model, Stack)
    net.model.own = nn.Linear(8, 8)
    if change is not added_later:
        change(net.model, net.model.layers[1])
    layers = CompiledLayers(net.model, backend="eager")
    if change is added_later:
        change(net.model, net.model.layers[1])
    optimizer = LOZO(net.model, lr=1e-3, eps=1e-3)
    before = flat(net)
    with pytest.raises(ValueError, match=message):
        optimizer.step(layers.around(net.closure))
    assert torch.equal(flat(net), before)
    assert not any(m.inputs for m in net.model.modules() if isinstance(m, Slotted))


def test_layers_that_share_modules_are_refused():
    for share in ("layer", "linear"):
        net = stack()
        first, second = net.model.layers
        if share == "layer":
            net.model.layers[1] = first
        else:
            second.linear = first.linear
        with pytest.raises(ValueError, match=r"Block: shares its .* with another decoder layer"):
            CompiledLayers(net.model)
        assert not any(isinstance(module, Slotted) for module in net.model.modules())


@pytest.mark.parametrize("method", [AGZO, LOZO, MeZO])
def test_a_default_device_is_no_obstacle(method):
    ends = []
    for compiled in (False, True):
        net = qwen3(torch.float64)
        layers = CompiledLayers(net.model, backend="eager") if compiled else None
        with torch.device("cpu"):
            ends.append(trajectory(net, method(net.model, lr=1e-3, eps=1e-3), layers))
    torch.testing.assert_close(ends[0], ends[1])


def test_autocast_does_not_take_a_copy_for_that_of_the_layer_before():
    ends = []
    for compiled in (False, True):
        net = qwen3()
        plain = net.closure

        def closure(plain=plain):
            with torch.autocast("cpu", torch.bfloat16):
                return plain()

        layers = CompiledLayers(net.model, backend="eager") if compiled else None
        optimizer = MeZO(net.model, lr=1e-4, eps=0.1)
        ends.append(trajectory(Network(net.model, closure, None), optimizer, layers))
    torch.testing.assert_close(ends[0], ends[1])


def test_code_of_layers_without_hooks_serves_none_that_have_some():
    net = stack()
    layers = CompiledLayers(net.model, backend="eager")
    with torch.no_grad(), layers:
        without = net.closure()
        net.model.get_submodule("layers.1.linear").register_forward_hook(lambda *given: -given[-1])
        found = net.closure()
    with torch.no_grad():
        torch.testing.assert_close(found, net.closure())
    assert not torch.allclose(found, without)


def test_they_run_in_inference_mode_and_outside_of_it():
    ends = []
    for compiled in (False, True):
        net = qwen3(torch.float64)
        layers = CompiledLayers(net.model, backend="eager") if compiled else None
        optimizer = MeZO(net.model, lr=1e-3, eps=1e-3)
        closure = net.closure if layers is None else layers.around(net.closure)
        for inside in (True, True, False, True):
            with torch.inference_mode(inside):
                closure()
                if layers is not None and inside:
                    optimizer.estimate(closure)
            optimizer.step(closure)
        ends.append(flat(net))
    torch.testing.assert_close(ends[0], ends[1])


def test_copies_are_of_one_layer():
    net = qwen3()
    layers = CompiledLayers(net.model, backend="eager")
    optimizer = MeZO(net.model, lr=1e-3, eps=1e-3)
    optimizer.step(layers.around(net.closure), net.token_mask)
    kept = sum(copy.numel() for copy in layers._layers[0]._shadows._known.values())
    assert kept == sum(p.numel() for p in decoder_layers(net.model)[1][0].parameters())


def test_other_ways_to_run_layers_are_refused():
    net = qwen3()
    layers = CompiledLayers(net.model, backend="eager")
    optimizer = MeZO(net.model, lr=1e-3, eps=1e-3, execution="batched")
    with pytest.raises(ValueError, match="run under _Together; allowed are the modes of"):
        optimizer.step(layers.around(net.closure), net.token_mask)
    with pytest.raises(ValueError, match="forward is replaced already"):
        CompiledLayers(net.model)
    with pytest.raises(ValueError, match="no decoder layers"):
        CompiledLayers(mlp().model)


def test_packed_batches_are_refused():
    model = random_model("qwen3")
    assert attention.install(model)
    rows = collate_rows([[3, 4, 5], [6, 7, 8, 9]], [1, 1], 0).pack()
    with (
        torch.no_grad(),
        CompiledLayers(model, backend="eager"),
        pytest.raises(RuntimeError, match=r"eager layers.*train\.packing=never"),
    ):
        label_logits(model, rows)


# Widths


def test_batches_are_padded_to_a_multiple():
    encoded, task = ENCODER.encode_all(EXAMPLES), TASKS["sst2"]
    plain, wide = (collate(encoded, task, ENCODER.pad_id, multiple=m) for m in (1, 32))
    assert (plain.input_ids.shape[1], wide.input_ids.shape[1]) == (28, 32)
    model = random_model("qwen3")
    with torch.no_grad():
        torch.testing.assert_close(loss(model, wide), loss(model, plain))


# What a run decides


def decide(config, model, optimizer=None, steps=10_000, task="sst2", examples=EXAMPLES):
    optimizer = optimizer or MeZO(model, lr=1e-3, eps=1e-3)
    encoded = ENCODER.encode_all(examples)
    return compile_choice.choose(
        config, model, optimizer, TASKS[task], encoded, ENCODER.pad_id, steps
    )


def asking(out, choice, *overrides):
    return tiny_run.config(out, f"train.compile={choice}", *overrides)


@pytest.fixture
def no_code(monkeypatch):
    """Layers of which no code is generated."""
    reference = functools.partial(CompiledLayers, backend="eager")
    monkeypatch.setattr(compile_choice, "CompiledLayers", reference)


@pytest.mark.usefixtures("no_code")
def test_a_cpu_stays_eager_unless_told(tmp_path):
    for asked, why in (("never", "train.compile=never"), ("auto", "on cpu packed batches save")):
        choice, layers = decide(asking(tmp_path, asked), random_model("qwen3"))
        assert (choice.layers, choice.bucket, layers) == ("eager", 1, None)
        assert why in choice.why
    choice, layers = decide(asking(tmp_path, "layers"), random_model("qwen3"))
    assert (choice.layers, choice.bucket) == ("compiled", compile_choice.BUCKET)
    assert layers is not None


def test_the_rule_on_cuda():
    cuda, model = torch.device("cuda"), stack().model
    size = sum(p.numel() for p in decoder_layers(model)[1][0].parameters())
    assert size == 88
    bound = int(45 * 5e-6 * 4e13 / (2 * size))
    assert compile_choice.does_not_pay(model, bound, 1000, cuda) is None
    assert "launches" in (compile_choice.does_not_pay(model, bound + 1, 1000, cuda) or "")
    assert "999 steps" in (compile_choice.does_not_pay(model, 8, 999, cuda) or "")
    assert "no decoder layers" in (compile_choice.does_not_pay(mlp().model, 8, 1000, cuda) or "")


class Branching(nn.Module):
    """A layer whose path depends on its input: no one graph."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, **keywords):
        y = self.inner(x, **keywords)
        return y if x.sum() > 0 else y + 0.0


class Behind(Branching):
    """A layer that uses a linear weight without its module."""

    def forward(self, x: Tensor, **keywords):
        return self.inner(x, **keywords) + 0.0 * self.inner.mlp.up_proj.weight.sum()


class Inconstant(Branching):
    """A layer that answers otherwise when it is compiled."""

    def forward(self, x: Tensor, **keywords):
        return self.inner(x, **keywords) * (2.0 if torch.compiler.is_compiling() else 1.0)


def obstacles():
    branching, inconstant, behind, batched = (random_model("qwen3") for _ in range(4))
    for model, kind in ((branching, Branching), (inconstant, Inconstant), (behind, Behind)):
        layers = model.get_submodule("model.layers")
        for index, layer in enumerate(list(layers)):
            layers[index] = kind(layer)
    return {
        "Qwen3ForCausalLM cannot be compiled": (branching, (), {}),
        "answers otherwise compiled: logits differ by": (inconstant, (), {}),
        "up_proj.weight: a compiled layer uses this weight": (behind, (), {}),
        "has no decoder layers": (SimpleHead(), (), {}),
        "computes gradients": (batched, ("method=sgd",), {"optimizer": SGD(batched, lr=1e-3)}),
        "method.execution=batched": (batched, ("method=mezo", "method.execution=batched"), {}),
        "model.offload=layers": (batched, ("method=mezo", "model.offload=layers"), {}),
        "train.packing=always": (batched, ("train.packing=always",), {}),
        "2 to 3 options": (
            batched,
            ("train.objective=metric",),
            {"task": "record", "examples": [*EXAMPLES, Example("It is", ("x", "y", "z"), 2)]},
        ),
        "generates text": (batched, ("train.objective=metric",), {"task": "squad"}),
    }


class SimpleHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(300, 4)

    def forward(self, input_ids, attention_mask=None, position_ids=None):
        return self.table(input_ids) @ self.table.weight.T


@pytest.mark.usefixtures("no_code")
def test_what_cannot_be_compiled_is_eager_or_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(compile_choice, "does_not_pay", lambda *_: None)
    for reason, (model, overrides, more) in obstacles().items():
        before = [type(module) for module in model.modules()]
        if "packing" not in reason:
            choice, layers = decide(asking(tmp_path, "auto", *overrides), model, **more)
            assert (choice.layers, layers) == ("eager", None)
            assert reason in choice.why
        with pytest.raises(BadInput, match=f"train.compile=layers: .*{reason}.*; allowed are auto"):
            decide(asking(tmp_path, "layers", *overrides), model, **more)
        assert [type(module) for module in model.modules()] == before


def test_graphs_need_cuda(tmp_path):
    with pytest.raises(BadInput, match=r"train\.compile=graphs: CUDA graphs need device=cuda"):
        decide(asking(tmp_path, "graphs"), random_model("qwen3"))


def test_the_key_names_what_is_allowed():
    with pytest.raises(BadInput, match=r"train\.compile=yes: allowed are never, auto"):
        compose(["train.compile=yes"])


def numbers(result):
    return result["eval"]["loss"], [row["loss"] for row in result["metrics"]]


@pytest.mark.slow
def test_a_compiled_run_gives_the_eager_numbers_and_goes_on_exactly(tmp_path, monkeypatch):
    wide = compile_choice.BUCKET  # wider batches draw another Omega
    with monkeypatch.context() as patch:
        patch.setattr(compile_choice.CompileChoice, "bucket", wide)
        eager = run(tiny_run.config(tmp_path / "eager", "method=agzo", "train.packing=never"))
    config = tiny_run.config(tmp_path / "one", "method=agzo", "train.compile=layers")
    whole = run(config)
    assert whole["compile"]["layers"] == "compiled"
    assert "layers are compiled" in whole["packing"]["why"]
    torch.testing.assert_close(numbers(whole), numbers(eager), rtol=1e-4, atol=1e-5)

    other = tiny_run.config(tmp_path / "two", "method=agzo", "train.compile=layers")
    taken, take = [], Parts.take

    def until_seven(self, *arguments):
        taken.append(1)
        if len(taken) == 7:
            raise Interrupted("stop", 15)
        return take(self, *arguments)

    monkeypatch.setattr(Parts, "take", until_seven)
    with pytest.raises(Interrupted):
        run(other)
    monkeypatch.setattr(Parts, "take", take)
    torch.compiler.reset()  # another process has no compiled code
    resumed = run(other)
    assert resumed["resumed_at"] == [6]
    tiny_run.assert_same(config, whole, other, resumed)
