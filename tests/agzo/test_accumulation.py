"""Micro-batches under one direction give the trajectory of the whole batch."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from agzo import AGZO
from agzo.distributed.group import Group
from agzo.distributed.pieces import Joint, Piece
from agzo.execution.stream import StreamedLayers
from baselines import MeZO
from tests.agzo.test_group import METHODS, ROWS, Rows, assert_close, on, spread, train_share

CUTS = [0, 3, 5, ROWS]  # three micro-batches of unequal size
SHARED = ["mezo", "lozo", "agzo-two-sided-r3", "agzo-warm", "sgd"]


@pytest.mark.parametrize("name", METHODS)
def test_micro_batches_follow_the_trajectory_of_the_whole_batch(name):
    whole = Rows().train(name, None, [0, ROWS])
    cut = Rows().train(name, None, CUTS)
    print(name, f"{assert_close(cut, whole, name):.1e}")
    assert cut["forwards"] == whole["forwards"]


def test_the_basis_of_the_first_micro_batch_is_that_of_it_alone():
    bases = []
    for pieces in (1, 3):
        rows = Rows()
        cuts = [rows.piece(a, b) for a, b in pairwise(CUTS)][:pieces]
        first = AGZO(rows.model, 1e-3, 1e-3, accumulation=pieces, accumulated_basis="first", rank=2)
        first.step(cuts)
        bases.append(first.state_dict()["state"]["zo"]["bases"])
    assert all(torch.equal(bases[0][name], bases[1][name]) for name in bases[0])


@pytest.mark.slow
def test_processes_with_micro_batches_follow_it_too():
    ranks = on(2, train_share, SHARED, 2)
    for name in SHARED:
        whole = Rows().train(name, None, [0, ROWS])
        print(name, f"{assert_close(ranks[0][name], whole, name):.1e}", spread(2, 2))


def narrow(cuts: list[int], group: Group | None) -> dict[str, torch.Tensor]:
    """Take a step of rank 4 on three tokens; return the bases."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)), torch.randn(3, 6)
    pieces = [
        Piece(lambda own=x[a:b]: model(own).mean(), weight=b - a, rows=a) for a, b in pairwise(cuts)
    ]
    optimizer = AGZO(model, 1e-3, 1e-3, rank=4, group=group, accumulation=len(pieces))
    optimizer.step(pieces)
    return optimizer.state_dict()["state"]["zo"]["bases"]


def narrow_share(group: Group) -> dict[str, torch.Tensor]:
    return narrow([0, 1] if group.rank == 0 else [1, 3], group)


def test_fewer_tokens_than_directions_cap_the_rank_over_all_pieces():
    whole = narrow([0, 3], None)
    for found in (narrow([0, 1, 2, 3], None), *on(2, narrow_share)):
        for name, basis in whole.items():
            assert basis.shape[1] == 3
            torch.testing.assert_close(found[name], basis, rtol=1e-3, atol=1e-4)


def test_a_joint_loss_is_the_weighted_mean():
    pieces = [Piece(lambda: torch.tensor(2.0), weight=3), Piece(lambda: torch.tensor(6.0))]
    assert Joint(pieces)().item() == 3.0


def test_what_cannot_be_is_refused():
    rows = Rows()
    with pytest.raises(ValueError, match="3 pieces: allowed are 1 to accumulation=2"):
        MeZO(rows.model, 1e-3, 1e-3, accumulation=2).step([rows.piece(0, 3)] * 3)
    with pytest.raises(ValueError, match="weight=0"):
        MeZO(rows.model, 1e-3, 1e-3).step([Piece(lambda: torch.ones(()), weight=0)])
    with pytest.raises(ValueError, match="accumulation=0"):
        MeZO(rows.model, 1e-3, 1e-3, accumulation=0)
    with pytest.raises(ValueError, match=r"basis='exact': with accumulated_basis='gram'"):
        AGZO(rows.model, 1e-3, 1e-3, accumulation=2, basis="exact")
    with pytest.raises(ValueError, match="streamed"):
        AGZO(rows.model, 1e-3, 1e-3, accumulation=2, stream=StreamedLayers(Rows().model, "cpu"))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("how", ["gram", "first"])
def test_a_micro_batch_without_a_mask_has_real_tokens_alone(order, how):
    torch.manual_seed(0)
    model, full, padded = nn.Linear(6, 3, bias=False), torch.randn(2, 4, 6), torch.randn(2, 4, 6)
    padded[:, :2] *= 100.0
    ones = torch.ones(2, 4, dtype=torch.bool)
    real = ones.clone()
    real[:, :2] = False
    bases = []
    for mask in (ones, None):
        pieces = [
            Piece(lambda: model(full).square().mean(), mask, rows=0),
            Piece(lambda: model(padded)[real].square().mean(), real, rows=2),
        ]
        optimizer = AGZO(model, 0.0, 1e-3, accumulation=2, accumulated_basis=how)
        optimizer.step([pieces[index] for index in order])
        bases.append(optimizer.state_dict()["state"]["zo"]["bases"]["weight"])
    torch.testing.assert_close(bases[0].abs(), bases[1].abs())
