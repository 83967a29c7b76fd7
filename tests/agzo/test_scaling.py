"""update=spread and update=scalar: one factor for a step, for every method that there is."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agzo import AGZO, kernels
from agzo.directions.direction import Signs
from agzo.kernels import native, reference
from agzo.rng import Noise
from agzo.scaling import Scaling
from baselines import FZOO, LOZO, MeZO
from tests.networks import mlp, qwen3, weights

CPU = torch.device("cpu")
slopes = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9)


def factors(update, values, eps=1e-3, b2=0.9, state=None, step=0):
    given_ = {} if state is None else state
    return Scaling(update, eps, b2).factors(torch.tensor(values, dtype=torch.float64), given_, step)


@settings(deadline=None)
@given(slopes, st.floats(1e-3, 1e3))
def test_spread_is_that_of_the_losses_and_forgets_the_scale_of_the_loss(values, scale):
    g = torch.tensor(values, dtype=torch.float64)
    losses = 0.7 + 1e-3 * g
    if losses.std() < 1e-7:
        return
    torch.testing.assert_close(factors("spread", values), g / losses.std(), rtol=1e-4, atol=1e-9)
    scaled = factors("spread", [scale * each for each in values])
    torch.testing.assert_close(scaled, factors("spread", values), rtol=1e-9, atol=1e-9)


def test_slopes_that_are_all_equal_move_nothing():
    assert factors("spread", [0.5, 0.5, 0.5]).equal(torch.zeros(3, dtype=torch.float64))
    assert factors("spread", [0.0, 0.0]).equal(torch.zeros(2, dtype=torch.float64))
    assert factors("spread", [math.nan, 1.0]).isnan().all()  # what is not finite stays so


@pytest.mark.parametrize("values", [[2.0], [2.0, -1.0, 5.0]])
def test_scalar_is_adams_second_moment_of_one_number(values):
    """torch's Adam without momentum, fed the mean slope, moves one number as the mean factor."""
    number = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([number], lr=1.0, betas=(0.0, 0.9), eps=1e-8)
    state, moved = {}, 0.0
    for step in range(5):
        now = [each * (step + 1) * (-1) ** step for each in values]
        number.grad = torch.tensor([sum(now) / len(now)], dtype=torch.float64)
        adam.step()
        moved -= factors("scalar", now, state=state, step=step).mean().item()
    assert number.item() == pytest.approx(moved, rel=1e-12)


# --- signs


def test_signs_are_signs_of_their_own_address():
    shape = torch.Size([40, 50])
    drawn = {
        at: Signs(Noise(*at), name, shape, CPU).dense()
        for at, name in [((0, 0, 0), "a"), ((1, 0, 0), "a"), ((0, 1, 0), "a"), ((0, 0, 1), "a")]
    }
    other = Signs(Noise(0, 0), "b", shape, CPU).dense()
    for one in (*drawn.values(), other):
        assert one.abs().equal(torch.ones(shape))
        assert abs(one.mean().item()) < 5 / math.sqrt(one.numel())
    whole = [*drawn.values(), other, Noise(0, 0).tensor(shape, CPU, "a", "dense").sign()]
    for i, one in enumerate(whole):
        for before in whole[:i]:
            assert abs((one * before).mean().item()) < 5 / math.sqrt(one.numel())


def test_signs_do_not_depend_on_how_they_are_cut_or_made(monkeypatch):
    shape = torch.Size([30, 7])
    whole = Signs(Noise(3, 1), "w", shape, CPU)
    wanted = whole.dense()
    monkeypatch.setattr("agzo.rng.CHUNK", 3 * 7)
    assert len(list(whole.rows())) == 10
    assert whole.dense().equal(wanted)
    ids = torch.tensor([29, 0, 29])
    assert whole.take(ids).equal(wanted[ids])
    words = Noise(3, 1).key("w", "signs")
    sixteen = reference.sixteen_bits(words, 0, 14, CPU)
    bits = (sixteen[:, None] >> torch.arange(16)) & 1
    assert wanted.view(-1).equal(1.0 - 2.0 * bits.view(-1)[:210])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rounding", [None, (1, 2)])
def test_signs_are_added_alike_with_and_without_the_compiled_kernel(dtype, rounding, monkeypatch):
    if rounding and dtype.itemsize > 2:
        pytest.skip("only half precision is rounded stochastically")
    weight = torch.randn(31, 79, generator=torch.Generator().manual_seed(1)).to(dtype)
    rows, key = torch.tensor([3, 0, 29, 3]), Noise(0, 0).key("w", "signs")
    found = []
    for library in (native.library, None):
        monkeypatch.setattr(native, "library", library)
        fill = partial(kernels.normal_, signs=True)
        moved = fill(weight.clone(), key, 1021, weight, 0.99, torch.tensor(0.01), rounding)
        some = kernels.normal_rows(key, rows, 79, weight, 0.01, signs=True)
        found.append([moved, some, kernels.normal_rows(key, rows, 79, signs=True)])
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        assert one.equal(other)


@pytest.mark.parametrize("kind", [MeZO, AGZO])
def test_noise_of_signs_is_a_stream_of_its_own_and_part_of_the_state(kind):
    net = mlp()
    one, other = (kind(net.model, 1e-3, 1e-3, noise=noise) for noise in ("gaussian", "rademacher"))
    assert one.stream_version != other.stream_version
    dense = next(e for e in other.tuned if e.parameter.dim() == 1)
    direction = other._sampler.sample(dense, Noise(0, 0))
    assert direction.dense().abs().equal(torch.ones(dense.parameter.shape))
    with pytest.raises(ValueError, match=r"^stream="):
        one.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="noise='uniform': allowed are gaussian, rademacher"):
        kind(net.model, 1e-3, 1e-3, noise="uniform")


def test_mean_of_probes_is_the_published_estimate_and_its_covariance_the_public_identity():
    """sum g_i u_i / N has mean grad f and covariance (|g|^2 I + g g^T - 2 diag(g^2)) / N."""
    d, n, draws = 5, 3, 40_000
    gradient = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0], dtype=torch.float64)
    u = Signs(Noise(0, 0), "w", torch.Size([draws * n, d]), CPU).dense().double()
    estimates = (u * (u @ gradient)[:, None]).view(draws, n, d).mean(1)
    square = gradient.square().sum()
    wanted = square * torch.eye(d, dtype=torch.float64) + torch.outer(gradient, gradient)
    wanted = (wanted - 2 * gradient.square().diag()) / n
    error = 6 * square.item() / math.sqrt(draws)
    torch.testing.assert_close(estimates.mean(0), gradient, rtol=0, atol=error)
    torch.testing.assert_close(estimates.T.cov(), wanted, rtol=0, atol=error)


# --- as an optimizer


def test_fzoo_moves_by_the_sum_of_g_u_over_n_sigma():
    net = mlp(torch.float64)
    optimizer = FZOO(net.model, lr=1e-5, eps=1e-3, queries=4)
    measured = optimizer.estimate(net.closure)
    before, losses = weights(net.model), measured.losses.double().view(-1)
    optimizer.step(net.closure)
    sigma = losses.std()
    for name, parameter in net.model.named_parameters():
        parts = [d[parameter].dense().double() * g for d, g in measured.queries]
        wanted = before[name] - 1e-5 * sum(parts) / (4 * sigma)
        torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-8, atol=1e-12)


def test_a_steps_length_is_lr_over_eps_and_not_the_gradients():
    """Halving the loss changes no weight; FZOO's Proposition 3.2 is behind it."""
    ends = []
    for factor in (1.0, 0.5):
        net = mlp(torch.float64)
        optimizer = FZOO(net.model, lr=1e-6, eps=1e-4)
        for _ in range(3):
            optimizer.step(lambda net=net, factor=factor: factor * net.closure())
        ends.append(weights(net.model))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", [AGZO, LOZO, MeZO])
@pytest.mark.parametrize("update", ["scalar", "spread", "centred"])
def test_every_method_has_them_and_they_hold_nothing_for_a_weight(kind, update):
    net = qwen3()
    queries = 1 if update == "scalar" else 3
    optimizer = kind(net.model, 1e-6, 1e-3, update=update, queries=queries)
    plain = kind(net.model, 1e-6, 1e-3)
    held = optimizer.summary().state_bytes - plain.summary().state_bytes
    assert held == (8 if update == "scalar" else 0)
    before = weights(net.model)
    optimizer.step(net.closure, net.token_mask)
    assert any(not before[name].equal(w) for name, w in weights(net.model).items())
    assert not any(optimizer.state.get(each) for each in net.model.parameters())


def test_activation_guided_fzoo_is_one_switch():
    """AGZO's directions, FZOO's step: sum g_i Delta_i / (N sigma) with Delta_i = R_i A^T."""
    net = mlp(torch.float64)
    optimizer = AGZO(net.model, 1e-6, 1e-3, queries=8, update="spread")
    assert optimizer.forwards_per_step == 9  # the bases are taken in the forward at W
    measured = optimizer.estimate(net.closure)
    before = weights(net.model)
    optimizer.step(net.closure)
    sigma = measured.losses.double().std()
    for name, parameter in net.model.named_parameters():
        parts = [d[parameter].dense().double() * g for d, g in measured.queries]
        wanted = before[name] - 1e-6 * sum(parts) / (8 * sigma)
        torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("update", ["scalar", "spread", "centred"])
def test_a_run_without_data_is_replayed_from_its_slopes(update):
    one, other = mlp(), mlp()
    options = {"lr": 1e-6, "eps": 1e-3, "queries": 3, "update": update}
    first, second = FZOO(one.model, **options), FZOO(other.model, **options)
    for _ in range(4):
        first.step(one.closure)
        assert first.projected_grad is not None
        second.replay(first.projected_grad)
    assert all(w.equal(weights(other.model)[name]) for name, w in weights(one.model).items())


def test_bad_settings_are_refused_by_name():
    net = mlp()
    with pytest.raises(ValueError, match="queries=1: with update='spread' allowed are 2 or more"):
        FZOO(net.model, 1e-6, 1e-3, queries=1)
    with pytest.raises(ValueError, match="allowed are sgd, momentum, adam, scalar, spread"):
        MeZO(net.model, 1e-6, 1e-3, update="scaled")
    with pytest.raises(ValueError, match=r"update='adam'.*allowed are sgd, scalar, spread"):
        MeZO(net.model, 1e-6, 1e-3, update="adam", embeddings="seen")
    assert FZOO(net.model, 1e-6, 1e-3)._sampler.dense is Signs


def test_a_replayed_slope_that_is_not_finite_moves_nothing():
    net = mlp()
    optimizer = MeZO(net.model, lr=1e-3, eps=1e-3)
    optimizer.step(net.closure)
    before = weights(net.model)
    optimizer.replay(torch.tensor([torch.nan]))
    assert not optimizer.finite
    assert all(p.equal(before[name]) for name, p in net.model.named_parameters())


def test_eps_stays_until_a_staged_step_is_taken():
    net = mlp()
    optimizer = MeZO(net.model, lr=1e-3, eps=1e-3, queries=2, update="spread")
    optimizer.stage(net.closure)
    optimizer.eps = 1e-2
    with pytest.raises(ValueError, match=r"eps=0.01: allowed is 0.001 until the step"):
        optimizer.step()
    optimizer.eps = 1e-3
    optimizer.step()
