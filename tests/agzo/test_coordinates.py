"""How much of a model moves in a basis, densely or not at all; ranks above a matrix's side."""

from pathlib import Path

import pytest
import torch
from torch import nn

from agzo import AGZO
from agzo.directions.low_rank import LowRank
from agzo.tuned.coordinates import coordinates
from baselines import (
    AIMZO,
    FZOO,
    LOZO,
    LOZOM,
    SGD,
    AdamW,
    ConMeZO,
    DeepZero,
    HiZOO,
    MeZO,
    SubZero,
    ZeroShot,
    ZOAct,
    ZOMuon,
    on_dominant_layer,
)
from tests.networks import mlp, qwen3, stack

SMALL = {  # every method at its defaults, and each update
    "agzo": lambda model: AGZO(model, lr=1e-2, eps=1e-3),
    "agzo adam": lambda model: AGZO(model, lr=1e-2, eps=1e-3, update="adam"),
    "mezo": lambda model: MeZO(model, lr=1e-3, eps=1e-3),
    "mezo adam": lambda model: MeZO(model, lr=1e-2, eps=1e-3, update="adam"),
    "mezo momentum": lambda model: MeZO(model, lr=1e-3, eps=1e-3, update="momentum"),
    "lozo": lambda model: LOZO(model, lr=1e-3, eps=1e-3),
    "lozo adam": lambda model: LOZO(model, lr=1e-2, eps=1e-3, update="adam"),
    "lozo_m": lambda model: LOZOM(model, lr=1e-3, eps=1e-3),
    "mezo scalar": lambda model: MeZO(model, lr=1e-2, eps=1e-3, update="scalar"),
    "agzo spread": lambda model: AGZO(model, lr=1e-5, eps=1e-3, update="spread", queries=8),
    "hizoo": lambda model: HiZOO(model, lr=1e-3, eps=1e-3),
    "conmezo": lambda model: ConMeZO(model, lr=1e-3, eps=1e-3),
    "subzero": lambda model: SubZero(model, lr=1e-2, eps=1e-3, rank=1, queries=9),
    "zo_muon": lambda model: ZOMuon(model, lr=1e-2, eps=1e-3, rank=1, vector_rate=0.1),
    "aim_zo": lambda model: AIMZO(model, lr=1e-2, eps=1e-3, rank=4, active=3, leading=2),
    "deepzero": lambda model: DeepZero(model, lr=1e-2, eps=1e-3, queries=9, density=0.5),
    "fzoo": lambda model: FZOO(model, lr=1e-5, eps=1e-3),
    "zo_act": lambda model: ZOAct(model, lr=1e-2, eps=1e-3),
    "sgd": lambda model: SGD(model, lr=1e-2),
    "adamw": lambda model: AdamW(model, lr=1e-2),
}


@pytest.mark.parametrize("method", SMALL)
def test_the_readme_model_works_with_every_method_at_its_defaults(method):
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    line = next(each for each in readme.splitlines() if each.startswith("model = torch.nn."))
    torch.manual_seed(0)
    names = {"torch": torch}
    exec(line, names)
    model, x = names["model"].eval(), torch.randn(64, 8)

    def closure() -> torch.Tensor:
        return (model(x) - x.sum(1, keepdim=True)).square().mean()

    before = closure().item()
    optimizer = SMALL[method](model)
    if getattr(optimizer, "wants_batches", 0):
        optimizer.calibrate([(closure, None)] * optimizer.wants_batches)
    for _ in range(50):
        optimizer.step(closure)
    assert closure().item() < before


COUNTS = {  # of the mlp: 0.weight (8, 6), 2.weight and biases, 3.weight (3, 8)
    "agzo": (lambda m: AGZO(m, 1e-3, 1e-3), (2, 72), (4, 27), (0, 0)),
    "agzo frozen": (
        lambda m: AGZO(m, 1e-3, 1e-3, params=lambda n, p: n.startswith("3")),
        (1, 24), (1, 3), (4, 72),
    ),
    "mezo": (lambda m: MeZO(m, 1e-3, 1e-3), (0, 0), (6, 99), (0, 0)),
    "lozo": (lambda m: LOZO(m, 1e-3, 1e-3), (2, 72), (4, 27), (0, 0)),
    "zo_act": (lambda m: ZOAct(m, 1e-3, 1e-3), (2, 72), (0, 0), (4, 27)),
    "sgd": (lambda m: SGD(m, 1e-3), (0, 0), (6, 99), (0, 0)),
    "zero_shot": (ZeroShot, (0, 0), (0, 0), (6, 99)),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
def test_every_coordinate_is_counted_once(name):
    make, *wanted = COUNTS[name]
    model = mlp().model
    about = coordinates(model, make(model)).about()
    kinds = [about[kind] for kind in ("basis", "dense", "frozen")]
    assert [(each["tensors"], each["coordinates"]) for each in kinds] == wanted
    assert about["smaller_ranks"] == {}


def test_one_layer_and_rows_seen():
    net = stack()
    found = coordinates(net.model, on_dominant_layer(net.model, 1e-3, 1e-3, layer=1, base="agzo"))
    assert found.values["basis"] == 64
    assert found.values["dense"] == 24
    whole = sum(p.numel() for p in net.model.parameters())
    assert sum(found.values.values()) == whole
    for embeddings, kind in (("tuned", "dense"), ("seen", "basis"), ("frozen", "frozen")):
        model = qwen3(tied=True).model
        found = coordinates(model, AGZO(model, 1e-3, 1e-3, embeddings=embeddings))
        rest = coordinates(model, AGZO(model, 1e-3, 1e-3, embeddings="frozen"))
        moved = found.values[kind] - rest.values[kind]
        assert (moved or rest.values["frozen"]) == model.model.embed_tokens.weight.numel()  # pyright: ignore


def test_convolutions_are_dense_and_said_to_be():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 4)).eval()
    found = coordinates(model, AGZO(model, 1e-3, 1e-3))
    assert found.values == {"basis": 32, "dense": 228, "frozen": 0}
    assert str(found) == (
        "of its coordinates 32 (1 tensors) move in a basis, 228 (3 tensors) densely, "
        "0 (0 tensors) are frozen"
    )


RANKED = {
    "agzo": (lambda m, r: AGZO(m, 1e-2, 1e-3, rank=r), {"0.weight": 6}),
    "agzo exact": (lambda m, r: AGZO(m, 1e-2, 1e-3, rank=r, basis="exact"), {"0.weight": 6}),
    "agzo adam": (lambda m, r: AGZO(m, 1e-2, 1e-3, rank=r, update="adam"), {"0.weight": 6}),
    "lozo": (lambda m, r: LOZO(m, 1e-4, 1e-3, rank=r), {"3.weight": 3}),
    "zo_act": (lambda m, r: ZOAct(m, 1e-2, 1e-3, rank=r), {"0.weight": 6}),
}


@pytest.mark.parametrize(("name", "rank"), [*((n, 8) for n in RANKED if n != "lozo"), ("lozo", 5)])
def test_a_matrix_too_small_for_the_rank_has_that_of_its_side_and_is_named(name, rank):
    make, smaller = RANKED[name]
    net = mlp()
    optimizer = make(net.model, rank)
    found = coordinates(net.model, optimizer)
    assert found.smaller_ranks == smaller
    layer, most = next(iter(smaller.items()))
    assert str(found).endswith(f"that of their shorter side ({layer}: {most})")
    if optimizer.wants_batches:
        optimizer.calibrate([(net.closure, None)] * optimizer.wants_batches)
    before = net.closure().item()
    for _ in range(20):
        optimizer.step(net.closure)
    assert net.closure().item() < before
    for each in optimizer.tuned:
        direction = optimizer.estimate(net.closure).queries[0][0][each.parameter]
        if isinstance(direction, LowRank):
            assert direction.known.shape[1] == smaller.get(each.name, rank)


def test_vectors_held_as_matrices_take_any_rank():
    model = nn.Sequential(nn.Linear(6, 1, bias=False)).eval()
    optimizer = LOZO(model, 1e-3, 1e-3, rank=2)
    optimizer.step(lambda: model(torch.ones(3, 6)).square().mean())
    assert coordinates(model, optimizer).smaller_ranks == {"0.weight": 1}


def test_an_adapter_of_zo_act_with_several_ranks_loads_in_peft(tmp_path):
    from peft import PeftModel

    from experiments.models.adapter_files import save_lora
    from tests.text_models import random_model

    model = random_model("qwen3")
    ids = torch.randint(3, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    optimizer = ZOAct(model, 1e-2, 1e-2, rank=40)  # layers of 32 and 48 inputs

    def closure() -> torch.Tensor:
        return model(ids).logits.float().logsumexp(-1).mean()

    many = torch.randint(3, 200, (8, 9), generator=torch.Generator().manual_seed(1))
    optimizer.calibrate([(lambda: model(many).logits.sum(), None)] * optimizer.wants_batches)
    for _ in range(2):
        optimizer.step(closure)
    with torch.no_grad():
        wanted = model(ids).logits
    save_lora(model, optimizer.adapter(), tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(random_model("qwen3"), str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, wanted, rtol=0, atol=1e-5)
