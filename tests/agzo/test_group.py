"""Several processes follow the trajectory of one, and send what they are said to send (gloo)."""

import os
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from networks import qwen3, weights
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from agzo import AGZO
from agzo.distributed.group import ALONE, Group
from agzo.distributed.pieces import Piece
from agzo.distributed.processes import Drifted, Processes, ProcessLost, checksum
from baselines import LOZO, SGD, AdamW, MeZO, ZOAct, on_dominant_layer

STEPS = 12
LEARNING_RATES = {MeZO: 1e-3, LOZO: 1e-3, SGD: 5e-2}
ROWS, WIDTH = 7, 6  # 7 rows on 2 and on 4 processes: uneven shares
METHODS: dict[str, tuple[Any, dict[str, Any]]] = {
    "mezo": (MeZO, {}),
    "mezo-q2-momentum": (MeZO, {"queries": 2, "update": "momentum", "large_state": True}),
    "lozo": (LOZO, {"refresh_every": 3}),
    "agzo": (AGZO, {}),
    "agzo-two-sided-r3": (AGZO, {"rank": 3, "estimator": "two_sided", "refresh_every": 2}),
    "agzo-batched": (AGZO, {"estimator": "two_sided", "execution": "batched"}),
    "agzo-warm": (AGZO, {"rank": 2, "power_steps": 1, "warm_start": True}),
    "zo-act": (ZOAct, {"calibration_batches": 1, "large_state": True}),
    "dominant-agzo": (on_dominant_layer, {"base": "agzo", "layer": 1, "scan_batches": 1}),
    "sgd": (SGD, {"momentum": 0.9}),
    "adamw": (AdamW, {"weight_decay": 0.1}),
}
FOUR = ["mezo", "lozo", "agzo", "agzo-two-sided-r3", "zo-act", "sgd"]  # those on four processes


class Rows:
    """A batch of rows of a small language model, of which any run of rows is a piece."""

    def __init__(self, model: nn.Module | None = None) -> None:
        self.model = model or qwen3(torch.float64).model
        generator = torch.Generator().manual_seed(5)
        self.ids = torch.randint(4, 40, (ROWS, WIDTH), generator=generator)
        self.mask = torch.ones(ROWS, WIDTH, dtype=torch.bool)
        self.mask[0, :3] = self.mask[4, :1] = False
        self.targets = torch.randint(0, 40, (ROWS,), generator=generator)

    def piece(self, start: int, stop: int) -> Piece:
        own = slice(start, stop)

        def closure() -> Tensor:
            mask = self.mask[own].long()
            out: Any = self.model(input_ids=self.ids[own], attention_mask=mask, use_cache=False)
            return F.cross_entropy(out.logits[:, -1], self.targets[own])

        return Piece(closure, self.mask[own], weight=stop - start, rows=start)

    def train(self, name: str, group: Group | None, cuts: list[int]) -> dict[str, Any]:
        """Train on the pieces between these cuts; return losses, slopes and weights."""
        kind, options = METHODS[name]
        zeroth = {} if kind in (SGD, AdamW) else {"eps": 1e-3, "seed": 3}
        lr = LEARNING_RATES.get(kind, 1e-2)
        pieces = [self.piece(a, b) for a, b in pairwise(cuts)]
        optimizer = kind(
            self.model, lr=lr, group=group, accumulation=len(pieces), **zeroth, **options
        )
        if getattr(optimizer, "wants_batches", 0):
            whole = self.piece(0, ROWS)
            optimizer.calibrate([(whole.closure, whole.token_mask)])
        losses, slopes, sent = [], [], []
        for _ in range(STEPS):
            before = 0 if group is None else group.reduced_bytes
            losses.append(optimizer.step(pieces))
            slopes.append(torch.zeros(1) if kind in (SGD, AdamW) else optimizer.projected_grad)
            sent.append(0 if group is None else group.reduced_bytes - before)
        return {
            "losses": torch.stack(losses),
            "slopes": torch.stack(slopes),
            "weights": weights(self.model),
            "sent": sent,
            "forwards": optimizer.forwards,
        }


class Experts(nn.Module):
    """A language model of two linear experts, each for the tokens that choose it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.router = nn.Embedding(40, 8), nn.Linear(8, 2)
        self.experts = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.head = nn.Linear(8, 40)

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        x = self.embedding(input_ids)
        chosen, out = self.router(x).argmax(-1), x.clone()
        for index, expert in enumerate(self.experts):
            out[chosen == index] += expert(x[chosen == index])
        return SimpleNamespace(logits=self.head(out))


def spread(size: int, parts: int = 1) -> list[list[int]]:
    """Cut the rows into shares of processes, each into parts."""
    cuts = [ROWS * i // (size * parts) for i in range(size * parts + 1)]
    return [cuts[i * parts : (i + 1) * parts + 1] for i in range(size)]


def train_share(names: list[str], parts: int, group: Group) -> dict[str, Any]:
    return {n: Rows().train(n, group, spread(group.size, parts)[group.rank]) for n in names}


def _child(
    rank: int, size: int, folder: str, work: Callable[..., Any], arguments: Any, timeout: float
) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": folder.rpartition("-")[2]}
    group = Processes(peer_timeout=timeout)
    torch.save(work(*arguments, group), f"{folder}/{rank}.pt")
    group.leave()


def on(size: int, work: Callable[..., Any], *arguments: Any, timeout: float = 120.0) -> list[Any]:
    """Do work(*arguments, group) on so many processes; return what each returned.

    They are forked: one that is spawned imports everything again, for seconds.
    """
    with tempfile.TemporaryDirectory(suffix=f"-{free_port()}") as folder:
        given = (size, folder, work, arguments, timeout)
        mp.start_processes(_child, given, nprocs=size, start_method="fork")  # pyright: ignore
        return [torch.load(f"{folder}/{rank}.pt") for rank in range(size)]


def free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def assert_close(found: dict[str, Any], wanted: dict[str, Any], name: str) -> float:
    """Compare trajectories; return the largest difference of a weight.

    The model is in float64; bases are float32, and products of theirs are added in another order.
    """
    tight = name in ("mezo", "mezo-q2-momentum", "lozo", "sgd", "adamw", "zo-act")
    near = {"rtol": 1e-7, "atol": 1e-8} if tight else {"rtol": 1e-4, "atol": 1e-4}
    for key in ("losses", "slopes", "weights"):
        torch.testing.assert_close(found[key], wanted[key], **near, msg=lambda m: f"{name}: {m}")
    apart = [(found["weights"][n] - w).abs().max() for n, w in wanted["weights"].items()]
    return max(apart).item()


@pytest.fixture(scope="module")
def alone():
    return {name: Rows().train(name, None, [0, ROWS]) for name in METHODS}


def test_experts_in_one_tensor_are_shared():
    alone = Rows(fused_experts()).train("agzo", None, [0, ROWS])
    for found in on(2, train_experts):
        torch.testing.assert_close(found["losses"], alone["losses"], rtol=1e-4, atol=1e-4)


def train_experts(group: Group) -> dict[str, Any]:
    return Rows(fused_experts()).train("agzo", group, spread(group.size)[group.rank])


def fused_experts() -> nn.Module:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape |= {"num_key_value_heads": 2, "head_dim": 8}
    experts = {"num_experts": 4, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(vocab_size=40, **shape, **experts)).eval()


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_follow_the_trajectory_of_one(alone, size):
    names = list(METHODS) if size == 2 else FOUR
    ranks = on(size, train_share, names, 1)
    for name in names:
        print(size, name, f"{assert_close(ranks[0][name], alone[name], name):.1e}",
              ranks[0][name]["sent"][-1])  # fmt: skip
        assert ranks[0][name]["forwards"] == alone[name]["forwards"]
        moved = alone[name]["losses"][0] - alone[name]["losses"][-1]
        assert moved.abs() > 1e-3
        for other in ranks[1:]:  # every replica has the same bits
            assert all(torch.equal(other[name]["weights"][n], w)
                       for n, w in ranks[0][name]["weights"].items())  # fmt: skip
            assert torch.equal(other[name]["slopes"], ranks[0][name]["slopes"])


def test_a_step_sends_what_it_is_said_to_send():
    ((first, _), (other, _)) = on(2, sizes_sent, 3, 2)
    assert first == other
    inputs = {16: 3 * 2, 24: 2}  # two decoder layers: q/k/v, o, gate/up have 16, down has 24
    products = sum(count * width * 3 * (1 + 2) * 4 for width, count in inputs.items())
    ranks = sum(inputs.values()) * 8  # 3 directions and 2 processes: are there as many tokens?
    assert first == products + 8 * (2 + 1) + ranks
    widths = 16 * 6 + 24 * 2  # for r = 1 that is O(sum of d_in), and nothing else
    assert on(2, sizes_sent, 1, 3)[0][0] == widths * 4 * (1 + 3) + 8 * (2 + 1)


def sizes_sent(rank: int, power_steps: int, group: Group) -> tuple[int, int]:
    rows = Rows()
    optimizer = AGZO(rows.model, 1e-3, 1e-3, rank=rank, power_steps=power_steps, group=group)
    optimizer.step([rows.piece(3 * group.rank, 3 + 4 * group.rank)])
    return group.reduced_bytes, group.rank


def test_drift_is_noticed_and_what_agrees_is_not():
    assert on(2, drift) == [True, True]


def drift(group: Group) -> bool:
    same = checksum([torch.ones(5), torch.full((2, 2), float("nan"))])
    group.check_same(same, "nothing")
    try:
        group.check_same(checksum([torch.ones(5) * (1 + 1e-7 * group.rank)]), "a weight")
    except Drifted as error:
        return "a weight differs" in str(error)
    return False


def test_process_0_tells_what_it_made_and_why_it_failed():
    assert on(2, told) == [["made", "ZeroDivisionError", True], ["made", "ProcessLost", True]]


def told(group: Group) -> list[Any]:
    made = group.first(lambda: {"x": [1.5, None, "made"]})
    try:
        group.first(lambda: 1 // 0)
    except (ZeroDivisionError, ProcessLost) as error:
        kind = type(error).__name__ if "division" in str(error) else str(error)
    else:
        kind = "none"
    try:
        group.first(interrupt)
    except KeyboardInterrupt:
        return [made["x"][2], kind, not group.any(False) and group.any(group.rank == 1)]
    return []


@pytest.mark.slow
def test_who_says_that_he_is_busy_may_take_longer_than_the_time_out():
    assert on(2, slow_but_busy, timeout=1.0) == ["made", "made"]


def slow_but_busy(group: Group) -> str:
    def make() -> str:
        for _ in range(15):
            time.sleep(0.1)
            group.still_busy()
        return "made"

    return group.first(make)


def interrupt() -> None:
    raise KeyboardInterrupt


def beside_others(group: Group) -> list[str]:
    """Steps of an optimizer that was given no group, the processes' own, or none on purpose."""
    said = []
    for method in (MeZO, AGZO, SGD):
        torch.manual_seed(group.rank)
        model, x = nn.Linear(4, 2), torch.randn(5, 4)
        given = {"lr": 1e-2} if method is SGD else {"lr": 1e-2, "eps": 1e-3}
        closure = lambda model=model, x=x: model(x).square().mean()  # noqa: E731
        try:
            method(model, **given).step(closure)
        except ValueError as error:
            said.append(str(error))
        method(model, **given, group=ALONE).step(closure)
    torch.manual_seed(0)
    model, guest = nn.Linear(4, 2), Processes()
    optimizer = MeZO(model, 1e-2, 1e-3, group=guest)
    for _ in range(3):
        optimizer.step([Piece(lambda: model(x).square().mean(), weight=len(x))])
    guest.check_same(checksum(model.parameters()), "the weights")
    guest.leave()
    assert torch.distributed.is_initialized()
    return said


def test_beside_other_processes_an_optimizer_must_be_told_what_they_are_to_it():
    for said in on(2, beside_others):
        assert len(said) == 3
        assert all(text.startswith("group=None: torch.distributed runs 2 proc") for text in said)


def test_what_cannot_be_shared_is_refused():
    rows, group = Rows(), Group()
    group.size = 2
    with pytest.raises(ValueError, match=r"basis='exact'.*2 processes"):
        AGZO(rows.model, 1e-3, 1e-3, group=group, basis="exact")
    with pytest.raises(ValueError, match=r"experts\.[01]\.weight: .* expert .* 2 processes"):
        Rows(Experts()).train("agzo", group, [0, ROWS])
    with pytest.raises(ValueError, match="2 process"):
        MeZO(rows.model, 1e-3, 1e-3, group=group).step(rows.piece(0, 7).closure)
