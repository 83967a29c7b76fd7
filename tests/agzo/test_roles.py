"""What a weight is to its model: seen by its use, whichever way round it is held."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from agzo import AGZO
from agzo.directions.low_rank import LowRank
from agzo.execution.compiled import CompiledLayers
from agzo.tuned.roles import Usage, roles
from baselines import LOZO, LOZOM, MeZO, ZOAct
from experiments.models.adapter_files import save_lora

IN, OUT, TOKENS = 7, 5, 4

Form = Callable[[nn.Module, Tensor], Tensor]
W_LINEAR: dict[str, Form] = {  # of a weight (out, in)
    "called": lambda layer, x: layer(x),
    "x @ W.T": lambda layer, x: x @ layer.weight.T + layer.bias,
    "matmul(x, W.mT)": lambda layer, x: torch.matmul(x, layer.weight.mT) + layer.bias,
    "addmm(b, x, W.t())": lambda layer, x: torch.addmm(layer.bias, x, layer.weight.t()),
    "mm(x, transpose)": lambda layer, x: x.mm(layer.weight.transpose(0, 1)) + layer.bias,
}
W_TURNED: dict[str, Form] = {  # of a weight (in, out)
    "x @ W": lambda layer, x: x @ layer.weight + layer.bias,
    "mm": lambda layer, x: torch.mm(x, mat2=layer.weight) + layer.bias,
    "addmm": lambda layer, x: torch.addmm(layer.bias, x, layer.weight),
    "Tensor.addmm": lambda layer, x: (2 * layer.bias).addmm(x, layer.weight, beta=0.5),
    "alpha": lambda layer, x: torch.addmm(layer.bias, x / 2, layer.weight, alpha=2),
    "linear(x, W.T)": lambda layer, x: F.linear(x, layer.weight.T, layer.bias),
}
NEITHER: dict[str, Form] = {  # no use as a linear layer
    "W x": lambda layer, x: (layer.weight @ x.T).T + layer.bias,
    "einsum": lambda layer, x: torch.einsum("ti,oi->to", x, layer.weight) + layer.bias,
    "of a copy": lambda layer, x: x @ (layer.weight * 1.0).T + layer.bias,
}


class Weight(nn.Module):
    """A weight and a bias, and no word of how they are used."""

    def __init__(self, layer: nn.Linear, turned: bool = False) -> None:
        super().__init__()
        weight = layer.weight.detach().clone()
        self.weight = nn.Parameter(weight.T.contiguous() if turned else weight)
        self.bias = nn.Parameter(layer.bias.detach().clone())


class Net(nn.Module):
    """first, tanh, last: the same function whatever `first` is and however it is used."""

    def __init__(self, form: Form, kind: str = "linear") -> None:
        super().__init__()
        torch.manual_seed(0)
        layer, self.last = nn.Linear(IN, OUT), nn.Linear(OUT, 3)
        self.first = layer if kind == "linear" else Weight(layer, turned=kind == "turned")
        self.form = form
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.form(self.first, x)))


X = torch.randn(TOKENS, IN, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def loss_of(net: nn.Module) -> Callable[[], Tensor]:
    return lambda: net(X).square().mean()


def trajectory(optimizer, net: Net, steps: int = 5, turned: bool = False) -> list[Tensor]:
    """Losses, and the weights after the steps, as an nn.Linear holds them."""
    losses = [optimizer.step(loss_of(net)) for _ in range(steps)]
    weights = [net.first.weight.T if turned else net.first.weight, net.first.bias, net.last.weight]
    return [torch.stack(losses), *(each.detach().clone() for each in weights)]


METHODS = {
    "sgd": lambda net, **o: AGZO(net, 1e-2, 1e-3, rank=2, **o),
    "two-sided": lambda net, **o: AGZO(net, 1e-2, 1e-3, estimator="two_sided", queries=2, **o),
    "momentum": lambda net, **o: AGZO(net, 1e-2, 1e-3, rank=2, update="momentum", **o),
    "adam": lambda net, **o: AGZO(net, 1e-2, 1e-3, update="adam", refresh_every=2, **o),
}
FORMS = [
    *(pytest.param(form, "linear", id=name) for name, form in W_LINEAR.items()),
    *(pytest.param(form, "linear-raw", id=f"raw {n}") for n, form in list(W_LINEAR.items())[1:]),
    *(pytest.param(form, "turned", id=name) for name, form in W_TURNED.items()),
]
SHAPED = {"batch of one": lambda layer, x: (x[None] @ layer.weight)[0] + layer.bias}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("form", "kind"), FORMS)
def test_a_weight_moves_the_same_whichever_way_round_it_is_held(form, kind, method):
    """Noise, bases, moments: all those of the nn.Linear that computes the same."""
    plain, other = Net(W_LINEAR["called"]), Net(form, kind)
    wanted = trajectory(METHODS[method](plain), plain)
    found = trajectory(METHODS[method](other), other, turned=kind == "turned")
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


EVERY_FORM = st.sampled_from(
    [("linear", f) for f in (*W_LINEAR.values(), *NEITHER.values())]
    + [("turned", f) for f in (*W_TURNED.values(), *SHAPED.values())]
)


@settings(deadline=None, max_examples=40)
@given(
    form=EVERY_FORM,
    method=st.sampled_from([AGZO, MeZO, LOZO, LOZOM]),
    execution=st.sampled_from(["side_branch", "batched"]),
    seed=st.integers(0, 2**31),
)
def test_each_execution_measures_what_the_reference_measures(form, method, execution, seed):
    kind, use = form
    slopes = []
    for each in ("in_place", execution):
        net = Net(use, kind)
        optimizer = method(net, lr=0.0, eps=1e-2, estimator="two_sided", execution=each, seed=seed)
        optimizer.step(loss_of(net))
        slopes.append(optimizer.projected_grad)
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("form", "kind"), FORMS)
def test_the_direction_lies_in_the_span_of_the_inputs(form, kind):
    net = Net(form, kind)
    optimizer = AGZO(net, 0.0, 1e-3, rank=TOKENS)
    direction = optimizer.estimate(loss_of(net)).queries[0][0][net.first.weight]
    assert isinstance(direction, LowRank)
    delta = direction.dense().double()
    delta = delta.T if kind == "turned" else delta  # (out, in)
    projector = torch.linalg.pinv(X) @ X
    torch.testing.assert_close(delta @ projector, delta, rtol=0, atol=1e-5)
    weight = net.first.weight
    (gradient,) = torch.autograd.grad(loss_of(net)(), weight)
    known = direction.known.double()
    rows = gradient.T if kind == "turned" else gradient
    torch.testing.assert_close(rows @ known @ known.T, rows, rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", NEITHER.values(), ids=NEITHER)
def test_a_weight_of_no_linear_call_has_dense_noise(form):
    """Mamba reads the weight of an nn.Linear as W x: it is perturbed as MeZO perturbs it."""
    net = Net(form)
    optimizer = AGZO(net, 1e-3, 1e-3)
    assert {t.name: t.role for t in optimizer.tuned}["first.weight"] == "linear"  # so far
    optimizer.step(loss_of(net))
    assert {t.name: t.role for t in optimizer.tuned}["first.weight"] == "other"
    found = optimizer.estimate(loss_of(net), step=3).queries[0][0][net.first.weight]
    same = MeZO(net, 1e-3, 1e-3).estimate(loss_of(net), step=3).queries[0][0][net.first.weight]
    assert torch.equal(found.dense(), same.dense())


def test_what_a_weight_is_is_saved_and_resumed():
    """A resumed optimizer does not look again: the first step's look is in its state."""
    for kind, form in (("turned", W_TURNED["x @ W"]), ("linear", NEITHER["W x"])):
        whole, parts = Net(form, kind), Net(form, kind)
        optimizer = AGZO(whole, 1e-2, 1e-3)
        wanted = [optimizer.step(loss_of(whole)) for _ in range(4)]
        first = AGZO(parts, 1e-2, 1e-3)
        found = [first.step(loss_of(parts)) for _ in range(2)]
        second = AGZO(parts, 1e-2, 1e-3)
        second.load_state_dict(first.state_dict())
        assert [each.role for each in second.tuned] == [each.role for each in first.tuned]
        found += [second.step(loss_of(parts)) for _ in range(2)]
        assert found == wanted


def test_a_weight_that_is_used_in_two_ways_keeps_what_its_module_says():
    """A penalty on all weights is a use as well; their bases are of the layers' inputs still."""
    net = Net(W_LINEAR["called"])
    optimizer = AGZO(net, 1e-3, 1e-3)
    penalty = lambda: sum(p.square().sum() for p in net.parameters())  # noqa: E731
    optimizer.step(lambda: loss_of(net)() + 1e-3 * penalty())
    assert [t.role for t in optimizer.tuned if "weight" in t.name] == ["linear", "linear"]
    ways = lambda layer, x: (x @ layer.weight + x @ layer.weight.T)[:, :OUT] + layer.bias  # noqa: E731
    both = Net(ways, "raw")
    both.first.weight = nn.Parameter(torch.eye(IN, dtype=torch.float64))
    optimizer = AGZO(both, 1e-3, 1e-3)
    optimizer.step(loss_of(both))
    assert {t.name: t.role for t in optimizer.tuned}["first.weight"] == "other"


def gpt2(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=16, initializer_range=0.3
    )
    return GPT2LMHeadModel(config).eval()


IDS = torch.randint(0, 40, (3, 7), generator=torch.Generator().manual_seed(0))
MASK = torch.ones(3, 7, dtype=torch.bool)
MASK[0, :3] = False


def text_loss(model: nn.Module) -> Tensor:
    logits = model(IDS, attention_mask=MASK.long()).logits[:, -1]
    return F.cross_entropy(logits, torch.tensor([1, 2, 3]))


def test_conv1d_has_a_basis_and_every_method_moves_it():
    model = gpt2()
    kinds = roles(model)
    conv = [p for n, p in model.named_parameters() if "c_" in n and p.dim() == 2]
    assert [kinds[parameter] for parameter in conv] == ["transposed"] * 8
    for make in (
        lambda m: AGZO(m, lr=1e-2, eps=1e-3),
        lambda m: AGZO(m, lr=1e-2, eps=1e-3, update="adam"),
        lambda m: LOZO(m, lr=1e-4, eps=1e-3),
        lambda m: ZOAct(m, lr=1e-2, eps=1e-3),
    ):
        model = gpt2()
        optimizer = make(model)
        conv = [each for each in optimizer.tuned if each.role == "transposed"]
        if optimizer.wants_batches:
            optimizer.calibrate(
                [(lambda model=model: text_loss(model), MASK)] * optimizer.wants_batches
            )
            assert len(optimizer.tuned) == 8
        elif isinstance(optimizer, AGZO):
            assert len(conv) == 8
        before = text_loss(model).item()
        for _ in range(30):
            optimizer.step(lambda model=model: text_loss(model), token_mask=MASK)
        assert text_loss(model).item() < before


def test_the_bases_of_zo_act_are_merged_into_a_weight_that_is_the_other_way_round(tmp_path):
    model = gpt2()
    optimizer = ZOAct(model, lr=0.05, eps=1e-2, rank=3)
    optimizer.calibrate([(lambda: text_loss(model), MASK)] * optimizer.wants_batches)
    for _ in range(3):
        optimizer.step(lambda: text_loss(model))
    save_lora(model, optimizer.adapter(), tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(gpt2(), str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        beside = model(IDS).logits
        torch.testing.assert_close(loaded(IDS).logits, beside, rtol=0, atol=1e-5)
        optimizer.merge()
        torch.testing.assert_close(model(IDS).logits, beside, rtol=0, atol=1e-5)
        assert not torch.allclose(gpt2()(IDS).logits, beside, rtol=0, atol=1e-3)


def test_compiled_layers_take_no_bases_of_weights_without_slots():
    """They are perturbed densely, not along a basis that nobody fills."""
    model = gpt2()
    layers = CompiledLayers(model, backend="eager")
    optimizer = AGZO(model, lr=1e-3, eps=1e-3)
    with layers:
        optimizer.step(lambda: text_loss(model), token_mask=MASK)
    assert "transposed" not in {each.role for each in optimizer.tuned}
    usage = Usage(model.parameters())
    usage.no_basis(layers.without_slots())
    with usage, torch.no_grad():
        text_loss(model)
    weight = model.transformer.h[0].mlp.c_fc.weight
    assert usage.role(weight, "transposed") == "other"
    layers.remove()


class Choice(nn.Module):
    """Matrices of which a batch uses some: `which` are used as x @ W."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(IN, IN)
        self.matrices = nn.ParameterList(torch.randn(IN, IN) for _ in range(2))

    def loss(self, which: list[int]) -> Callable[[], Tensor]:
        x = torch.randn(TOKENS, IN, generator=torch.Generator().manual_seed(1))

        def closure() -> Tensor:
            h = torch.tanh(self.first(x))
            return torch.stack([(h @ self.matrices[each]).square().mean() for each in which]).mean()

        return closure


@pytest.mark.parametrize("before", ["nothing", "a look", "the start again", "a try", "staged"])
def test_the_first_step_says_what_a_weight_is(before):
    net = Choice()
    optimizer = AGZO(net, lr=1e-2, eps=1e-3)
    start, state = copy.deepcopy(net.state_dict()), optimizer.state_dict()
    if before == "a look":
        optimizer.estimate(net.loss([0]))
        state = optimizer.state_dict()
    if before == "a try":
        evaluations = iter((net.loss([0]), net.loss([0]), lambda: 1 / 0))
        with pytest.raises((ZeroDivisionError, ValueError)):
            optimizer.step(lambda: next(evaluations)())
    if before == "staged":
        optimizer.stage(net.loss([1, 0]))
        state = optimizer.state_dict()
    if before == "the start again":
        for _ in range(2):
            optimizer.step(net.loss([0, 1]))
    net.load_state_dict(start)
    if before not in ("nothing", "a try"):
        optimizer.load_state_dict(state)
    for _ in range(3):
        optimizer.step(net.loss([0, 1]))
    assert [each.role for each in optimizer.tuned if "matrices" in each.name] == ["transposed"] * 2
    same = Choice()
    straight = AGZO(same, lr=1e-2, eps=1e-3)
    for _ in range(3):
        straight.step(same.loss([0, 1]))
    assert all(p.equal(q) for p, q in zip(net.parameters(), same.parameters(), strict=True))
