"""A weight that a forward uses several times: the basis is of all the rows of the batch."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agzo import AGZO
from agzo.activations.calls import Calls
from agzo.activations.subspace import leading
from agzo.distributed.pieces import Piece
from agzo.execution.stream import StreamedLayers
from tests.networks import weights
from tests.text_models import random_model

WIDTH, RANK = 8, 2


class Shared(nn.Module):
    """A layer that is applied three times, with its inputs noted."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        self.inputs: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.inputs.clear()
        for _ in range(3):
            self.inputs.append(x.detach())
            x = torch.tanh(self.shared(x)) + x.roll(1, -1)
        return self.out(x)


class Probed(Shared):
    """A layer that is asked for a norm, with an identity, before the batch comes; as DoRA does."""

    def forward(self, x: Tensor) -> Tensor:
        identity = torch.eye(WIDTH, dtype=x.dtype, device=x.device)
        norm = F.linear(identity, self.shared.weight).norm()
        self.inputs[:] = [x.detach()]
        return self.out(torch.tanh(self.shared(x)) / norm)


def batch(rows: int = 20, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, WIDTH, generator=generator) * 0.7 ** torch.arange(WIDTH)


def bases_of(model: nn.Module, x: Tensor, mask: Tensor | None = None, **options):
    optimizer = AGZO(model, lr=0.0, eps=1e-3, rank=RANK, **options)
    optimizer.step(lambda: model(x).square().mean(), mask)
    return optimizer._subspace.bases, optimizer


def angle(a: Tensor, b: Tensor) -> float:
    """The cosine of the largest angle of two spans."""
    return torch.linalg.svdvals(a.double().T @ b.double()).min().item()


HOW = [{"basis": "exact"}, {"power_steps": 30}, {"power_steps": 30, "estimator": "two_sided"}]


@pytest.mark.parametrize("options", HOW, ids=str)
@pytest.mark.parametrize("kind", [Shared, Probed])
def test_the_basis_is_of_all_calls_that_carry_the_batch(kind, options):
    model, x = kind(), batch()
    bases, optimizer = bases_of(model, x, **options)
    wanted = leading(torch.cat(model.inputs), RANK)
    assert angle(bases["shared.weight"], wanted) > 1 - 1e-5
    several = {"shared.weight": Calls("all" if kind is Shared else "carrying", kind is Shared)}
    if kind is Shared:
        several = {"shared.weight": Calls("carrying", True)}
    assert optimizer._subspace.calls == several
    assert bases["out.weight"].shape == (WIDTH, RANK)


@pytest.mark.parametrize("execution", ["side_branch", "in_place", "batched"])
def test_a_token_mask_tells_the_batch_from_a_probe_and_keeps_padding_out(execution):
    model, x = Probed(), batch(24).view(4, 6, WIDTH)
    mask = torch.arange(6).expand(4, 6) >= 2
    x[~mask] = 50.0
    given = {"basis": "exact", "execution": execution}
    if execution == "batched":
        given["estimator"] = "two_sided"
    bases, optimizer = bases_of(model, x, mask, **given)
    assert optimizer._subspace.calls == {"shared.weight": Calls("masked", False)}
    assert angle(bases["shared.weight"], leading(x[mask], RANK)) > 1 - 1e-5


def test_a_weight_that_sees_constants_alone_gets_their_basis():
    class Prefix(Shared):
        def forward(self, x: Tensor) -> Tensor:
            table = torch.arange(4.0 * WIDTH).view(4, WIDTH).sin()
            self.inputs[:] = [table, table.cos()]
            made = self.shared(table) + self.shared(table.cos())
            return self.out(x + made.mean(0))

    model = Prefix()
    bases, optimizer = bases_of(model, batch(), basis="exact")
    assert optimizer._subspace.calls == {"shared.weight": Calls("all", True)}
    assert angle(bases["shared.weight"], leading(torch.cat(model.inputs), RANK)) > 1 - 1e-5


@pytest.mark.parametrize("kind", [Shared, Probed])
def test_a_resumed_run_goes_on_exactly(kind):
    def step(optimizer: AGZO, model: nn.Module, seed: int) -> None:
        optimizer.step(lambda: model(batch(seed=seed)).square().mean())

    model, other, again = kind(), kind(), kind()
    straight, first = (AGZO(m, 1e-2, 1e-3, rank=RANK) for m in (model, other))
    for seed in range(5):
        step(straight, model, seed)
    for seed in range(2):
        step(first, other, seed)
    again.load_state_dict(other.state_dict())
    second = AGZO(again, 1e-2, 1e-3, rank=RANK)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for seed in range(2, 5):
        step(second, again, seed)
    assert all(p.equal(weights(again)[n]) for n, p in weights(model).items())


def test_micro_batches_give_the_basis_of_the_whole_batch():
    found = []
    for cuts in ([0, 20], [0, 7, 20]):
        model, x = Shared(), batch()
        pieces = [
            Piece(lambda part=x[a:b], m=model: m(part).square().mean(), weight=b - a, rows=a)
            for a, b in pairwise(cuts)
        ]
        optimizer = AGZO(model, 0.0, 1e-3, rank=RANK, accumulation=len(pieces))
        optimizer.step(pieces)
        found.append(optimizer._subspace.bases["shared.weight"])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [Shared, nn.Linear])
def test_of_a_closure_that_runs_the_model_again_the_first_run_is_looked_at(kind):
    """As one does that generates: its later runs are of single tokens."""
    model = Shared() if kind is Shared else nn.Linear(WIDTH, 1)
    x = batch()
    optimizer = AGZO(model, 0.0, 1e-3, rank=RANK, basis="exact")
    optimizer.step(lambda: sum(model(part).square().mean() for part in (x, x[:1] + 9, x[1:2])))
    wanted = x
    if kind is Shared:
        model(x)
        wanted = torch.cat(model.inputs)
    (name,) = [name for name in optimizer._subspace.bases if "out" not in name]
    assert angle(optimizer._subspace.bases[name], leading(wanted, RANK)) > 1 - 1e-5


def test_weights_that_are_called_once_are_looked_at_as_ever(monkeypatch):
    """No watching of constants, no Gram matrix."""
    monkeypatch.setattr("agzo.directions.activation_subspace.AccumulatedCapture", None)
    monkeypatch.setattr("agzo.activations.capture.Constants", None)
    model = random_model("qwen3")
    ids = torch.randint(4, 40, (3, 6), generator=torch.Generator().manual_seed(0))
    optimizer = AGZO(model, 1e-3, 1e-3)
    for _ in range(2):
        optimizer.step(lambda: model(input_ids=ids, labels=ids).loss, torch.ones_like(ids).bool())
    assert optimizer._subspace.calls == {}
    assert "calls" not in optimizer.state_dict()["state"]["zo"]


def test_streamed_layers_refuse_a_basis_that_comes_too_late():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Shared() for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return sum(layer(x) for layer in self.layers)

    model = Twice()
    optimizer = AGZO(model, 1e-3, 1e-3, stream=StreamedLayers(model, "cpu"))
    with pytest.raises(ValueError, match=r"layers\.0\.shared\.weight: .* several times"):
        optimizer.step(lambda: model(batch()).square().mean())


def test_dora_gets_the_basis_of_the_batch():
    peft = pytest.importorskip("peft")
    model = random_model("qwen3")
    config = peft.LoraConfig(r=3, target_modules=["q_proj"], use_dora=True, init_lora_weights=False)
    model = peft.get_peft_model(model, config).eval()
    ids = torch.randint(4, 40, (3, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids).bool()
    given = {"lr": 0.0, "eps": 1e-3, "basis": "exact"}
    seen: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "lora_" in name:
            module.register_forward_pre_hook(
                lambda _, args, name=name: seen.__setitem__(f"{name}.weight", args[0].detach())
            )
    for token_mask in (mask, None):
        optimizer = AGZO(model, params=lambda n, p: "lora_" in n and "magn" not in n, **given)
        optimizer.step(lambda: model(input_ids=ids, labels=ids).loss, token_mask)
        assert optimizer._subspace.bases
        for name, basis in optimizer._subspace.bases.items():
            x = seen[name].reshape(-1, seen[name].shape[-1])  # of the last call, at W + eps Delta
            assert x.shape[0] == 18
            assert angle(basis, leading(x, 1)) > 0.999, name
