"""embeddings="seen": a table's directions lie on the rows of the batch's tokens."""

import copy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agzo import AGZO, LowRank
from agzo.alignment import cosine, expected_cosine
from agzo.directions.direction import Dense
from agzo.directions.seen import Rows, SeenRows, SeenTokens
from agzo.distributed.group import Group
from agzo.distributed.pieces import Piece
from agzo.rng import Noise
from baselines import LOZO, SGD, MeZO
from tests.agzo.test_group import Rows as GroupRows
from tests.agzo.test_group import on
from tests.networks import NETWORKS, Network, llama, opt, qwen3, weights

METHODS = {
    "agzo": (AGZO, {}),
    "agzo-two-sided": (AGZO, {"estimator": "two_sided", "rank": 2, "refresh_every": 3}),
    "mezo": (MeZO, {}),
    "mezo-one-sided": (MeZO, {"estimator": "one_sided", "queries": 2}),
    "lozo": (LOZO, {"refresh_every": 3}),
}
TABLE = "model.embed_tokens.weight"
every_method = pytest.mark.parametrize("name", METHODS)


def make(name: str, model: nn.Module, lr: float = 1e-2, **options):
    kind, own = METHODS[name]
    return kind(model, lr=lr, eps=1e-3, embeddings="seen", **own, **options)


def real_tokens(net: Network, model: nn.Module) -> set[int]:
    """The ids that the network's batch has outside of padding."""
    found: list[torch.Tensor] = []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda _, a: found.append(a[0]))
    with torch.no_grad():
        net.closure()
    hook.remove()
    return set(found[0][net.token_mask].tolist())


@every_method
@pytest.mark.parametrize("execution", ["side_branch", "in_place", "batched"])
def test_other_rows_of_an_untied_table_never_change(name, execution):
    net = llama(tied=False)
    before = weights(net.model)[TABLE]
    optimizer = make(name, net.model, execution=execution)
    for _ in range(4):
        optimizer.step(net.closure, net.token_mask)
    moved = (weights(net.model)[TABLE] != before).any(dim=1).nonzero().view(-1).tolist()
    assert set(moved) == real_tokens(net, net.model)


def test_a_token_that_is_padding_alone_is_not_seen():
    net = llama(tied=False)
    tokens = SeenTokens([t for t in MeZO(net.model, 1e-3, 1e-3).tuned if t.role == "embedding"])
    for mask, everything in ((net.token_mask, False), (None, True)):
        tokens.begin(mask)
        with torch.no_grad():
            tokens.watch(net.closure)
        seen = set(tokens.rows(TABLE).ids.tolist())
        assert real_tokens(net, net.model) <= seen
        assert (seen == real_tokens(net, net.model)) != everything
    assert tokens.lookups == 1


@pytest.mark.parametrize("tied", [False, True])
@every_method
def test_finite_difference_is_gradient_times_direction(name, tied):
    net = qwen3(torch.float64, tied=tied)
    kind, own = METHODS[name]
    optimizer = kind(net.model, lr=0.0, eps=1e-8, embeddings="seen", **own)
    optimizer.step(net.closure, net.token_mask)
    found = optimizer.estimate(net.closure, net.token_mask)
    net.closure().backward()
    for directions, slope in found.queries:
        wanted = sum(directions[p].inner(p.grad) for p in directions)
        assert slope.item() == pytest.approx(wanted.item(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("estimator", ["one_sided", "two_sided"])
def test_agzos_directions_miss_nothing_of_a_tables_gradient_but_for_the_rank(tied, estimator):
    """With as many directions as label positions the table's gradient lies in S Z + R A^T."""
    net = qwen3(torch.float64, tied=tied)
    ids = torch.randint(4, 40, (3, 7), generator=torch.Generator().manual_seed(1))

    def closure():
        return net.model(ids, logits_to_keep=1, use_cache=False).logits.square().mean()

    optimizer = AGZO(net.model, 0.0, 1e-3, rank=3, embeddings="seen", estimator=estimator)
    optimizer.step(closure)
    (directions, _), *_ = optimizer.estimate(closure).queries
    closure().backward()
    table = next(t for t in optimizer.tuned if t.name == TABLE)
    direction = directions[table.parameter]
    assert isinstance(direction, SeenRows)
    assert (direction.head is not None) == tied
    rest = table.parameter.grad.clone()
    if direction.head is not None:
        basis = direction.head.right.double()
        # 3 label positions span the head's gradient; on the rows seen it may be anything
        rest -= rest @ basis @ basis.T
    outside = rest[direction.seen.member == 0]
    assert outside.abs().max() < 1e-6 * table.parameter.grad.abs().max()
    assert table.parameter.grad[direction.seen.member == 0].abs().max() > 0 or not tied


@every_method
def test_resume_is_bit_exact(name):
    straight, first, second = (qwen3() for _ in range(3))
    optimizer = make(name, straight.model)
    for _ in range(8):
        optimizer.step(straight.closure, straight.token_mask)
    begun, resumed = make(name, first.model), make(name, second.model, seed=9)
    for _ in range(4):
        begun.step(first.closure, first.token_mask)
    saved = copy.deepcopy((first.model.state_dict(), begun.state_dict()))
    second.model.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    for _ in range(4):
        resumed.step(second.closure, second.token_mask)
    for key, value in weights(straight.model).items():
        assert value.equal(weights(second.model)[key]), key


@every_method
@pytest.mark.parametrize("network", ["qwen3-tied", "llama-untied", "opt-tied"])
def test_side_branch_and_batched_equal_in_place(name, network):
    ends = []
    for execution in ("in_place", "side_branch", "batched"):
        net = NETWORKS[network](torch.float64)
        optimizer = make(name, net.model, lr=1e-3, execution=execution)
        losses = [optimizer.step(net.closure, net.token_mask) for _ in range(6)]
        flat = torch.cat([w.flatten() for w in weights(net.model).values()])
        ends.append((torch.stack(losses), flat))
    for other in ends[1:]:
        torch.testing.assert_close(other, ends[0], rtol=1e-6, atol=1e-8)


def table_directions() -> tuple[SeenRows, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    dense = Dense(Noise(0, 3), "table", torch.Size((12, 5)), torch.device("cpu"))
    low = LowRank(torch.randn(12, 2, generator=generator), torch.randn(5, 2, generator=generator))
    ids = torch.tensor([3, 7, 3, 0, 7])  # repeats, as on a GPU
    member = torch.zeros(12)
    member[[0, 3, 7]] = 1.0
    return SeenRows(dense, Rows(ids, member), low), torch.randn(12, 5, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("decay", [None, 0.9])
def test_fast_ways_equal_the_whole_direction(dtype, decay):
    direction, weight = table_directions()
    weight = weight.to(dtype)
    whole = direction.dense()
    exact = torch.promote_types(dtype, torch.float32)
    tight = (
        {"rtol": 1e-5, "atol": 1e-5} if dtype != torch.bfloat16 else {"rtol": 2e-2, "atol": 2e-2}
    )
    ids = torch.tensor([1, 3, 3, 11])
    torch.testing.assert_close(direction.take(ids), whole[ids])
    gathered = direction.gather(weight, ids, 0.5)
    torch.testing.assert_close(
        gathered, (weight[ids].to(exact) + 0.5 * whole[ids]).to(dtype), **tight
    )
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(1)).to(dtype)
    y = F.linear(x, weight)
    wanted = F.linear(x.to(exact), weight.to(exact) + 0.5 * whole.to(exact))
    direction.add_linear(y, x, 0.5)
    torch.testing.assert_close(y, wanted.to(dtype), rtol=tight["rtol"], atol=2 * tight["atol"])
    keep = None if decay is None else torch.tensor(decay)
    moved = weight.to(exact) * (decay or 1.0) + 0.25 * whole.to(exact)
    direction.add_to(weight, keep, torch.tensor(0.25), None)
    torch.testing.assert_close(weight, moved.to(dtype), **tight)


@pytest.mark.parametrize(
    ("kind", "tied"),
    [
        pytest.param(kind, tied, marks=pytest.mark.slow)
        for kind in (AGZO, MeZO, LOZO)
        for tied in (False, True)
    ],
)
def test_theorem_5_4_holds_for_what_is_left(kind, tied):
    """E cos = beta_D sqrt(kept / D), D the numbers drawn: within five standard errors."""
    net = qwen3(torch.float64, tied=tied)
    optimizer = kind(net.model, 0.0, 1e-3, embeddings="seen", estimator="one_sided")
    net.closure().backward()
    gradients = {t.parameter: t.parameter.grad for t in optimizer.tuned if t.name == TABLE}
    optimizer.step(net.closure, net.token_mask)
    found, expected = [], []
    for step in range(1, 400):
        (directions, _), *_ = optimizer.estimate(net.closure, net.token_mask, step).queries
        found.append(cosine(directions, gradients).abs())
        expected.append(expected_cosine(directions, gradients))
    wanted = sum(expected) / len(expected)
    cosines = torch.stack(found)
    # parts of unequal scale, and LOZO's V, are approximate
    slack = 0.05 * wanted if kind is LOZO else 0.02 * wanted
    assert abs(cosines.mean() - wanted) < 5 * cosines.std() / len(found) ** 0.5 + slack


CUTS = [0, 3, 5, 7]


def trained(name: str, cuts: list[int], group: Group | None) -> torch.Tensor:
    rows = GroupRows()
    share = list(pairwise(cuts))
    if group is not None:
        share = share[group.rank :: group.size]
    accumulation = {"accumulated_basis": "gram"} if METHODS[name][0] is AGZO else {}
    optimizer = make(name, rows.model, group=group, accumulation=len(share), **accumulation)
    for _ in range(4):
        optimizer.step([rows.piece(a, b) for a, b in share])
    return torch.cat([w.flatten() for w in weights(rows.model).values()])


@every_method
def test_micro_batches_share_the_rows(name):
    whole = trained(name, [0, 7], None)
    torch.testing.assert_close(trained(name, CUTS, None), whole, rtol=1e-4, atol=1e-6)


def growing(group: Group) -> torch.Tensor:
    """Train where one process's share looks up more often than its first one did."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 4), nn.Linear(4, 1)).eval()
    optimizer = MeZO(model, 1e-2, 1e-3, embeddings="seen", estimator="two_sided", group=group)

    def loss(*texts):
        ids = [torch.tensor([text]) for text in texts]
        return lambda: torch.stack([model(each).square().mean() for each in ids]).mean()

    shares = (([[1, 2]], [[3, 4]]), ([[5, 6], [7, 8]], [[9, 10]]), ([[11, 12]], [[13, 14]]))
    for share in shares:
        optimizer.step([Piece(loss(*share[group.rank]))])
    return torch.cat([w.flatten() for w in weights(model).values()])


def in_processes(group: Group) -> dict[str, torch.Tensor]:
    found = {name: trained(name, [0, 4, 7], group) for name in ("agzo", "mezo")}
    return found | {"growing": growing(group)}


def test_processes_share_the_rows():
    one, other = on(2, in_processes)
    assert one["growing"].equal(other["growing"])
    for found in (one, other):
        for name in ("agzo", "mezo"):
            wanted = trained(name, [0, 7], None)
            torch.testing.assert_close(found[name], wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["mezo", "lozo", "agzo-two-sided"])
def test_a_peek_is_no_forward_and_stops_at_the_last_lookup(name):
    net = qwen3()
    layers = 0

    def count(*_) -> None:
        nonlocal layers
        layers += 1

    net.model.model.layers[0].register_forward_pre_hook(count)
    optimizer = make(name, net.model)
    for _ in range(4):
        optimizer.step(net.closure, net.token_mask)
    assert layers == optimizer.forwards


@every_method
def test_an_estimate_before_the_first_step_is_that_of_the_step(name):
    net = llama(tied=False)
    optimizer = make(name, net.model)
    slopes = [g for _, g in optimizer.estimate(net.closure, net.token_mask).queries]
    optimizer.step(net.closure, net.token_mask)
    assert torch.equal(torch.stack(slopes), optimizer.projected_grad)


def test_a_closure_of_two_calls_is_seen_whole():
    """As preference losses have: the rows are those of both calls, also where a peek finds them."""
    net = llama(tied=False)
    generator = torch.Generator().manual_seed(2)
    chosen, rejected = (torch.randint(4, 40, (2, 5), generator=generator) for _ in range(2))

    def closure():
        return sum(net.model(ids).logits[:, -1].logsumexp(1).mean() for ids in (chosen, rejected))

    before = weights(net.model)[TABLE]
    optimizer = make("mezo", net.model)
    optimizer.step(closure)
    moved = (weights(net.model)[TABLE] != before).any(dim=1).nonzero().view(-1)
    assert set(moved.tolist()) == set(torch.cat([chosen, rejected]).flatten().tolist())


class Indexed(nn.Module):
    """A model that takes rows of its table without F.embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(10, 4), nn.Linear(4, 1)

    def forward(self, ids):
        return self.out(self.table.weight[ids])


def test_what_cannot_be_is_refused():
    torch.manual_seed(0)
    model, ids = Indexed().eval(), torch.tensor([1, 2])
    with pytest.raises(ValueError, match=r"embeddings='seen': table\.weight is used by"):
        make("agzo", model).step(lambda: model(ids).mean())
    message = "update='adam': with embeddings='seen' allowed are sgd, scalar, spread"
    with pytest.raises(ValueError, match=message):
        make("mezo", qwen3().model, update="adam")
    with pytest.raises(ValueError, match=r"embeddings='seen': allowed are tuned, frozen"):
        SGD(qwen3().model, 1e-3, embeddings="seen")
    optimizer = make("mezo", qwen3().model)
    with pytest.raises(RuntimeError, match="rows of each batch's tokens"):
        optimizer.replay(torch.ones(1))


def test_positions_of_opt_are_rows_too():
    net = opt()
    name = "model.decoder.embed_positions.weight"
    before = weights(net.model)[name]
    make("mezo", net.model).step(net.closure, net.token_mask)
    moved = (weights(net.model)[name] != before).any(dim=1)
    assert 0 < moved.sum() < len(moved)


def test_a_piece_without_tokens_of_a_table_leaves_it_alone():
    model = nn.ModuleDict({"table": nn.Embedding(5, 3), "out": nn.Linear(3, 1)}).eval()
    used = [torch.tensor([1])]

    def closure():
        rows = model["table"](used[0]) if len(used) else torch.zeros(1, 3)
        return model["out"](rows).mean()

    optimizer = make("mezo-one-sided", model)
    optimizer.step([Piece(closure)])
    used.clear()
    before = model["table"].weight.detach().clone()
    optimizer.step([Piece(closure)])
    assert model["table"].weight.equal(before)


@pytest.mark.parametrize("estimator", ["one_sided", "two_sided"])
@pytest.mark.parametrize("pieces", [1, 2])
def test_a_batch_may_look_up_more_often_than_the_first(estimator, pieces):
    """A closure that calls the model once for each option, of which a batch has more."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 4), nn.Linear(4, 1)).eval()

    def loss(*texts):
        ids = [torch.tensor([text]) for text in texts]
        return lambda: torch.stack([model(each).square().mean() for each in ids]).mean()

    def step(*batch):
        own = [Piece(closure) for closure in batch]
        optimizer.step(own if pieces > 1 else batch[0])

    optimizer = MeZO(model, 1e-1, 1e-3, embeddings="seen", estimator=estimator, accumulation=pieces)
    step(*[loss([1, 2])] * pieces)
    for batch in ([loss([1, 2], [3, 4], [5, 6])], [loss([7])], [loss([8], [9], [10], [11])]):
        batch = [loss([12]), *batch] if pieces > 1 else batch
        before = model[0].weight.detach().clone()
        step(*batch)
        wanted = {"1": [1, 2, 3, 4, 5, 6], "7": [7], "8": [8, 9, 10, 11]}
        moved = (model[0].weight - before).abs().sum(1).nonzero().flatten().tolist()
        first = str(min(each for each in moved if each != 12))
        assert moved == wanted[first] + ([12] if pieces > 1 else [])


@pytest.mark.parametrize("estimator", ["one_sided", "two_sided"])
def test_a_table_may_be_named_in_the_call(estimator):
    torch.manual_seed(0)
    table, ids = nn.Embedding(9, 4), torch.tensor([[2, 5]])
    optimizer = MeZO(table, 1e-1, 1e-3, embeddings="seen", estimator=estimator)
    before = table.weight.detach().clone()
    for _ in range(2):
        optimizer.step(lambda: F.embedding(ids, weight=table.weight).square().mean())
    assert (table.weight - before).abs().sum(1).nonzero().flatten().tolist() == [2, 5]
