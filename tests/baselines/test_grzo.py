"""GRZO and estimator="per_piece": each micro-batch is measured alone along its own direction."""

import math

import pytest
import torch

from agzo import AGZO
from agzo.distributed.group import Group
from agzo.distributed.pieces import Piece
from agzo.rng import Noise
from baselines import GRZO, MeZO
from baselines.grzo import Flips
from tests.networks import mlp, weights

CPU = torch.device("cpu")


class Linear:
    """Examples x_i with losses <x_i, w>: a slope is exactly <x_i, Delta_i>."""

    def __init__(self, count=4):
        torch.manual_seed(0)
        self.model = torch.nn.Linear(5, 3, bias=False).double().eval()
        self.x = torch.randn(count, 5, dtype=torch.float64)

    def pieces(self, weight=lambda i: 1.0):
        each = enumerate(self.x)
        return [Piece(lambda x=x: self.model(x).sum(), weight=weight(i)) for i, x in each]


def test_each_slope_is_of_its_own_example_along_its_own_direction():
    case = Linear()
    optimizer = GRZO(case.model, 1e-3, 1e-3, accumulation=4, update="sgd")
    measured = optimizer.estimate(case.pieces())
    deltas = [directions[case.model.weight].dense() for directions, _ in measured.queries]
    for x, delta, (_, slope) in zip(case.x, deltas, measured.queries, strict=True):
        assert slope.item() == pytest.approx((delta.double() @ x).sum().item(), rel=1e-6)
    ratio = torch.stack(deltas) / deltas[0]  # one U: they differ by the signs of a row and a column
    assert ratio.abs().allclose(torch.ones(()))
    for each in ratio:
        assert torch.linalg.matrix_rank(each) == 1
    assert len({tuple(each.sign().flatten().tolist()) for each in ratio}) == 4


@pytest.mark.parametrize(("failing", "counted"), [(0, 1), (3, 2)])
def test_a_step_that_fails_counts_no_more_than_a_pass_of_all_pieces(failing, counted):
    case = Linear()
    optimizer = GRZO(case.model, 1e-3, 1e-3, accumulation=4, update="sgd")
    optimizer.step(case.pieces())  # the first step has checks of its own
    before = optimizer.forwards
    pieces = case.pieces()
    pieces[failing] = Piece(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        optimizer.step(pieces)
    assert optimizer.forwards - before == counted


def test_the_flips_leave_mean_and_covariance_of_gaussian_noise():
    shape, draws = torch.Size([2, 3]), 4000
    sampler = Flips()
    model = torch.nn.Linear(3, 2, bias=False)
    (tuned,) = MeZO(model, 1e-3, 1e-3).tuned
    drawn = torch.stack(
        [sampler.sample(tuned, Noise(0, step, query)).dense().view(-1)
         for step in range(draws // 2) for query in (0, 1)]
    )  # fmt: skip
    error = 6 / math.sqrt(draws)
    assert drawn.shape[1] == shape.numel()
    torch.testing.assert_close(drawn.mean(0), torch.zeros(6), rtol=0, atol=error)
    torch.testing.assert_close(drawn.T.cov(), torch.eye(6), rtol=0, atol=2 * error)
    pairs = (drawn[0::2] * drawn[1::2]).mean(0)  # of two examples of a step
    torch.testing.assert_close(pairs, torch.zeros(6), rtol=0, atol=3 * error)


@pytest.mark.parametrize("kind", [GRZO, AGZO])
def test_the_step_is_the_mean_of_slopes_by_the_weights_of_the_pieces(kind):
    case = Linear()
    optimizer = kind(case.model, 1e-3, 1e-3, accumulation=4, update="sgd", estimator="per_piece")
    pieces = case.pieces(lambda i: i + 1.0)
    measured = optimizer.estimate(pieces)
    before = weights(case.model)["weight"]
    loss = optimizer.step(pieces)
    own = torch.stack([piece.closure() for piece in case.pieces()])
    del own  # of the moved weights
    share = torch.arange(1.0, 5.0, dtype=torch.float64) / 10
    wanted = before.clone()
    for x, w, (directions, _) in zip(case.x, share, measured.queries, strict=True):
        delta = directions[case.model.weight].dense().double()
        wanted -= 1e-3 * w * (delta @ x).sum() * delta
    torch.testing.assert_close(case.model.weight.detach(), wanted, rtol=1e-6, atol=1e-9)
    mean = (share * (case.x @ before.T).sum(1)).sum()
    assert loss.item() == pytest.approx(mean.item(), rel=1e-6)
    assert optimizer.forwards_per_step == (2 if kind is GRZO else 3)  # AGZO's bases need f(W)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (GRZO, {"queries": 2}, "queries=2: with estimator='per_piece' allowed is 1"),
        (MeZO, {"estimator": "per_piece"}, "estimator='per_piece': allowed are one_sided, two_s"),
        (GRZO, {"estimator": "two_sided"}, "queries=1: with update='spread' allowed are 2 or"),
    ],
)
def test_bad_settings_are_refused_by_name(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(mlp().model, 1e-3, 1e-3, **options)


def test_what_has_no_pieces_is_refused():
    net = mlp()
    with pytest.raises(ValueError, match="estimator='per_piece': the batch is in 1 piece"):
        GRZO(net.model, 1e-3, 1e-3).step(net.closure)

    class Two(Group):
        size = 2

    with pytest.raises(ValueError, match="per_piece': with 2 processes allowed are one_sided"):
        GRZO(net.model, 1e-3, 1e-3, group=Two())
