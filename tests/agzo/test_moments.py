"""Momentum and Adam of what is drawn: equal to torch's where they can be, and turned rightly."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from agzo import AGZO, LowRank
from agzo.moments import KEPT, Moments, turned
from agzo.rng import Noise
from agzo.update import move
from baselines import LOZO, LOZOM, MeZO
from experiments.config.errors import BadInput
from experiments.methods import registry
from tests.networks import mlp, qwen3, weights

LR, EPS, ROWS, WIDTH = 1e-2, 1e-3, 6, 10
B1, B2 = 0.8, 0.95
TORCH = {
    "momentum": lambda params: torch.optim.SGD(params, lr=LR, momentum=B1, dampening=B1),
    "adam": lambda params: torch.optim.Adam(params, lr=LR, betas=(B1, B2), eps=1e-8),
}
FIXED = [  # methods whose right factors stay, if they have any
    (MeZO, {"large_state": True}),
    (LOZO, {"large_state": True, "refresh_every": 1000}),
    (AGZO, {"large_state": True, "refresh_every": None}),
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def orthonormal(seed: int, rank: int = 2) -> Tensor:
    return torch.linalg.qr(normal(WIDTH, rank, seed=seed)).Q


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize(("optimizer", "options"), FIXED)
@pytest.mark.parametrize("update", ["momentum", "adam"])
def test_moments_are_torchs_own_of_the_whole_estimates(update, optimizer, options, queries):
    """Fed g Delta, torch's optimizers move as ours do.

    Adam of a low-rank direction is not Adam of the product: there torch is fed g L, and the product
    with B is compared.
    """
    net = mlp(torch.float64)
    options = {**options, "update": update, "momentum": B1, "beta2": B2, "queries": queries}
    method = optimizer(net.model, lr=LR, eps=EPS, **options)
    start = weights(net.model)
    moved: dict[str, Tensor] = {}
    rights: dict[str, Tensor] = {}
    reference = None
    for step in range(6):
        method.step(net.closure)
        estimates = {}
        for query, g in enumerate(method.projected_grad):
            for each in method.tuned:
                drawn = method._sampler.sample(each, Noise(0, step, query))
                if isinstance(drawn, LowRank) and update == "adam":
                    estimate, rights[each.name] = drawn.left.double(), drawn.right.double()
                else:
                    estimate = drawn.dense().double()
                estimates[each.name] = estimates.get(each.name, 0) + g * estimate / queries
        if reference is None:
            moved = {n: torch.zeros_like(e, requires_grad=True) for n, e in estimates.items()}
            reference = TORCH[update](list(moved.values()))
        for name, estimate in estimates.items():
            moved[name].grad = estimate
        reference.step()
    for name, parameter in net.model.named_parameters():
        change = moved[name].detach()
        if name in rights:
            change = change @ rights[name].T
        found = parameter.detach() - start[name]
        torch.testing.assert_close(found, change, rtol=1e-4, atol=1e-6 * LR)


@pytest.mark.parametrize("optimizer", [AGZO, LOZO, MeZO])
def test_no_momentum_is_sgd(optimizer):
    ends = []
    for options in ({}, {"update": "momentum", "momentum": 0.0, "large_state": True}):
        net = mlp(torch.float64)
        method = optimizer(net.model, lr=LR, eps=EPS, queries=2, **options)
        for _ in range(4):
            method.step(net.closure)
        ends.append(weights(net.model))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-6, atol=1e-7)


def test_lozo_m_is_lozo_with_momentum():
    ends = []
    for optimizer, options in ((LOZOM, {}), (LOZO, {"update": "momentum"})):
        net = mlp()
        method = optimizer(net.model, LR, EPS, refresh_every=2, large_state=True, **options)
        for _ in range(5):
            method.step(net.closure)
        ends.append(weights(net.model))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)


# --- a new basis


def test_turned_momentum_is_the_closest_that_the_new_span_holds():
    mean, old, new = normal(ROWS, 2), normal(WIDTH, 2, seed=1), normal(WIDTH, 3, seed=2)
    whole = mean @ old.T
    best = torch.linalg.lstsq(new.double(), whole.T.double()).solution.T
    torch.testing.assert_close(turned(mean, old, new), best.float(), rtol=1e-5, atol=1e-5)


def test_turned_momentum_of_orthonormal_bases_needs_no_division():
    mean, old, new = normal(ROWS, 2), orthonormal(1), orthonormal(2)
    torch.testing.assert_close(turned(mean, old, new), mean @ old.T @ new, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(turned(mean, old, old), mean, rtol=1e-5, atol=1e-6)
    flipped = old * torch.tensor([1.0, -1.0])  # an eigenvector has no sign
    torch.testing.assert_close(turned(mean, old, flipped) @ flipped.T, mean @ old.T)


def test_turned_momentum_is_the_published_one_on_average():
    """LOZO-M: N V_old^T V_new / n. With Gaussian V both move by r/n N V_old^T on average."""
    mean, old, draws, rank = normal(ROWS, 2), normal(WIDTH, 2, seed=1), 20_000, 2
    whole = mean @ old.T
    ours, published = torch.zeros_like(whole), torch.zeros_like(whole)
    generator = torch.Generator().manual_seed(2)
    for _ in range(draws):
        new = torch.randn(WIDTH, rank, generator=generator)
        ours += turned(mean, old, new) @ new.T / draws
        published += whole @ new / WIDTH @ new.T / draws
    error = 5 * whole.norm() / math.sqrt(draws)
    assert (ours - whole * rank / WIDTH).norm() < error
    assert (published - whole * rank / WIDTH).norm() < error


def test_squares_of_coordinates_are_nearly_one_number_in_any_basis():
    """E (g L_ij)^2 = |G B|^2 + 2 (G B)_ij^2: why Adam keeps a row's mean square at a new basis."""
    projected = normal(ROWS, 2)  # G B
    left = normal(200_000, ROWS, 2, seed=1)
    g = (left * projected).sum(dim=(1, 2), keepdim=True)
    wanted = projected.square().sum() + 2 * projected.square()
    torch.testing.assert_close((g * left).square().mean(0), wanted, rtol=0.05, atol=0)


@pytest.mark.parametrize("update", ["momentum", "adam"])
def test_a_new_basis_turns_the_moments_once(update):
    moments, state, alive = Moments(update, B1, B2), {}, torch.tensor(True)
    old, new = orthonormal(1), orthonormal(2, rank=3)
    g = torch.tensor(0.5)

    def take(step: int, right: Tensor, refreshed: bool) -> LowRank:
        estimate = LowRank(normal(ROWS, right.shape[1], seed=step), right)
        return moments.direction([(estimate, g)], state, step, refreshed, alive)

    for step in range(3):
        take(step, old, refreshed=step == 0)
    before = {key: state[key].clone() for key in KEPT if key in state}
    direction = take(3, new, refreshed=True)  # of another rank too: few tokens can cap it
    drawn = g * normal(ROWS, 3, seed=3)
    mean = B1 * before["mean"] @ old.T @ new + (1 - B1) * drawn
    torch.testing.assert_close(state["mean"], mean)
    assert state["right"] is direction.right is new
    if update == "adam":
        rows = before["square"].mean(dim=1, keepdim=True)
        square = B2 * rows + (1 - B2) * drawn.square()
        torch.testing.assert_close(state["square"], square)
        mean = mean / (1 - B1**4) / ((square / (1 - B2**4)).sqrt() + 1e-8)
    torch.testing.assert_close(direction.left, mean)
    before = state["mean"].clone()
    take(4, new, refreshed=False)
    drawn = g * normal(ROWS, 3, seed=4)
    torch.testing.assert_close(state["mean"], B1 * before + (1 - B1) * drawn)


def test_the_rank_may_change_with_the_tokens_of_a_batch():
    net = qwen3()
    options = {"rank": 8, "update": "adam", "large_state": True}
    optimizer = AGZO(net.model, lr=1e-4, eps=EPS, **options)
    few = torch.zeros_like(net.token_mask)
    few[:, -1] = True  # three real tokens
    ranks = []
    for mask in (net.token_mask, few, net.token_mask):
        optimizer.step(net.closure, mask)
        weight = net.model.model.layers[0].mlp.up_proj.weight
        ranks.append(optimizer.state[weight]["square"].shape[1])
    assert ranks == [8, 3, 8]
    assert optimizer.finite


# --- state


@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "master"])
@pytest.mark.parametrize("update", ["momentum", "adam"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_resume_is_bit_exact_and_moments_stay_float32(dtype, update, rounding):
    options = {"refresh_every": 2, "update": update, "large_state": True}
    options |= {"lr": 1e-3, "eps": 1e-2, "rounding": rounding}
    straight, first = qwen3(dtype), qwen3(dtype)
    optimizer, before = AGZO(straight.model, **options), AGZO(first.model, **options)
    for net, method, steps in ((straight, optimizer, 7), (first, before, 4)):
        for _ in range(steps):
            method.step(net.closure, net.token_mask)
    saved = copy.deepcopy((first.model.state_dict(), before.state_dict()))
    second = qwen3(dtype)
    second.model.load_state_dict(saved[0])
    after = AGZO(second.model, **options)
    after.load_state_dict(saved[1])
    for mine in first.model.parameters():  # what goes on in the one must not reach the other
        before.state[mine]["mean"].fill_(1e6)
    for _ in range(3):
        after.step(second.closure, second.token_mask)
    for (name, mine), theirs in zip(
        second.model.named_parameters(), straight.model.parameters(), strict=True
    ):
        assert mine.equal(theirs), name
        for key in KEPT:
            assert (key in after.state[mine]) == (key in optimizer.state[theirs])
            if key in after.state[mine]:
                assert after.state[mine][key].dtype == torch.float32
                assert after.state[mine][key].equal(optimizer.state[theirs][key])


def test_a_first_step_that_is_not_finite_leaves_no_trace_in_the_weights():
    for update in ("momentum", "adam"):
        for optimizer in (AGZO, LOZO, MeZO):
            net = mlp()
            before = weights(net.model)
            method = optimizer(net.model, LR, EPS, update=update, large_state=True)
            method.step(lambda net=net: net.closure() * float("nan"))
            assert all(p.equal(before[n]) for n, p in net.model.named_parameters())


@pytest.mark.parametrize("update", ["momentum", "adam"])
@pytest.mark.parametrize(("optimizer", "options"), [*FIXED, (LOZOM, {"large_state": True})])
def test_the_size_of_the_state_is_known_beforehand(optimizer, options, update):
    net = qwen3()
    method = optimizer(net.model, LR, EPS, **options, update=update)
    counted = [method._moments.size(*method._sampler.sizes(each)) for each in method.tuned]
    method.step(net.closure, net.token_mask)
    held = [
        sum(method.state[each.parameter][key].numel() for key in KEPT if key in state)
        for each in method.tuned
        for state in [method.state[each.parameter]]
    ]
    assert held == counted


def large() -> nn.Module:
    """A model whose moments are more than 64 MiB; its weights are never written."""
    table = torch.nn.utils.skip_init(nn.Embedding, 2**17, 130)
    return nn.Sequential(table, torch.nn.utils.skip_init(nn.Linear, 130, 2**17)).eval()


def test_state_as_large_as_the_model_is_refused_with_its_memory():
    model, values = large(), 2 * 130 * 2**17 + 2**17
    for update, size in (("momentum", values), ("adam", 2 * values)):
        wanted = (
            rf"update='{update}': its state would take {size * 4 / 2**30:.3g} GiB in float32, "
            rf"for a model of {values:,} values \(.* of it for 0.weight alone\); allowed are up to "
            r"0\.0625 GiB \(low-rank directions, embeddings='frozen', fewer "
            r"params\), update='sgd', or large_state=True"
        )
        with pytest.raises(ValueError, match=wanted):
            MeZO(model, LR, EPS, update=update)
    MeZO(model, LR, EPS, update="adam", large_state=True)
    with pytest.raises(ValueError, match=r"for 0\.weight alone"):  # the table is dense to AGZO
        AGZO(model, LR, EPS, update="momentum")
    AGZO(model, LR, EPS, update="momentum", embeddings="frozen")
    LOZOM(model, LR, EPS)


def test_a_run_learns_of_the_memory_when_its_model_is_there():
    values = registry.settings({"name": "mezo", "lr": LR, "eps": EPS, "update": "adam"}, "nearest")
    with pytest.raises(BadInput, match=r"method\.update='adam': .* GiB .*large_state=True"):
        registry.build("mezo", large(), values, seed=0)
    registry.build("mezo", mlp().model, values, seed=0)  # 64 MiB are small, whatever the model is


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"update": "rmsprop"}, "update='rmsprop': allowed are sgd, momentum, adam"),
        ({"momentum": 1.0}, "momentum=1.0: allowed are finite numbers >= 0.0 and < 1.0"),
        ({"beta2": -0.1}, "beta2=-0.1: allowed are finite numbers >= 0.0 and < 1.0"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        LOZO(mlp().model, LR, EPS, **options)


# --- rounding


@pytest.mark.parametrize("low_rank", [True, False])
def test_stochastic_rounding_keeps_the_mean_of_small_momentum_steps(low_rank):
    """300 steps, each a twentieth of a bfloat16 spacing: nearest loses all of it."""
    change = {}
    for rounding in ("nearest", "stochastic", "exact"):
        dtype = torch.float32 if rounding == "exact" else torch.bfloat16
        weight = torch.full((64, 32), 1.5, dtype=dtype)
        moments, state = Moments("momentum", 0.9, B2), {}
        right = torch.ones(32, 1)
        for step in range(300):
            left = 1.0 + 0.1 * normal(64, 1, seed=step)
            whole = LowRank(left, right)
            estimate = whole if low_rank else Fixed(whole.dense())
            direction = moments.direction(
                [(estimate, torch.tensor(1.0))], state, step, step == 0, torch.tensor(True)
            )
            c = torch.tensor(2.0**-7 / 20)
            move(weight, [(direction, c)], None, rounding, None, Noise(0, step), "w")
        change[rounding] = weight.double().mean().item() - 1.5
    assert change["nearest"] == 0.0
    assert change["stochastic"] == pytest.approx(change["exact"], rel=0.02)


class Fixed:
    """A dense direction of given values."""

    def __init__(self, values: Tensor) -> None:
        self.values, self.shape = values, values.shape

    def rows(self):
        yield 0, self.shape[0], self.values.clone()


@pytest.mark.parametrize("optimizer", [LOZOM, AGZO])
def test_what_was_absent_when_the_basis_changed_is_turned_later(optimizer):
    net = mlp()
    weight = net.model[0].weight
    options = {"rank": 3, "refresh_every": 3, "momentum": 0.9999, "large_state": True}
    options |= {"update": "momentum"} if optimizer is AGZO else {}
    method = optimizer(net.model, lr=1e-6, eps=1e-3, **options)
    for _ in range(3):
        method.step(net.closure)
    state = method.state[weight]
    held, old = state["mean"] @ state["right"].T, state["right"]
    weight.requires_grad_(False)
    method.step(net.closure)  # takes new factors
    weight.requires_grad_(True)
    method.step(net.closure)
    right = state["right"]
    assert not right.equal(old)
    wanted = held @ right @ torch.linalg.pinv(right)  # the new estimate hardly counts
    now = state["mean"] @ right.T
    assert (now - wanted).norm() < 0.05 * wanted.norm()


def test_adam_counts_the_steps_of_a_parameter():
    net = mlp()
    weight = net.model[0].weight
    optimizer = MeZO(net.model, lr=1e-3, eps=1e-3, update="adam", large_state=True)
    weight.requires_grad_(False)
    for _ in range(50):
        optimizer.step(net.closure)
    weight.requires_grad_(True)
    before = weight.detach().clone()
    optimizer.step(net.closure)
    moved = (weight - before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-3), rtol=1e-3, atol=0)


def test_adam_of_what_was_absent_while_the_basis_stayed_is_kept_as_it_is():
    net = mlp()
    weight = net.model[0].weight
    options = {"refresh_every": None, "rank": 2, "update": "adam", "large_state": True}
    optimizer = AGZO(net.model, lr=1e-6, eps=1e-3, beta2=0.9999, **options)
    for _ in range(3):
        optimizer.step(net.closure)
    square = optimizer.state[weight]["square"].clone()
    weight.requires_grad_(False)
    optimizer.step(net.closure)
    weight.requires_grad_(True)
    optimizer.step(net.closure)
    assert (optimizer.state[weight]["square"] >= 0.9998 * square).all()  # and not its rows' means
