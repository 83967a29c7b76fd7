"""A tuned parameter in any argument of any torch call: perturbed where its values are used."""

import ctypes
import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from agzo import AGZO
from agzo.execution.compiled import CompiledLayers
from agzo.torch_calls import uses
from baselines import LOZO, MeZO
from tests.networks import qwen3

IDS = torch.tensor([[0, 2, 1], [2, 2, 3]])
MASK = torch.tensor([True, False, True, True])


@dataclass(frozen=True)
class Call:
    """A function and the shapes of its tensor arguments."""

    name: str
    run: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]

    def __str__(self) -> str:
        return self.name


def renormed(weight: Tensor, x: Tensor) -> Tensor:
    """A table whose rows a lookup rewrites, used again as a head."""
    return F.linear(F.embedding(IDS, weight, max_norm=0.5) @ x, weight)


def attention(x: Tensor, qkv: Tensor, bias: Tensor, out: Tensor) -> Tensor:
    arguments = {"need_weights": False, "training": False}
    return F.multi_head_attention_forward(
        *(x, x, x, 4, 2, qkv, bias, None, None, False, 0.0, out, None), **arguments
    )[0]


def assigned(x: Tensor, y: Tensor) -> Tensor:
    z = x.clone()
    z[1] = y
    return z


def lstm(x: Tensor, *weights: Tensor) -> Tensor:
    state = (torch.zeros(1, 2, 4), torch.zeros(1, 2, 4))
    return torch.lstm(x, state, weights, True, 1, 0.0, False, False, True)[0]


CALLS = [
    Call("linear", F.linear, ((3, 4), (5, 4), (5,))),
    Call("linear_4d", F.linear, ((2, 2, 3, 4), (5, 4), (5,))),
    Call("linear_of_a_vector", F.linear, ((3, 4), (4,))),
    Call("linear_by_name", lambda x, w: F.linear(weight=w, input=x), ((3, 4), (5, 4))),
    Call("linear_transposed", lambda x, w: F.linear(x.mT, w), ((2, 4, 3), (5, 4))),
    Call("embedding", lambda w: F.embedding(IDS, w), ((4, 3),)),
    Call("embedding_int32", lambda w: F.embedding(IDS.int(), w), ((4, 3),)),
    Call("embedding_by_name", lambda w: F.embedding(weight=w, input=IDS, sparse=True), ((4, 3),)),
    Call("embedding_renormed", renormed, ((4, 3), (3, 3))),
    Call(
        "embedding_bag",
        lambda w, s: F.embedding_bag(IDS, w, mode="sum", per_sample_weights=s),
        ((4, 3), (2, 3)),
    ),
    Call("bilinear", F.bilinear, ((3, 4), (3, 2), (5, 4, 2), (5,))),
    Call("conv1d", F.conv1d, ((2, 3, 6), (4, 3, 2), (4,))),
    Call("conv2d", F.conv2d, ((2, 3, 4, 4), (4, 3, 2, 2), (4,))),
    Call("conv_transpose1d", F.conv_transpose1d, ((2, 3, 6), (3, 4, 2), (4,))),
    Call("layer_norm", lambda x, w, b: F.layer_norm(x, (4,), w, b), ((3, 4), (4,), (4,))),
    Call("rms_norm", lambda x, w: F.rms_norm(x, (4,), w), ((3, 4), (4,))),
    Call("group_norm", lambda x, w, b: F.group_norm(x, 2, w, b), ((3, 4), (4,), (4,))),
    Call(
        "batch_norm",
        lambda x, w, b: F.batch_norm(x, torch.zeros(4), torch.ones(4), w, b),
        ((3, 4), (4,), (4,)),
    ),
    Call("prelu", F.prelu, ((3, 4), (4,))),
    Call("attention", F.scaled_dot_product_attention, ((1, 2, 3, 4),) * 3 + ((3, 3),)),
    Call("multi_head_attention", attention, ((3, 2, 4), (12, 4), (12,), (4, 4))),
    Call("lstm", lstm, ((2, 3, 2), (16, 2), (16, 4), (16,), (16,))),
    Call("addmm", torch.addmm, ((5,), (3, 4), (4, 5))),
    Call("baddbmm", torch.baddbmm, ((2, 3, 5), (2, 3, 4), (2, 4, 5))),
    Call("einsum", lambda x, y: torch.einsum("ij,kj->ik", x, y), ((3, 4), (5, 4))),
    Call("tensordot", lambda x, y: torch.tensordot(x, y, 1), ((3, 4), (4, 5))),
    Call("matmul", torch.matmul, ((2, 3, 4), (4, 5))),
    Call("cat", lambda x, y: torch.cat([x, y]), ((3, 4), (2, 4))),
    Call("stack", lambda x, y: torch.stack((x, y)), ((3, 4), (3, 4))),
    Call("where", lambda x, y: torch.where(MASK, x, y), ((3, 4), (4,))),
    Call("lerp", torch.lerp, ((3, 4), (3, 4), (4,))),
    Call("addcmul", torch.addcmul, ((3, 4), (3, 4), (4,))),
    Call("clamp", lambda x, a, b: x.clamp(min=a, max=b), ((3, 4), (4,), (4,))),
    Call("setitem", assigned, ((3, 4), (4,))),
    Call("fill", lambda x, y: x.clone().fill_(y), ((3, 4), ())),
    Call("scatter", lambda x, y: x.scatter(0, IDS[:1], y), ((4, 3), (4, 3))),
    Call("cross_entropy", lambda x, w: F.cross_entropy(x, IDS[0], w), ((3, 4), (4,))),
    Call("transposed", lambda x: x.T @ x, ((3, 4),)),
    Call("detached", lambda x, y: x.detach() * y.data, ((3, 4), (4,))),
    Call("numpy", lambda x, y: x * torch.from_numpy(y.detach().numpy()), ((3, 4), (4,))),
    Call("item", lambda x, y: x * y.item() + float(y), ((3, 4), ())),
    Call("scalar", torch.mul, ((3, 4), ())),
    Call("twice", lambda x: x * x + torch.add(x, x), ((3, 4),)),
    Call("weight_norm", lambda v, g: torch._weight_norm(v, g, 0), ((3, 4), (3, 1))),
    Call("aten", torch.ops.aten.linear.default, ((3, 4), (5, 4), (5,))),
    Call("in_place", lambda x, y: x.clone().mul_(y), ((3, 4), (4,))),
    Call("grid", torch.cdist, ((3, 4), (5, 4))),
]
POSITIONS = [(call, at) for call in CALLS for at in range(len(call.shapes))]
REFUSED = ("setitem", "fill", "in_place", "detached", "numpy", "item")  # of several points at once
positions = pytest.mark.parametrize(
    ("call", "at"), POSITIONS, ids=[f"{call}-{at}" for call, at in POSITIONS]
)


class Uses(nn.Module):
    """Calls a function with a parameter in one place, or in several."""

    def __init__(self, call: Call, places: set[int]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.call, self.held = call, nn.ParameterDict()
        self.given: list[Any] = []
        for at, shape in enumerate(call.shapes):
            value = torch.rand(shape, generator=generator) + 0.5
            if at in places:
                self.held[str(at)] = nn.Parameter(value)
            self.given.append(value)

    def forward(self, x: Tensor) -> Tensor:
        given = [self.held.get(str(at), value) for at, value in enumerate(self.given)]
        return x + self.call.run(*given).float().square().mean()


def slopes(model: nn.Module, method: Any, execution: str, **options: Any) -> list[float]:
    x = torch.zeros(1)
    optimizer = method(model, lr=1e-2, eps=1e-2, execution=execution, **options)
    found = []
    for _ in range(3):
        optimizer.step(lambda: model(x).sum())
        found += optimizer.projected_grad.tolist()
    return found


def near(found: list[float], wanted: list[float]) -> None:
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=2e-3, atol=2e-3)


@positions
def test_the_side_branch_gives_the_number_of_weights_that_are_written(call: Call, at: int):
    model = [Uses(call, {at}) for _ in range(2)]
    near(slopes(model[0], MeZO, "side_branch"), slopes(model[1], MeZO, "in_place"))


@positions
def test_several_points_at_once_give_it_too_or_are_refused(call: Call, at: int):
    if call.name == "lstm" or (at == 1 and call.name in REFUSED):
        with pytest.raises(ValueError, match=r"execution='batched'.*allowed is side_branch"):
            slopes(Uses(call, {at}), MeZO, "batched")
        return
    model = [Uses(call, {at}) for _ in range(2)]
    near(slopes(model[0], MeZO, "batched"), slopes(model[1], MeZO, "in_place"))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_several_parameters_of_one_call_are_all_perturbed(data: st.DataObject):
    call = data.draw(st.sampled_from(CALLS), "function")
    places = data.draw(st.sets(st.integers(0, len(call.shapes) - 1), min_size=1), "positions")
    method, options = data.draw(st.sampled_from([(MeZO, {}), (LOZO, {"rank": 1})]), "method")
    model = [Uses(call, places) for _ in range(2)]
    near(
        slopes(model[0], method, "side_branch", **options),
        slopes(model[1], method, "in_place", **options),
    )


class Layers(nn.Module):
    """Decoder layers, each of which makes one call."""

    def __init__(self, call: Call, at: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Uses(call, {at})])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


COMPILED = ("linear", "embedding_bag", "lerp", "cat")  # the others take half a minute


@pytest.mark.parametrize(
    ("call", "at"),
    [
        pytest.param(c, at, id=f"{c}-{at}", marks=[] if c.name in COMPILED else pytest.mark.slow)
        for c, at in POSITIONS
    ],
)
def test_compiled_layers_give_it_too(call: Call, at: int):
    eager, compiled = Layers(call, at), Layers(call, at)
    with CompiledLayers(compiled, backend="eager"):
        near(slopes(compiled, LOZO, "side_branch", rank=1), slopes(eager, LOZO, "in_place", rank=1))


class Weighted(nn.Module):
    """A linear layer and a parameter that a function is given, whatever it does with it."""

    def __init__(self, look: Callable[[nn.Parameter], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.looked_at = nn.Linear(4, 2), nn.Parameter(torch.randn(4))
        self.look = look

    def forward(self, x: Tensor) -> Tensor:
        found = self.look(self.looked_at)
        return self.linear(x).square().mean() + (found if isinstance(found, float) else 0.0)


READS: dict[str, Callable[[nn.Parameter], Any]] = {
    "size": lambda p: p.size(),
    "size_of_one": lambda p: p.size(0),
    "numel": lambda p: p.numel() + torch.numel(p),
    "stride": lambda p: p.stride(),
    "dim": lambda p: p.dim() + p.ndim,
    "shape": lambda p: p.shape,
    "dtype": lambda p: (p.dtype, p.is_floating_point(), torch.is_floating_point(p)),
    "type": lambda p: p.type(),
    "device": lambda p: (p.device, p.is_cuda, p.get_device()),
    "layout": lambda p: (p.is_contiguous(), p.layout, p.element_size(), p.storage_offset()),
    "len": len,
    "repr": repr,
    "requires_grad": lambda p: p.requires_grad_(True).requires_grad,
    "grad": lambda p: (p.grad, setattr(p, "grad", None)),
    "like": lambda p: torch.zeros_like(p).sum().item(),
    "new": lambda p: p.new_ones(3).sum().item(),
    "as": lambda p: torch.ones(4).to(p).type_as(p).view_as(p).sum().item(),
    "same_size": lambda p: torch.is_same_size(p, p),
    "data_ptr": lambda p: p.data_ptr(),
    "storage": lambda p: p.untyped_storage().nbytes(),
}


@pytest.mark.parametrize("look", READS.values(), ids=READS)
def test_a_parameter_that_is_only_looked_at_is_not_used(look):
    model, x = Weighted(look), torch.randn(5, 4)
    with pytest.raises(ValueError, match=r"does not use 1 tuned parameter.*looked_at"):
        MeZO(model, lr=1e-2, eps=1e-2).step(lambda: model(x))


@pytest.mark.parametrize("look", READS.values(), ids=READS)
def test_looking_at_a_parameter_that_is_used_changes_nothing(look):
    found = []
    for execution in ("side_branch", "in_place"):
        model, x = Weighted(look), torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
        optimizer = MeZO(model, lr=1e-2, eps=1e-2, execution=execution)
        seen = []
        for _ in range(3):  # the parameter is used as well, and perturbed there
            optimizer.step(lambda m=model, x=x: m(x) + m.looked_at.square().sum())
            assert optimizer.projected_grad is not None
            seen.append(optimizer.projected_grad.item())
        found.append(seen)
    assert found[0] == found[1]


def test_every_attribute_of_a_tensor_is_read_used_or_an_address():
    kinds = ("getset_descriptor", "property")
    names = [n for n in dir(Tensor) if type(getattr(Tensor, n)).__name__ in kinds]
    getters = {name: getattr(Tensor, name).__get__ for name in names}
    parameter = nn.Parameter(torch.randn(3, 4))
    of_values = {"H", "T", "mH", "mT", "data", "imag", "real"}
    for name in getters.keys() - {"__weakref__"}:
        using = uses.holds({id(parameter)}, uses.used(getters[name], (parameter,), {}))
        addressed = getters[name] in uses.ADDRESSES
        assert using == (name in of_values or addressed), name


def read(address: int, size: int = 4) -> float:
    """Sum what lies at an address, after memory that is free was used for something else."""
    rubbish = [torch.full((4,), 1e6) for _ in range(200)]
    found = sum((ctypes.c_float * size).from_address(address))
    del rubbish
    return found


ADDRESSES: dict[str, Callable[[Tensor], int]] = {
    "parameter": lambda p: p.data_ptr(),
    "data": lambda p: p.data.data_ptr(),
    "detached": lambda p: p.detach().data_ptr(),
    "view": lambda p: p.view(2, 2).data_ptr(),
    "storage": lambda p: p.untyped_storage().data_ptr(),
    "storage_of_data": lambda p: p.data.untyped_storage().data_ptr(),
}


@pytest.mark.parametrize("address", ADDRESSES.values(), ids=ADDRESSES)
@pytest.mark.parametrize("used_before", [False, True])
def test_an_address_is_of_perturbed_values_until_the_evaluation_ends(address, used_before):
    found = []
    for execution in ("side_branch", "in_place"):
        model, x = Weighted(lambda p: None), torch.randn(5, 4)

        def closure(model=model, x=x):
            p = model.looked_at
            used = (p * 2.0).sum() if used_before else 0.0
            at = address(p)
            return model(x * 0.0) + p.sum() * 1e-3 + used + read(at)

        optimizer = MeZO(model, lr=1e-2, eps=1e-2, execution=execution)
        optimizer.step(closure)
        assert optimizer.projected_grad is not None
        found.append(optimizer.projected_grad.item())
    assert found[0] == found[1]


def test_an_address_for_several_points_at_once_is_refused():
    model, x = Weighted(lambda p: p.data_ptr()), torch.randn(5, 4)
    optimizer = MeZO(model, lr=1e-2, eps=1e-2, execution="batched")
    with pytest.raises(ValueError, match=r"execution='batched'.*address.*side_branch"):
        optimizer.step(lambda: model(x) + model.looked_at.sum())


def test_copies_of_which_no_address_is_taken_are_not_kept():
    model, x, modes = Weighted(lambda p: None), torch.randn(5, 4), []

    def closure():
        modes.extend(_get_current_function_mode_stack())
        p = model.looked_at
        return model(x) + p.view(2, 2).sum() + (p.data + p.detach() * p).sum()

    MeZO(model, lr=1e-2, eps=1e-2).estimate(closure)
    assert [len(mode._kept) + len(mode._standing) for mode in modes] == [0, 0]


class Physics(nn.Module):
    """A loss of the network's derivative, which the closure takes by itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(1, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            y = self.last(torch.tanh(self.first(x)))
            (slope,) = torch.autograd.grad(y.sum(), x)
        return (slope.detach() - 1.0).square().mean()


@pytest.mark.parametrize("method", [MeZO, LOZO, AGZO])
def test_a_derivative_within_the_closure_is_that_of_the_perturbed_network(method):
    found = []
    for execution in ("side_branch", "in_place"):
        model, x = Physics(), torch.linspace(0, 1, 8)[:, None]
        rank = {} if method is MeZO else {"rank": 1}
        optimizer = method(model, lr=1e-2, eps=1e-2, execution=execution, **rank)
        for _ in range(3):
            optimizer.step(lambda m=model, x=x: m(x))
        found.append(optimizer.projected_grad)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("method", [MeZO, LOZO])
def test_torch_func_within_the_closure(method):
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    found = []
    for execution in ("side_branch", "batched", "in_place"):
        torch.manual_seed(0)
        model = nn.Linear(4, 2)
        optimizer = method(model, lr=1e-2, eps=1e-2, execution=execution)
        optimizer.step(lambda m=model: torch.vmap(lambda row: m(row).square().mean())(x).mean())
        found.append(optimizer.projected_grad)
    torch.testing.assert_close(found[0], found[2])
    torch.testing.assert_close(found[1], found[2], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_nested_tensors_within_the_closure(layout):
    found = []
    for execution in ("side_branch", "in_place"):
        torch.manual_seed(0)
        model = nn.Linear(4, 2)
        parts = [torch.randn(3, 4), torch.randn(5, 4)]
        x = torch.nested.nested_tensor(parts, layout=layout)
        optimizer = LOZO(model, lr=1e-2, eps=1e-2, rank=1, execution=execution)
        optimizer.step(lambda m=model, x=x: torch.cat(m(x).unbind()).square().mean())
        found.append(optimizer.projected_grad)
    torch.testing.assert_close(*found)


def test_agzo_names_a_layer_whose_input_is_no_plain_tensor():
    model = nn.Linear(4, 2)
    x = torch.randn(6, 4)
    with pytest.raises(ValueError, match=r"weight: its input is a nested tensor, or torch\.func"):
        AGZO(model, lr=1e-2, eps=1e-2).step(lambda: torch.vmap(model)(x).square().mean())


class CallsBack(nn.Module):
    """Torch runs functions of the model's own: their uses of parameters are seen too."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.w = kind, nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "cond":
            return torch.cond(x.sum() > 0, lambda y: y @ self.w, lambda y: y @ self.w.T, (x,))
        return F.triplet_margin_with_distance_loss(
            *(x, x + 1, x - 3),
            distance_function=lambda a, b: ((a - b) @ self.w).norm(dim=-1),
            margin=50.0,
        )


@pytest.mark.parametrize("kind", ["cond", "triplet"])
def test_functions_that_torch_is_given_run_at_the_perturbed_weights(kind):
    found = []
    for execution in ("side_branch", "in_place"):
        model = CallsBack(kind)
        x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
        optimizer = MeZO(model, lr=1e-2, eps=1e-2, execution=execution)
        optimizer.step(lambda m=model, x=x: m(x).square().mean())
        assert optimizer.projected_grad is not None
        found.append(optimizer.projected_grad.item())
    assert found[0] == found[1] != 0.0


def test_ids_that_are_no_rows_are_refused_as_torch_does():
    model = nn.Embedding(5, 3)
    ids = torch.tensor([0, 1])
    optimizer = MeZO(model, lr=1e-2, eps=1e-2)
    optimizer.step(lambda: model(ids).square().mean())
    for bad in (-1, 5, 2**40):
        with pytest.raises(IndexError):
            optimizer.step(lambda bad=bad: model(torch.tensor([0, bad])).square().mean())


@pytest.mark.parametrize("kind", [AGZO, MeZO, LOZO])
def test_nothing_of_an_evaluation_lives_on_until_a_garbage_collection(kind):
    net = qwen3(torch.float32)
    optimizer = kind(net.model, lr=1e-3, eps=1e-3)
    optimizer.step(net.closure, net.token_mask)
    gc.collect()
    gc.disable()
    try:
        optimizer.step(net.closure, net.token_mask)
        left = [
            type(each).__name__ for each in gc.get_objects() if isinstance(each, uses.TorchCalls)
        ]
    finally:
        gc.enable()
    assert left == []
