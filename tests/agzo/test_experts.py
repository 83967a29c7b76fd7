"""Experts that are linear layers of their own: a batch need not reach them all."""

import copy

import pytest
import torch
from torch import Tensor, nn

from agzo import AGZO
from agzo.tuned.reached import passed_by
from baselines import LOZO, LOZOM, MeZO, ZOAct
from tests.networks import weights


class MoE(nn.Module):
    """Two experts; a token goes to the one that the sign of its first number names."""

    def __init__(self, skips: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(6, 6)
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        self.outer = nn.Linear(6, 1)
        self.skips = skips  # an expert without tokens is not called, or called with no rows

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.inner(x))
        chosen = (x[:, 0] > 0).long()
        y = torch.zeros_like(h)
        for index, expert in enumerate(self.experts):
            mine = chosen == index
            if not self.skips or mine.any():
                y[mine] = expert(h[mine])
        return self.outer(h + y)


BOTH = torch.randn(12, 6, generator=torch.Generator().manual_seed(1))
FIRST = BOTH.clone()
FIRST[:, 0] = -FIRST[:, 0].abs()  # all tokens choose expert 0
MOVED = ["experts.1.weight", "experts.1.bias"]

every_kind = pytest.mark.parametrize("skips", [True, False], ids=["skipped", "no rows"])
METHODS = [
    pytest.param(AGZO, {}, id="agzo"),
    pytest.param(AGZO, {"rank": 3, "basis": "exact", "estimator": "two_sided"}, id="agzo-exact"),
    pytest.param(AGZO, {"warm_start": True, "execution": "in_place"}, id="agzo-in-place"),
    pytest.param(AGZO, {"refresh_every": 2, "queries": 2}, id="agzo-every-2"),
    pytest.param(AGZO, {"update": "momentum", "large_state": True}, id="agzo-momentum"),
    pytest.param(AGZO, {"update": "adam", "large_state": True}, id="agzo-adam"),
    pytest.param(MeZO, {}, id="mezo"),
    pytest.param(MeZO, {"execution": "in_place"}, id="mezo-in-place"),
    pytest.param(LOZO, {"rank": 1}, id="lozo"),
    pytest.param(LOZOM, {"rank": 1, "large_state": True}, id="lozo-m"),
]
every_method = pytest.mark.parametrize(("method", "options"), METHODS)


def loss_of(model: nn.Module, x: Tensor):
    return lambda: model(x).square().mean()


@every_method
@every_kind
def test_training_goes_on_whatever_a_batch_reaches(skips, method, options):
    model = MoE(skips)
    optimizer = method(model, lr=1e-3, eps=1e-3, **options)
    for x in (BOTH, FIRST, FIRST, BOTH, BOTH[:1], FIRST, BOTH, BOTH):
        optimizer.step(loss_of(model, x))
        assert optimizer.finite


@every_kind
@pytest.mark.parametrize("update", ["sgd", "momentum"])
def test_agzo_leaves_a_weight_without_tokens_where_it_is(skips, update):
    model = MoE(skips)
    optimizer = AGZO(model, lr=1e-2, eps=1e-3, update=update, momentum=0.0, large_state=True)
    optimizer.step(loss_of(model, BOTH))
    before = weights(model)
    optimizer.step(loss_of(model, FIRST))
    moved = {name for name, p in model.named_parameters() if not p.equal(before[name])}
    assert "experts.1.weight" not in moved
    assert {"experts.0.weight", "inner.weight", "outer.weight"} <= moved
    optimizer.step(loss_of(model, BOTH))
    assert not model.experts[1].weight.equal(before["experts.1.weight"])


@every_method
def test_what_the_first_batch_passes_by_waits_until_a_batch_reaches_it(method, options):
    model = MoE(skips=True)
    optimizer = method(model, lr=1e-3, eps=1e-3, **options)
    before = weights(model)
    for _ in range(3):
        optimizer.step(loss_of(model, FIRST))
    after = weights(model)
    assert all(after[name].equal(before[name]) == (name in MOVED) for name in before)
    assert optimizer.joined_late
    optimizer.step(loss_of(model, BOTH))  # it is reached, and takes part from the next step on
    for _ in range(2):
        optimizer.step(loss_of(model, BOTH))
    assert all(not p.equal(after[name]) for name, p in model.named_parameters())


@every_method
def test_a_resumed_run_waits_for_the_same_parameters(method, options):
    batches = [FIRST, FIRST, BOTH, FIRST, BOTH, BOTH]
    model, other = MoE(skips=True), MoE(skips=True)
    straight = method(model, lr=1e-3, eps=1e-3, **options)
    first = method(other, lr=1e-3, eps=1e-3, **options)
    for x in batches:
        straight.step(loss_of(model, x))
    for x in batches[:2]:
        first.step(loss_of(other, x))
    again = MoE(skips=True)
    again.load_state_dict(other.state_dict())
    second = method(again, lr=1e-3, eps=1e-3, **options)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for x in batches[2:]:
        second.step(loss_of(again, x))
    assert all(p.equal(q) for p, q in zip(model.parameters(), again.parameters(), strict=True))


def test_the_check_tells_an_expert_from_a_weight_that_nothing_uses():
    class Idle(MoE):
        def __init__(self) -> None:
            super().__init__(skips=True)
            self.idle = nn.Linear(6, 6)

    for method, options in ((MeZO, {}), (AGZO, {}), (LOZO, {"rank": 1})):
        model = Idle()
        optimizer = method(model, lr=1e-3, eps=1e-3, **options)
        with pytest.raises(ValueError, match=r"does not use 2 tuned .*: idle.weight, idle.bias in"):
            optimizer.step(loss_of(model, FIRST))


def test_an_expert_is_told_by_the_others_of_its_list():
    model = nn.Module()
    model.layers = nn.ModuleList(MoE(True) for _ in range(2))
    model.odd = nn.ModuleList([nn.Linear(2, 2)])
    used = [n for n, _ in model.named_parameters() if "experts.1" not in n and "odd" not in n]
    unused = [n for n, _ in model.named_parameters() if n not in used]
    assert set(unused) - set(passed_by(model, unused, used)) == {"odd.0.weight", "odd.0.bias"}


def test_one_shot_bases_of_a_batch_that_misses_an_expert_are_refused():
    model = MoE(skips=False)
    optimizer = AGZO(model, lr=1e-3, eps=1e-3, refresh_every=None)
    with pytest.raises(ValueError, match=r"refresh_every=None: no token of the first batch .*s\.1"):
        optimizer.step(loss_of(model, FIRST))


def test_a_weight_that_another_call_uses_is_still_an_error_of_agzo():
    class Transposed(MoE):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x @ self.experts[0].weight.T)

    class Changing(MoE):
        multiplies = True

        def forward(self, x: Tensor) -> Tensor:
            inner = x @ self.inner.weight if self.multiplies else x * self.inner.weight.sum()
            return self.outer(inner + self.inner.bias)

    model = Transposed(skips=True)
    optimizer = AGZO(model, lr=1e-3, eps=1e-3)
    optimizer.step(loss_of(model, BOTH))
    optimizer.step(loss_of(model, FIRST))
    model = Changing(skips=True)
    optimizer = AGZO(model, lr=1e-3, eps=1e-3, params=lambda name, _: "experts" not in name)
    optimizer.step(loss_of(model, BOTH))
    model.multiplies = False
    with pytest.raises(ValueError, match=r"no basis for inner\.weight"):
        optimizer.step(loss_of(model, BOTH))


def test_zo_act_trains_what_its_calibration_has_seen():
    model = MoE(skips=True)
    optimizer = ZOAct(model, lr=1e-3, eps=1e-3, calibration_batches=1, large_state=True)
    optimizer.calibrate([(loss_of(model, BOTH), None)])
    for x in (FIRST, BOTH, FIRST):
        optimizer.step(loss_of(model, x))
    assert optimizer.finite


@every_method
def test_a_look_ends_no_waiting(method, options):
    model = MoE(skips=True)
    optimizer = method(model, lr=1e-3, eps=1e-3, **options)
    optimizer.step(loss_of(model, FIRST))
    before = weights(model)
    optimizer.estimate(loss_of(model, BOTH))
    for _ in range(2):
        optimizer.step(loss_of(model, FIRST))
    assert all(p.equal(before[name]) == (name in MOVED) for name, p in model.named_parameters())


@every_method
@pytest.mark.parametrize("how", ["raised", "staged"])
def test_a_step_that_is_not_taken_ends_no_waiting(method, options, how):
    model = MoE(skips=True)
    optimizer = method(model, lr=1e-3, eps=1e-3, **options)
    optimizer.step(loss_of(model, FIRST))
    before = weights(model)
    if how == "raised":
        evaluations = iter((loss_of(model, BOTH), lambda: 1 / 0))
        with pytest.raises(ZeroDivisionError):
            optimizer.step(lambda: next(evaluations)())
    else:
        optimizer.stage(loss_of(model, BOTH))
        optimizer.load_state_dict(optimizer.state_dict())
    for _ in range(2):
        optimizer.step(loss_of(model, FIRST))
    assert all(p.equal(before[name]) == (name in MOVED) for name, p in model.named_parameters())
