"""torch's default dtype and device change no number; compiled code checks what it is given."""

import ast
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agzo import AGZO, kernels
from agzo.distributed.pieces import Piece
from agzo.execution.compiled import CompiledLayers
from agzo.execution.stream import StreamedLayers
from agzo.kernels import native
from agzo.kernels.gram import compiled_gram
from agzo.rng import Noise
from baselines import LOZO, SGD, AdamW, MeZO
from tests.methods import METHODS, Method, every_method
from tests.networks import Network, stack, weights

DEFAULTS: dict[str, Any] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
    "meta": torch.device("meta"),
}
every_default = pytest.mark.parametrize("default", DEFAULTS.values(), ids=DEFAULTS)
CPU = torch.device("cpu")


@contextmanager
def set_to(default: Any) -> Iterator[None]:
    """Have torch make tensors of this dtype, or on this device, where nothing is said."""
    if isinstance(default, torch.device):
        before = torch.get_default_device()
        torch.set_default_device(default)
        try:
            yield
        finally:
            torch.set_default_device(None if before == CPU else before)
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    return [t for item in items for t in tensors(item)] if isinstance(value, dict | list) else []


def end(net: Network, make: Callable[[Network], Any], batch: Any = None) -> list[Tensor]:
    """Make an optimizer, take three steps, and return all numbers that are there then."""
    optimizer = make(net)
    found = []
    for _ in range(3):
        found.append(optimizer.step(*(batch(net) if batch else (net.closure, net.token_mask))))
    if optimizer.projected_grad is not None:
        found.append(optimizer.projected_grad)
    found += tensors(optimizer.state_dict()["state"])
    return [*found, *weights(net.model).values()]


def unchanged(
    default: Any, network: Callable[[], Network], make: Callable[[Network], Any], batch: Any = None
) -> None:
    wanted = end(network(), make, batch)
    net = network()
    with set_to(default):
        found = end(net, make, batch)
    assert len(found) == len(wanted) > 3
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        assert one.device == other.device
        assert one.equal(other)
    assert all(torch.isfinite(each).all() for each in found)


@every_default
@every_method
def test_every_method_has_the_same_bits(method: Method, default):
    unchanged(default, lambda: method.network("mlp"), method.make)


@every_default
@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_backpropagation_has_the_same_numbers(kind, default):
    ends = []
    for each in (torch.float32, default):
        net = stack()
        with set_to(each):
            optimizer = kind(net.model, lr=1e-2)
            losses = [optimizer.step(net.closure) for _ in range(3)]
        ends.append([*losses, *weights(net.model).values()])
    for one, other in zip(*ends, strict=True):
        assert one.equal(other)


@every_default
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "master"])
def test_weights_of_each_dtype_and_rounding(dtype, rounding, default):
    options = {"lr": 1e-2, "eps": 1e-2, "rounding": rounding}
    for kind in (AGZO, LOZO, MeZO):
        unchanged(default, lambda: stack(dtype), lambda net, k=kind: k(net.model, **options))


@every_default
@pytest.mark.parametrize("execution", ["in_place", "batched"])
@pytest.mark.parametrize("name", ["agzo-prototype", "lozo", "mezo", "zo_act"])
def test_each_execution(name, execution, default):
    (method,) = [each for each in METHODS if each.name == name]
    method = replace(method, options={**method.options, "execution": execution})
    unchanged(default, stack, method.make)


class Table(nn.Module):
    """An embedding that is the head as well, around a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(9, 6), nn.Linear(6, 6)

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.linear(self.table(ids))), self.table.weight)


def table() -> Network:
    torch.manual_seed(0)
    model, ids = Table(), torch.randint(0, 9, (3, 5))
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[0, :2] = False
    loss = lambda: F.cross_entropy(model(ids).flatten(0, 1), ids.flatten())  # noqa: E731
    return Network(model, loss, mask)


@every_default
@pytest.mark.parametrize("embeddings", ["tuned", "seen"])
@pytest.mark.parametrize("kind", [AGZO, LOZO, MeZO])
def test_embeddings(kind, embeddings, default):
    unchanged(default, table, lambda net: kind(net.model, 1e-2, 1e-2, embeddings=embeddings))


@every_default
def test_streamed_layers(default):
    for kind in (AGZO, LOZO, MeZO):
        unchanged(
            default,
            stack,
            lambda net, k=kind: k(net.model, 1e-2, 1e-2, stream=StreamedLayers(net.model, "cpu")),
        )


@every_default
@pytest.mark.parametrize("kind", [AGZO, LOZO])
def test_compiled_layers(kind, default):
    torch._dynamo.reset()

    def network() -> Network:
        net = stack()
        net.closure = CompiledLayers(net.model, backend="eager").around(net.closure)
        return net

    unchanged(default, network, lambda net: kind(net.model, 1e-2, 1e-2))


@every_default
def test_micro_batches(default):
    def pieces(net: Network) -> Any:
        return ([Piece(net.closure), Piece(net.closure, weight=2.0, rows=20)],)

    make = lambda net: AGZO(net.model, 1e-2, 1e-2, rank=2, accumulation=2)  # noqa: E731
    unchanged(default, stack, make, pieces)


@every_default
@pytest.mark.parametrize("compiled", [False, True])
def test_noise_is_a_function_of_its_address_alone(monkeypatch, compiled, default):
    if not compiled:
        monkeypatch.setattr(native, "library", None)
    ids = torch.tensor([3, 1, 3])
    base = torch.randn(5, 7)
    values = torch.randn(9)

    def numbers() -> list[Tensor]:
        noise = Noise(1, 2)
        key = noise.key("w", "dense")
        bits = kernels.sixteen_bits(key, 3, torch.Size([9]), CPU)
        return [
            noise.tensor((6, 5), CPU, "w", "dense"),
            noise.columns(6, 2, CPU, "w", "left"),
            noise.table(2, 5, 3, CPU, "w"),
            *(rows for _, _, rows in noise.rows((6, 5), CPU, "w", "dense")),
            kernels.normal_rows(key, ids, 7, base, 0.5),
            kernels.normal_rows(key, ids, 7),
            bits,
            kernels.round_stochastically(values * 1e-5, bits, torch.float16),
            kernels.round_stochastically(values, bits, torch.bfloat16),
        ]

    wanted = numbers()
    with set_to(default):
        found = numbers()
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        assert one.equal(other)


needs_compiled = pytest.mark.skipif(native.library is None, reason="no compiled kernels here")
GOOD: dict[str, Callable[..., None]] = {
    "out": lambda t: native.normal(t, (1, 2), 0, None, 1.0, 1.0),
    "base": lambda t: native.normal(torch.zeros(4, 6), (1, 2), 0, t, 1.0, 1.0),
    "out of rows": lambda t: native.normal_rows(t, (1, 2), torch.arange(4), None, 1.0),
    "base of rows": lambda t: native.normal_rows(
        torch.zeros(2, 6), (1, 2), torch.tensor([1, 3]), t, 1.0
    ),
    "table": lambda t: native.normal_table(
        t.view(2, 2, 6) if t.is_contiguous() else t[None], (1, 2)
    ),
    "y": lambda t: native.add_thin(t, torch.zeros(1, 4), torch.zeros(1, 6)),
    "left": lambda t: native.add_thin(torch.zeros(6, 2), t, torch.zeros(4, 2)),
    "right": lambda t: native.add_thin(torch.zeros(2, 6), torch.zeros(4, 2), t),
    "x": lambda t: compiled_gram(torch.zeros(1, 6), t, torch.zeros(1, 6), None),
    "q": lambda t: compiled_gram(torch.zeros(4, 6), torch.zeros(3, 6), t, None),
}
OF_EITHER = ("out", "out of rows")  # float32 or bfloat16
BAD: dict[str, Callable[[], Tensor]] = {
    "bfloat16": lambda: torch.zeros(4, 6, dtype=torch.bfloat16),
    "float64": lambda: torch.zeros(4, 6, dtype=torch.float64),
    "strided": lambda: torch.zeros(4, 12)[:, ::2],
    "meta": lambda: torch.zeros(4, 6, device="meta"),
}


@needs_compiled
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
@pytest.mark.parametrize("name", GOOD)
def test_compiled_code_takes_no_pointer_of_another_dtype_layout_or_device(name, bad):
    call = GOOD[name]
    call(torch.zeros(4, 6))
    if name in OF_EITHER and bad().dtype == torch.bfloat16:
        call(bad())
        return
    with pytest.raises(ValueError, match=r"allowed are \d+ contiguous values, .*, on the CPU"):
        call(bad())


@needs_compiled
def test_compiled_code_takes_no_pointer_of_another_size():
    z = torch.zeros
    wrong: list[Callable[[], None]] = [
        lambda: native.normal(z(4), (1, 2), 0, z(3), 1.0, 1.0),
        lambda: native.normal(z(4), (1, 2), 0, z(4).bfloat16(), 1.0, 1.0),
        lambda: native.normal(z(4).bfloat16(), (1, 2), 0, z(4), 1.0, 1.0),
        lambda: native.normal_rows(z(2, 6).bfloat16(), (1, 2), torch.arange(2), z(4, 6), 1.0),
        lambda: native.add_thin_bfloat16(z(3, 4), z(2, 3), z(2, 4)),
        lambda: native.add_thin_bfloat16(z(3, 4).bfloat16(), z(2, 3), z(2, 5)),
        lambda: native.add_thin_bfloat16(z(3, 4).bfloat16(), z(5, 3), z(5, 4)),
        lambda: native.normal_rows(z(2, 6), (1, 2), torch.arange(3), None, 1.0),
        lambda: native.normal_rows(z(2, 6), (1, 2), torch.arange(2).int(), None, 1.0),
        lambda: native.normal_rows(z(2, 6), (1, 2), torch.arange(2), z(4, 5), 1.0),
        lambda: native.sixteen_bits(z(4), (1, 2), 0),
        lambda: native.add_thin(z(3, 4), z(2, 3), z(2, 5)),
        lambda: native.add_thin(z(3, 4), z(2, 2), z(2, 4)),
        lambda: native.add_thin(z(3, 4), z(1, 3), z(2, 4)),
        lambda: native.add_thin(z(3, 4), z(5, 3), z(5, 4)),
        lambda: native.add_thin(z(3, 4), z(0, 3), z(0, 4)),
        lambda: compiled_gram(z(2, 6), z(3, 6), z(2, 5), None),
        lambda: compiled_gram(z(1, 6), z(3, 6), z(2, 6), None),
        lambda: compiled_gram(z(2, 6), z(3, 6), z(2, 6), z(2, dtype=torch.bool)),
        lambda: compiled_gram(z(2, 6), z(3, 6), z(2, 6), z(3)),
    ]
    for call in wrong:
        with pytest.raises(ValueError, match="allowed are"):
            call()


@needs_compiled
@pytest.mark.parametrize("rows", [[-1], [0, 4], [2**40]])
def test_compiled_code_reads_no_row_that_is_not_there(rows):
    out, base = torch.zeros(len(rows), 6), torch.zeros(4, 6)
    with pytest.raises(IndexError, match="allowed are 0 to 3"):
        native.normal_rows(out, (1, 2), torch.tensor(rows), base, 1.0)


FACTORIES = """
    arange as_tensor asarray bartlett_window blackman_window empty empty_permuted empty_strided eye
    full hamming_window hann_window kaiser_window linspace logspace ones rand randint randn randperm
    range scalar_tensor sparse_coo_tensor tensor tril_indices triu_indices zeros
"""
TYPED = "BoolTensor ByteTensor DoubleTensor FloatTensor HalfTensor IntTensor LongTensor Tensor"


def loose(source: str) -> list[int]:
    """List the lines that leave the dtype or the device of a new tensor to torch's defaults."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner, name = node.func.value, node.func.attr
        if not (isinstance(owner, ast.Name) and owner.id == "torch"):
            continue
        said = {keyword.arg for keyword in node.keywords}
        if name in TYPED.split() or (name in FACTORIES.split() and not {"dtype", "device"} <= said):
            found.append(node.lineno)
    return found


@pytest.mark.parametrize("package", ["agzo", "baselines"])
def test_the_library_says_dtype_and_device_of_each_tensor_that_it_makes(package):
    folder = Path(__file__).resolve().parents[2] / package
    files = sorted(folder.rglob("*.py"))
    assert files
    found = {
        f"{path.relative_to(folder.parent)}:{line}"
        for path in files
        for line in loose(path.read_text(encoding="utf-8"))
    }
    assert not found, f"dtype= and device= are both needed: {sorted(found)}"


def test_the_rule_finds_what_it_forbids():
    assert loose("torch.zeros(3)\ntorch.zeros(3, dtype=d)\ntorch.zeros(3, device=d)") == [1, 2, 3]
    assert loose("torch.tensor(1, **given)\ntorch.Tensor(3)\nx = torch.FloatTensor([1])") == [
        1,
        2,
        3,
    ]
    assert not loose("torch.zeros(3, dtype=d, device=e)\ntorch.zeros_like(x)\nx.new_zeros(3)")
