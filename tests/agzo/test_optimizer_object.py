"""An optimizer is an object as torch's own are: saved, copied, changed between steps, misused."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from agzo import AGZO
from agzo.execution.stream import StreamedLayers
from baselines import LOZO, SGD, AdamW, MeZO, ZOAct, on_dominant_layer
from tests.methods import Method, every_method
from tests.networks import Network, mlp, stack, weights

LR, EPS = 1e-2, 1e-3
FIRST_ORDER = [pytest.param(SGD, id="sgd"), pytest.param(AdamW, id="adamw")]


def go(net: Network, optimizer: Any, steps: int) -> dict[str, Tensor]:
    for _ in range(steps):
        optimizer.step(net.closure, net.token_mask)
    return weights(net.model)


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert [name for name in one if not one[name].equal(other[name])] == []


def copied(net: Network, optimizer: Any, how: Callable[[Any], Any]) -> tuple[Network, Any]:
    model, optimizer = how((net.model, optimizer))
    fresh = copy.copy(net)
    object.__setattr__(fresh, "model", model)
    object.__setattr__(fresh, "closure", _closure_on(net.closure, net.model, model))
    return fresh, optimizer


def _closure_on(closure: Callable[[], Tensor], old: nn.Module, new: nn.Module):
    """The same closure on another model: its cells hold the old one."""
    cells = tuple(
        type(cell)(new) if cell.cell_contents is old else cell for cell in closure.__closure__ or ()
    )
    return type(closure)(
        closure.__code__, closure.__globals__, closure.__name__, closure.__defaults__, cells
    )


HOW = {"deepcopy": copy.deepcopy, "pickle": lambda value: pickle.loads(pickle.dumps(value))}


@every_method
@pytest.mark.parametrize("how", HOW)
def test_a_copy_of_model_and_optimizer_goes_on_as_they_do(method: Method, how):
    name = method.networks[-1]
    net = method.network(name)
    optimizer = method.make(net)
    torch.optim.lr_scheduler.StepLR(optimizer, 100)  # which wraps `step` of this very object
    go(net, optimizer, 2)
    other, twin = copied(net, optimizer, HOW[how])
    before = weights(net.model)
    moved = go(other, twin, 3)
    assert_equal(weights(net.model), before)  # the original stood still
    assert_equal(go(net, optimizer, 3), moved)
    assert twin.forwards == optimizer.forwards


@pytest.mark.parametrize("method", FIRST_ORDER)
def test_first_order_optimizers_are_copied_too(method):
    net = mlp()
    optimizer = method(net.model, lr=LR)
    go(net, optimizer, 2)
    other, twin = copied(net, optimizer, copy.deepcopy)
    assert_equal(go(other, twin, 2), go(net, optimizer, 2))


@every_method
def test_a_state_is_a_snapshot_that_later_steps_leave_as_it_is(method: Method):
    net = method.network(method.networks[-1], torch.bfloat16)
    optimizer = method.make(net, rounding="master")
    go(net, optimizer, 2)
    saved, model = optimizer.state_dict(), copy.deepcopy(net.model.state_dict())
    wanted = go(net, optimizer, 2)
    optimizer.step(lambda: net.closure() * float("nan"), net.token_mask)
    assert not optimizer.finite
    net.model.load_state_dict(model)
    optimizer.load_state_dict(saved)
    assert optimizer.finite
    assert_equal(go(net, optimizer, 2), wanted)
    assert optimizer.state_dict()["state"]["zo"]["step"] == 4


@every_method
def test_a_state_is_loaded_from_a_file_without_pickled_code(method: Method):
    net = method.network(method.networks[-1])
    optimizer = method.make(net)
    go(net, optimizer, 2)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    read = torch.load(file, weights_only=True)
    assert read["state"]["zo"]["step"] == 2
    other, twin = copied(net, optimizer, copy.deepcopy)
    go(other, twin, 1)
    other.model.load_state_dict(net.model.state_dict())
    twin.load_state_dict(read)
    assert_equal(go(other, twin, 2), go(net, optimizer, 2))


@every_method
def test_torchs_distributed_checkpoints_take_the_state_along(method: Method):
    net = method.network(method.networks[-1])
    optimizer = method.make(net)
    go(net, optimizer, 2)
    state = get_optimizer_state_dict(net.model, optimizer)
    names = dict(net.model.named_parameters()).keys()
    assert set(state["state"]) <= names
    state, model = copy.deepcopy((state, net.model.state_dict()))
    wanted = go(net, optimizer, 2)
    other, twin = copied(net, optimizer, copy.deepcopy)
    other.model.load_state_dict(model)
    set_optimizer_state_dict(other.model, twin, state)
    assert_equal(go(other, twin, 2), wanted)


@pytest.mark.parametrize("method", FIRST_ORDER)
def test_first_order_states_go_through_distributed_checkpoints_too(method):
    net = mlp()
    optimizer = method(net.model, lr=LR)
    go(net, optimizer, 2)
    other = copy.deepcopy(get_optimizer_state_dict(net.model, optimizer))
    go(net, optimizer, 1)
    set_optimizer_state_dict(net.model, optimizer, other)
    assert optimizer.state_dict()["state"]["zo"]["step"] == 2


def test_an_optimizer_of_streamed_layers_says_that_it_cannot_be_copied():
    model = stack().model
    optimizer = MeZO(model, LR, EPS, stream=StreamedLayers(model, "cpu"))
    with pytest.raises(TypeError, match="streamed layers cannot be copied or pickled"):
        copy.deepcopy(optimizer)


def test_a_copy_of_the_optimizer_alone_has_a_model_of_its_own():
    net = mlp()
    optimizer = MeZO(net.model, LR, EPS)
    twin = copy.deepcopy(optimizer)
    with pytest.raises(ValueError, match="does not use 6 tuned"):
        twin.step(net.closure)
    assert twin.model is not net.model


@pytest.mark.parametrize(
    ("method", "options", "key", "value"),
    [
        (MeZO, {}, "eps", 0.1),
        (AGZO, {"update": "momentum", "large_state": True}, "momentum", 0.5),
        (LOZO, {"rank": 1, "update": "adam", "large_state": True}, "beta2", 0.5),
    ],
    ids=["eps", "momentum", "beta2"],
)
def test_a_setting_changed_between_steps_acts_and_is_saved(method, options, key, value):
    ends = []
    for change in (False, True):
        net, other = mlp(), mlp()
        optimizer = method(net.model, LR, EPS, **options)
        go(net, optimizer, 2)
        if change:
            setattr(optimizer, key, value)
        go(net, optimizer, 1)
        state = copy.deepcopy(optimizer.state_dict())
        assert state["state"]["zo"]["settings"][key] == getattr(optimizer, key)
        twin = method(other.model, LR, EPS, **options)
        other.model.load_state_dict(net.model.state_dict())
        twin.load_state_dict(state)
        assert getattr(twin, key) == getattr(optimizer, key)
        ends.append(go(net, optimizer, 2))
        assert_equal(go(other, twin, 2), ends[-1])
        again = method(mlp().model, LR, EPS, **options)  # the change has come a second way
        again.load_state_dict(twin.state_dict())
        assert getattr(again, key) == getattr(optimizer, key)
        with pytest.raises(ValueError, match=f"{key}=.* as when the loaded state was made"):
            method(mlp().model, LR, **{"eps": EPS, **options, key: 0.25}).load_state_dict(state)
    assert not all(ends[0][name].equal(ends[1][name]) for name in ends[0])


@pytest.mark.parametrize("method", [*FIRST_ORDER, MeZO, AGZO, LOZO])
@pytest.mark.parametrize("execution", ["side_branch", "in_place"])
def test_a_parameter_that_is_frozen_between_steps_stays(method, execution):
    first_order = method in (SGD, AdamW)
    net = mlp()
    given = {} if first_order else {"eps": EPS, "execution": execution}
    given |= {"rank": 1} if method is LOZO else {}
    optimizer = method(net.model, lr=LR, weight_decay=0.1, **given)
    before = go(net, optimizer, 1)
    net.model[0].weight.requires_grad_(False)
    after = go(net, optimizer, 1)
    assert {n for n in before if before[n].equal(after[n])} == {"0.weight"}
    net.model[0].weight.requires_grad_(True)
    assert not go(net, optimizer, 1)["0.weight"].equal(after["0.weight"])
    net.model.requires_grad_(False)
    if not first_order:
        with pytest.raises(ValueError, match="no tuned parameter requires grad"):
            optimizer.step(net.closure)


@pytest.mark.parametrize("method", [MeZO, AGZO])
def test_a_parameter_that_was_replaced_is_an_error(method):
    net = mlp()
    optimizer = method(net.model, LR, EPS)
    go(net, optimizer, 1)
    net.model.load_state_dict(copy.deepcopy(net.model.state_dict()), assign=True)
    with pytest.raises(ValueError, match=r"^6 tuned parameter\(s\) are no longer .*: 0\.weight"):
        optimizer.step(net.closure)
    net = mlp()
    optimizer = method(net.model, LR, EPS)
    nn.utils.parametrizations.weight_norm(net.model[0])
    with pytest.raises(ValueError, match=r"^1 tuned parameter.*: 0\.weight"):
        optimizer.step(net.closure)


def test_a_parameter_may_move_inside_the_model():
    net = mlp()
    optimizer = MeZO(net.model, LR, EPS)
    net.model[0] = nn.Sequential(net.model[0])
    go(net, optimizer, 2)
    assert optimizer.finite


@pytest.mark.parametrize("method", [MeZO, AGZO, SGD])
def test_who_does_not_ask_learns_of_a_loss_that_is_not_finite_in_the_next_step(method):
    net = mlp()
    optimizer = method(net.model, lr=LR, **({} if method is SGD else {"eps": EPS}))
    before = go(net, optimizer, 2)
    assert optimizer.step(lambda: net.closure() * float("nan")).isnan()
    for _ in range(2):
        with pytest.raises(FloatingPointError, match=r"step 3, or of one before it, is not finite"):
            optimizer.step(net.closure)
    assert_equal(weights(net.model), before)
    twin = copy.deepcopy(optimizer)
    with pytest.raises(FloatingPointError):
        twin.step(net.closure)


# --- arguments

BAD = [
    (lambda m: MeZO(m.parameters(), LR, EPS), "model: a generator; allowed is the torch.nn.Module"),
    (lambda m: AGZO(list(m.parameters()), LR, EPS), "model: a list"),
    (lambda m: LOZO(m.named_parameters(), LR, EPS), "model: a generator"),
    (lambda m: ZOAct(m.parameters(), LR, EPS), "model: a generator"),
    (lambda m: on_dominant_layer(m.parameters(), LR, EPS), "model: a generator"),
    (lambda m: SGD([{"params": list(m.parameters())}], LR), "model: a list"),
    (lambda m: MeZO(m, "1e-3", EPS), "lr='1e-3': it is a str; allowed are finite numbers >= 0.0"),
    (lambda m: MeZO(m, LR, "1e-3"), "eps='1e-3': it is a str"),
    (lambda m: MeZO(m, True, EPS), "lr=True: it is a bool"),
    (lambda m: MeZO(m, LR, None), "eps=None: it is a NoneType"),
    (lambda m: MeZO(m, LR, EPS, seed="0"), "seed='0': allowed are whole numbers"),
    (lambda m: MeZO(m, LR, EPS, seed=1.5), "seed=1.5: allowed are whole numbers"),
    (lambda m: MeZO(m, LR, EPS, seed=None), "seed=None: allowed are whole numbers"),
    (lambda m: MeZO(m, LR, EPS, seed=True), "seed=True: allowed are whole numbers"),
    (lambda m: LOZO(m, LR, EPS, rank=np.float64(2)), r"rank=.*2\.0.*: allowed are whole numbers"),
    (lambda m: MeZO(m, LR, EPS, params=["0.weight"]), "params: '0.weight' is a str; allowed are"),
    (lambda m: MeZO(m, LR, EPS, params="0.weight"), "params: '0.weight' is a str; allowed are"),
    (lambda m: MeZO(m, LR, EPS).step(), "closure=None: a step evaluates the loss itself"),
    (lambda m: AGZO(m, LR, EPS).step(None), "closure=None"),
    (lambda m: SGD(m, LR).step(), "closure=None"),
    (lambda m: MeZO(m, LR, EPS).step(torch.ones(())), "closure: a Tensor; allowed is a function"),
    (lambda m: MeZO(m, LR, EPS).step([lambda: 0]), "closure: a function; allowed is a function .*"),
    (
        lambda m: MeZO(m, LR, EPS).load_state_dict(torch.optim.SGD(m.parameters(), 1).state_dict()),
        "state_dict: it has no 'zo' in its state",
    ),
]


@pytest.mark.parametrize(("use", "message"), BAD)
def test_misuse_is_one_clear_error(use, message):
    with pytest.raises(ValueError, match=f"^{message}") as error:
        use(mlp().model)
    assert "\n" not in str(error.value)


def test_numbers_of_numpy_and_torch_are_numbers():
    ends = []
    for one, few, small, rate in (
        (1, 3, EPS, LR),
        (np.int64(1), np.int32(3), np.float64(EPS), np.float64(LR)),
        (np.uint8(1), np.int16(3), torch.tensor(EPS, dtype=torch.float64), torch.tensor(LR)),
    ):
        net = mlp()
        optimizer = AGZO(
            net.model, rate, small, rank=one, refresh_every=few, power_steps=few, seed=few,
            queries=one,
        )  # fmt: skip
        ends.append(go(net, optimizer, 4))
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        torch.load(file, weights_only=True)
    assert_equal(ends[0], ends[1])
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[2][name], value, rtol=0, atol=1e-7)


def test_parameters_come_in_every_way_that_torch_takes_them():
    for take in (
        lambda m: m.named_parameters(),
        lambda m: list(m.named_parameters()),
        lambda m: (p for p in m.parameters()),
        lambda m: [{"params": m.named_parameters(), "lr": LR}],
        lambda m: [{"params": p} for p in m.parameters()],
    ):
        net = mlp()
        assert len(MeZO(net.model, LR, EPS, params=take(net.model)).tuned) == 6
    net = mlp()
    assert [each.name for each in MeZO(net.model, LR, EPS, params=net.model[0].weight).tuned] == [
        "0.weight"
    ]


@pytest.mark.parametrize("seed", [0, -1, 2**31, 2**63, 2**64 + 5, 10**30])
def test_every_whole_number_is_the_seed_of_a_noise_of_its_own(seed):
    slopes = set()
    for given in (seed, np.int64(seed) if abs(seed) < 2**62 else seed, seed + 1):
        net = mlp()
        optimizer = MeZO(net.model, LR, EPS, seed=given)
        optimizer.step(net.closure)
        slopes.add(optimizer.projected_grad.item())
    assert len(slopes) == 2


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
@pytest.mark.parametrize("options", [{"warm_start": True}, {"refresh_every": 2}])
def test_a_copy_has_nothing_of_a_staged_step(copied, options):
    net = mlp()
    whole = torch.nn.ModuleDict({"model": net.model})
    optimizer = AGZO(whole, lr=1e-3, eps=1e-3, **options)
    optimizer.step(net.closure)
    forwards = optimizer.forwards
    optimizer.stage(net.closure)
    other = copied(optimizer)
    assert other.forwards == forwards
    optimizer.step()
    assert optimizer.forwards == forwards + optimizer.forwards_of_step(1)
