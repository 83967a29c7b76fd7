"""AGZO's switches beyond the paper: which bases a step uses, and what a direction is made of."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agzo import AGZO
from agzo.activations import ActivationCapture
from agzo.alignment import beta, expected_cosine
from agzo.direction import Direction, Mixed
from agzo.refresh import Refresh
from agzo.rng import Noise
from agzo.sampler import ActivationSubspace
from agzo.select import Tuned
from agzo.subspace import leading, subspace_extract
from baselines import MeZO
from tests.networks import mlp, qwen3, weights

D_OUT, D_IN, SAMPLES = 6, 8, 2000
LAYER = "model.layers.0.mlp.up_proj.weight"

# --- when bases are taken and used


@pytest.mark.parametrize(
    ("every", "lagged", "source"),
    [
        (1, False, [0, 1, 2, 3, 4, 5, 6]),
        (3, False, [0, 0, 0, 3, 3, 3, 6]),
        (None, False, [0, 0, 0, 0, 0, 0, 0]),
        (1, True, [0, 0, 1, 2, 3, 4, 5]),
        (3, True, [0, 0, 0, 2, 2, 2, 5]),
    ],
)
def test_schedule(every, lagged, source):
    refresh = Refresh(every, lagged)
    steps = range(len(source))
    assert [refresh.source(step) for step in steps] == source
    assert [refresh.own(step) for step in steps] == [source[step] == step for step in steps]
    far = range(40)
    taken = {refresh.source(step) for step in far}
    assert all(refresh.takes(step) for step in taken)
    assert {step for step in far if refresh.takes(step)} - taken <= {39}  # for a step not looked at
    new = [step for step in far if step == 0 or refresh.source(step) != refresh.source(step - 1)]
    assert [step for step in far if refresh.new(step)] == new


class Batches:
    """A model and other batches at each step, with the bases that each batch gives by itself."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
        self.x = [torch.randn(20, 6) for _ in range(8)]

    def closure(self, step: int):
        return lambda: self.model(self.x[step]).square().mean()

    def leading(self, step: int) -> Tensor:
        return leading(self.x[step], 2)


@pytest.mark.parametrize("estimator", ["one_sided", "two_sided"])
@pytest.mark.parametrize(
    ("every", "lagged", "forwards"),  # of a two-sided step, from the first on
    [
        (1, False, [3, 3, 3, 3, 3, 3, 3]),
        (1, True, [3, 2, 2, 2, 2, 2, 2]),
        (3, True, [3, 2, 2, 2, 2, 2, 2]),
        (None, False, [3, 2, 2, 2, 2, 2, 2]),
    ],
)
def test_a_step_uses_the_bases_of_the_batch_it_should(every, lagged, forwards, estimator):
    """The first layer's input is the batch itself, so its bases do not depend on the weights."""
    batches = Batches()
    options = {"rank": 2, "basis": "exact", "refresh_every": every, "lagged": lagged}
    optimizer = AGZO(batches.model, 1e-3, 1e-3, estimator=estimator, **options)
    before = 2  # the one-off check
    for step in range(7):
        optimizer.step(batches.closure(step))
        used = optimizer._subspace.bases["0.weight"]
        torch.testing.assert_close(used, batches.leading(Refresh(every, lagged).source(step)))
        wanted = forwards[step] if estimator == "two_sided" else 2
        assert optimizer.forwards - before == wanted == optimizer.forwards_of_step(step)
        before = optimizer.forwards


@pytest.mark.parametrize("execution", ["side_branch", "in_place"])
def test_two_sided_lagged_bases_are_those_at_the_first_evaluation(execution):
    """Taken at W + eps Delta: with a tiny eps those of a forward at W, with a large one not."""
    for eps, alike in ((1e-7, True), (1.0, False)):
        net = qwen3()
        optimizer = AGZO(
            net.model, 0.0, eps, estimator="two_sided", lagged=True, execution=execution
        )
        for _ in range(3):
            optimizer.step(net.closure, net.token_mask)
        linear = [each for each in optimizer.tuned if each.role == "linear"]
        at_weights = ActivationCapture(linear, 1, 3, Noise(0, 1), net.token_mask)
        with torch.no_grad(), at_weights:
            net.closure()
        found = optimizer._subspace.bases  # of step 2, taken at step 1
        close = [
            torch.allclose(found[n], basis, atol=1e-4) for n, basis in at_weights.bases.items()
        ]
        assert all(close) == alike
    assert len(close) == len(found)


def test_looking_ahead_of_a_step_changes_nothing_of_a_lagged_run():
    ends = []
    for look in (False, True):
        batches = Batches()
        optimizer = AGZO(batches.model, 1e-2, 1e-3, lagged=True)
        for step in range(4):
            if look:
                optimizer.estimate(batches.closure(step))
            optimizer.step(batches.closure(step))
        ends.append(weights(batches.model))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)


@pytest.mark.parametrize("options", [{"lagged": True}, {"refresh_every": None}])
def test_an_optimizer_without_bases_can_look_at_any_step(options):
    net = mlp()
    optimizer = AGZO(net.model, 1e-3, 1e-3, estimator="two_sided", **options)
    optimizer.estimate(net.closure, step=17)
    assert optimizer._subspace.bases.keys() == {"0.weight", "3.weight"}


# --- exact leading directions


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [12, 200])
@pytest.mark.parametrize("masked", [False, True])
def test_exact_directions_are_the_singular_vectors(tokens, dtype, masked, monkeypatch):
    monkeypatch.setattr("agzo.subspace.COPY", 1000)  # so that the larger input comes in parts
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, 40, generator=generator) * 0.8 ** torch.arange(40)
    x = (x + 30.0).to(dtype)  # one direction far ahead of the others, as in a language model
    keep = torch.arange(tokens) % 3 != 0 if masked else None
    real = x if keep is None else x[keep]
    wanted = torch.linalg.svd(real.double(), full_matrices=False).Vh[:4].T
    found = leading(x, 4, keep)
    assert found.dtype == torch.float32
    cosines = (found.double() * wanted).sum(0).abs()
    torch.testing.assert_close(cosines, torch.ones_like(cosines), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.T @ found, torch.eye(4), atol=1e-5, rtol=0)


def test_power_iteration_approaches_the_exact_directions():
    x = torch.randn(100, 20, generator=torch.Generator().manual_seed(0))
    omega = torch.randn(100, 2, generator=torch.Generator().manual_seed(1))
    exact = leading(x, 2)
    held = [(exact.T @ subspace_extract(x, omega, k)).norm() for k in (0, 3, 300)]
    assert held[0] < held[1] < held[2]
    assert held[2] == pytest.approx(2**0.5, abs=1e-4)


def test_exact_directions_of_fewer_independent_tokens_are_orthonormal():
    x = torch.ones(6, 10)
    x[0] = 2.0
    torch.testing.assert_close(leading(x, 3).T @ leading(x, 3), torch.eye(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("lagged", [False, True])
@pytest.mark.parametrize("estimator", ["one_sided", "two_sided"])
def test_exact_bases_of_a_broken_batch_freeze_the_weights(bad, lagged, estimator):
    batches = Batches()
    options = {"basis": "exact", "lagged": lagged, "estimator": estimator}
    optimizer = AGZO(batches.model, 1e-3, 1e-3, **options)
    optimizer.step(batches.closure(0))
    before = weights(batches.model)
    batches.x[1][3, 2] = bad
    for step in (1, 2, 3):
        optimizer.step(batches.closure(step))
        assert not optimizer.finite
        assert all(p.equal(before[n]) for n, p in batches.model.named_parameters())


# --- scale and isotropic share


def tuned() -> Tuned:
    return Tuned("w", nn.Parameter(torch.zeros(D_OUT, D_IN)), "linear")


def sampler(rank: int, scale: str, isotropic: float) -> ActivationSubspace:
    made = ActivationSubspace([tuned()], rank, 3, 1, False, scale, isotropic)
    basis = torch.randn(D_IN, rank, generator=torch.Generator().manual_seed(0))
    made.bases = {"w": torch.linalg.qr(basis).Q}
    return made


def drawn(made: ActivationSubspace) -> list[Direction]:
    return [made.sample(tuned(), Noise(0, step)) for step in range(SAMPLES)]


def gradient() -> Tensor:
    return torch.randn(D_OUT, D_IN, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("isotropic", [0.0, 0.3])
@pytest.mark.parametrize("scale", ["paper", "mezo"])
def test_scale_sets_the_length_and_isotropic_is_a_share_of_it(rank, scale, isotropic):
    """E|Delta|^2 and the mean of <G, Delta> Delta, as the sampler's text states them."""
    made = sampler(rank, scale, isotropic)
    directions, g = drawn(made), gradient()
    squared_scale = D_IN / rank if scale == "mezo" else 1.0
    squares = torch.stack([each.norm() ** 2 for each in directions])
    wanted = squared_scale * D_OUT * rank
    assert abs(squares.mean() - wanted) < 5 * squares.std() / SAMPLES**0.5
    estimates = torch.stack([each.inner(g) * each.dense() for each in directions])
    basis = made.bases["w"]
    inside, outside = 1 - isotropic, isotropic * rank / D_IN
    mean = squared_scale * (inside * g @ basis @ basis.T + outside * g)
    error = estimates.std(0) / SAMPLES**0.5
    assert ((estimates.mean(0) - mean).abs() < 5 * error + 1e-5).all()


@pytest.mark.parametrize("scale", ["paper", "mezo"])
@pytest.mark.parametrize("rank", [1, 3])
def test_theorem_5_4_holds_at_any_scale(rank, scale):
    """E cos = beta_{mr} |G A| / |G|: a direction's length is not part of it."""
    made, g = sampler(rank, scale, 0.0), gradient()
    cosines = torch.stack([d.inner(g).abs() / (d.norm() * g.norm()) for d in drawn(made)])
    wanted = beta(D_OUT * rank) * (g @ made.bases["w"]).norm() / g.norm()
    assert abs(cosines.mean() - wanted) < 5 * cosines.std() / SAMPLES**0.5
    weight = nn.Parameter(torch.zeros(D_OUT, D_IN))
    found = expected_cosine({weight: made.sample(tuned(), Noise(0, 0))}, {weight: g})
    assert found == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("isotropic", [0.1, 0.5, 1.0])
def test_expected_cosine_of_a_mixed_direction(isotropic):
    made, g = sampler(2, "paper", isotropic), gradient()
    cosines = torch.stack([d.inner(g).abs() / (d.norm() * g.norm()) for d in drawn(made)])
    weight = nn.Parameter(torch.zeros(D_OUT, D_IN))
    found = expected_cosine({weight: made.sample(tuned(), Noise(0, 0))}, {weight: g})
    assert found == pytest.approx(cosines.mean().item(), rel=0.05)  # so few numbers: approximate


def test_all_noise_at_mezos_scale_is_mezo():
    ends = []
    for optimizer, options in ((AGZO, {"isotropic": 1.0, "scale": "mezo"}), (MeZO, {})):
        net = mlp()
        method = optimizer(net.model, 1e-2, 1e-3, estimator="one_sided", **options)
        for _ in range(4):
            method.step(net.closure)
        ends.append(weights(net.model))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-7)


def test_no_noise_and_the_papers_scale_change_nothing():
    made = sampler(2, "paper", 0.0)
    direction = made.sample(tuned(), Noise(0, 0))
    assert direction.right is made.bases["w"]
    mixed = sampler(2, "paper", 0.25).sample(tuned(), Noise(0, 0))
    assert isinstance(mixed, Mixed)
    parts = 0.75**0.5 * direction.dense() + (0.25 * 2 / D_IN) ** 0.5 * mixed.noise.dense()
    torch.testing.assert_close(mixed.dense(), parts)
    torch.testing.assert_close(mixed.norm(), parts.double().norm())
    torch.testing.assert_close(mixed.inner(parts), parts.square().sum())


def test_a_mixed_direction_comes_in_chunks(monkeypatch):
    whole = sampler(2, "mezo", 0.5).sample(tuned(), Noise(0, 0))
    monkeypatch.setattr("agzo.rng.CHUNK", 2 * D_IN)
    parts = sampler(2, "mezo", 0.5).sample(tuned(), Noise(0, 0))
    assert [(start, stop) for start, stop, _ in parts.rows()] == [(0, 2), (2, 4), (4, 6)]
    low, other = whole.low.dense(), parts.low.dense()
    torch.testing.assert_close(parts.dense() - other, parts.share * parts.noise.dense())
    assert F.cosine_similarity(low.flatten(), other.flatten(), dim=0) < 1 + 1e-6


# --- cheaper bases


def test_a_warm_start_comes_to_the_leading_directions_over_the_steps():
    """One iteration a step on one batch, each from the basis before, is the power iteration."""
    net = mlp()
    leading_ones = AGZO(net.model, 0.0, 1e-3, rank=2, basis="exact")
    leading_ones.step(net.closure, net.token_mask)
    optimizer = AGZO(net.model, 0.0, 1e-3, rank=2, power_steps=1, warm_start=True)
    overlaps = []
    for _ in range(30):
        optimizer.step(net.closure, net.token_mask)
        overlaps.append(
            min(
                torch.linalg.svdvals(exact.T @ optimizer._subspace.bases[name]).min().item()
                for name, exact in leading_ones._subspace.bases.items()
            )
        )
    assert overlaps[0] < overlaps[-1]
    assert overlaps[-1] > 0.999


def test_a_sampled_basis_is_that_of_the_chosen_tokens_and_never_of_padding(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "agzo.activations.leading", lambda x, *rest: seen.append(x.clone()) or leading(x, *rest)
    )
    linear = nn.Linear(D_IN, 3)
    x = torch.randn(4, 10, D_IN)
    mask = torch.arange(10).expand(4, 10) >= 4  # padded on the left
    x[~mask] = 1e6
    optimizer = AGZO(linear, 1e-3, 1e-3, rank=2, basis="exact", basis_tokens=7)
    for _ in range(3):
        optimizer.step(lambda: linear(x)[mask].square().mean(), mask)
    real = x[mask]
    for chosen in seen:
        assert chosen.shape == (7, D_IN)
        rows = [int((real == row).all(dim=1).nonzero()) for row in chosen]  # each is a real token
        assert len(set(rows)) == 7
    assert not seen[0].equal(seen[1])


def test_as_many_tokens_as_there_are_is_all_of_them():
    ends = []
    for tokens in (None, 10_000):
        net = mlp()
        optimizer = AGZO(net.model, 1e-2, 1e-3, basis_tokens=tokens)
        for _ in range(3):
            optimizer.step(net.closure, net.token_mask)
        ends.append(torch.cat([p.detach().flatten() for p in net.model.parameters()]))
    assert ends[0].equal(ends[1])


# --- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"isotropic": -0.1}, "isotropic=-0.1: allowed are finite numbers >= 0.0 and <= 1.0"),
        ({"isotropic": 1.1}, "isotropic=1.1: allowed are finite numbers >= 0.0 and <= 1.0"),
        ({"scale": "lozo"}, "scale='lozo': allowed are paper, mezo"),
        ({"basis": "svd"}, "basis='svd': allowed are power, exact"),
        (
            {"basis_tokens": 1, "rank": 2},
            r"basis_tokens=1: allowed are whole numbers >= 2, or None \(all tokens\)",
        ),
        ({"basis": "exact", "warm_start": True}, "warm_start=True: allowed is False with"),
        ({"refresh_every": 0}, r"refresh_every=0: .* numbers >= 1, or None \(one-shot\)"),
        ({"lagged": True, "refresh_every": None}, "lagged=True: allowed is False with one-shot"),
        ({"update": "adam", "isotropic": 0.5}, "update='adam': its state would take"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        AGZO(mlp().model, 1e-3, 1e-3, **options)


@pytest.mark.parametrize(
    "change",
    [
        {"basis": "exact"}, {"lagged": True}, {"scale": "mezo"}, {"isotropic": 0.1},
        {"warm_start": True}, {"basis_tokens": 3}, {"refresh_every": None},
        {"update": "momentum", "large_state": True},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_a_state_of_another_variant_is_refused(change):
    state = AGZO(mlp().model, 1e-3, 1e-3).state_dict()
    key = next(iter(change))
    with pytest.raises(ValueError, match=f"{key}=.*: allowed is .*, as when the loaded state"):
        AGZO(mlp().model, 1e-3, 1e-3, **change).load_state_dict(state)
