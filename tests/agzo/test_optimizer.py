"""The torch.optim face: hyperparameters, groups, schedules, errors, the non-finite freeze."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from agzo import AGZO
from agzo.tuned.scope import Scope
from agzo.tuned.select import roles
from baselines import ICL, LOZO, LOZOM, SGD, AdamW, MeZO, ZeroShot
from experiments.methods import registry
from tests.methods import METHODS, Method, every_method
from tests.networks import NETWORKS, mlp, qwen3, weights


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("optimizer", [AGZO, MeZO, LOZO, SGD, AdamW])
def test_every_method_runs_on_every_network(optimizer, network):
    net = NETWORKS[network]()
    options = {} if optimizer in (SGD, AdamW) else {"eps": 1e-3}
    method = optimizer(net.model, lr=1e-3, **options)
    before = weights(net.model)
    loss = method.step(net.closure, net.token_mask)
    assert loss.shape == ()
    assert not loss.requires_grad
    assert all(not before[n].equal(p) for n, p in net.model.named_parameters())


def test_every_zeroth_order_method_a_run_can_name_is_in_the_list_of_rules():
    first_order = {SGD, AdamW, ZeroShot, ICL}
    named = {method for method in registry.METHODS.values() if method not in first_order}
    assert named == {method.kind for method in METHODS}


@pytest.mark.parametrize("network", NETWORKS)
def test_agzo_gives_a_subspace_to_exactly_the_linear_weights(network):
    net = NETWORKS[network]()
    optimizer = AGZO(net.model, lr=0.0, eps=1e-3)
    optimizer.step(net.closure, net.token_mask)
    linear = {
        f"{name}.weight"
        for name, module in net.model.named_modules()
        if isinstance(module, nn.Linear) and not (name == "lm_head" and "-tied" in network)
    }
    assert set(optimizer._subspace.bases) == linear


def test_roles_of_tied_and_untied_weights():
    for tied, head in ((True, "embedding"), (False, "linear")):
        model = qwen3(tied=tied).model
        assert roles(model)[model.lm_head.weight] == head
        assert roles(model)[model.model.embed_tokens.weight] == "embedding"
        assert roles(model)[model.model.norm.weight] == "other"


class Odd(nn.Module):
    """Weights reached in every way but through their own module's forward."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)
        self.linear = nn.Linear(4, 4)
        self.conv = nn.Conv1d(4, 4, 1)
        self.lstm = nn.LSTM(4, 4, batch_first=True)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.bilinear = nn.Parameter(torch.randn(2, 3, 4))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids) @ self.linear.weight.T + self.linear.bias
        x = F.conv1d(x.transpose(1, 2), self.conv.weight, self.conv.bias).transpose(1, 2)
        x = self.lstm(x)[0] + self.attention(x, x, x)[0]
        return torch.einsum("bsd,pqd->bspq", x * self.scale, self.bilinear)


@pytest.mark.parametrize("optimizer", [MeZO, LOZO])
def test_weights_used_in_unusual_ways_are_perturbed_alike(optimizer):
    losses = []
    for execution in ("side_branch", "in_place"):
        torch.manual_seed(0)
        model = Odd().double().eval()
        ids = torch.arange(12).view(2, 6) % 10
        closure = lambda model=model, ids=ids: model(ids).square().mean()  # noqa: E731
        method = optimizer(model, lr=1e-3, eps=1e-2, execution=execution)
        losses.append(torch.stack([method.step(closure) for _ in range(5)]))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-7, atol=1e-12)


def test_agzo_tunes_torchs_own_transformer():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(2, 5, 8)
    optimizer = AGZO(model, lr=1e-3, eps=1e-3)
    before = weights(model)
    optimizer.step(lambda: model(x).square().mean())
    assert set(optimizer._subspace.bases) == {"linear1.weight", "linear2.weight"}
    assert all(not before[n].equal(p) for n, p in model.named_parameters())


@every_method
def test_learning_rate_schedule_and_weight_decay_act_as_in_torch(method: Method):
    """W <- (1 - lr wd) W - lr g Delta, with the lr that the schedule gives at each step."""
    plain, decayed = (method.network("mlp", torch.float64) for _ in range(2))
    lr, decay = 1e-2, 0.1
    reference = method.make(plain, lr=lr)
    optimizer = method.make(decayed, lr=lr, weight_decay=decay)
    lr = optimizer.param_groups[0]["lr"]
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, total_iters=4)
    for step in range(4):
        plain.model.load_state_dict(decayed.model.state_dict())
        before = weights(decayed.model)
        reference.step(plain.closure)
        optimizer.step(decayed.closure)
        now = lr * (1 - 0.5 * step / 4)
        for name, parameter in decayed.model.named_parameters():
            move = dict(plain.model.named_parameters())[name] - before[name]
            keep = 1 - now * decay if method.tunes(name) else 1.0
            wanted = keep * before[name] + move * now / lr
            torch.testing.assert_close(parameter.detach(), wanted.detach(), rtol=1e-9, atol=1e-12)
        schedule.step()


def test_parameter_groups_and_filters():
    net = qwen3()
    norms = [p for n, p in net.model.named_parameters() if "norm" in n]
    others = [p for n, p in net.model.named_parameters() if "norm" not in n]
    groups = [{"params": norms, "lr": 0.0}, {"params": others}]
    before = weights(net.model)
    MeZO(net.model, lr=1e-3, eps=1e-3, params=groups).step(net.closure, net.token_mask)
    for name, parameter in net.model.named_parameters():
        assert parameter.equal(before[name]) == ("norm" in name)

    net = qwen3()
    optimizer = LOZO(net.model, lr=1e-3, eps=1e-3, params=lambda name, p: "layers.1" in name)
    optimizer.step(net.closure, net.token_mask)
    for name, parameter in net.model.named_parameters():
        assert parameter.equal(before[name]) == ("layers.1" not in name)


def test_adding_a_parameter_changes_no_other_noise():
    one, all_ = mlp(torch.float64), mlp(torch.float64)
    alone = MeZO(one.model, lr=0.0, eps=1e-3, params=lambda name, p: name == "0.weight")
    every = MeZO(all_.model, lr=0.0, eps=1e-3)
    from agzo.rng import Noise

    noise = Noise(0, 0)
    together = {p.shape: d.dense() for p, d in every._directions(noise).items()}
    for parameter, direction in alone._directions(noise).items():
        assert direction.dense().equal(together[parameter.shape])


def test_published_lozo_applies_another_direction_on_refresh_steps():
    """The published code's error, reproduced by its switch and absent without it."""
    for published in (False, True):
        net = mlp(torch.float64)
        optimizer = LOZO(
            net.model,
            lr=1e-3,
            eps=1e-3,
            rank=1,
            refresh_every=3,
            published_refresh=published,
            params=lambda name, p: name == "0.weight",
        )
        for step in range(6):
            before = net.model[0].weight.detach().clone()
            optimizer.step(net.closure)
            applied = net.model[0].weight.detach() - before
            from agzo.rng import Noise

            evaluated = optimizer._sampler.sample(optimizer.tuned[0], Noise(0, step)).dense()
            cosine = F.cosine_similarity(applied.flatten(), evaluated.double().flatten(), dim=0)
            refresh = step % 3 == 0
            if published and refresh:
                assert abs(cosine) < 0.95
            else:
                assert abs(cosine) == pytest.approx(1.0, abs=1e-6)


def test_published_lozo_moves_no_frozen_parameter():
    net = mlp()
    optimizer = LOZO(net.model, 1e-3, 1e-3, rank=1, refresh_every=2, published_refresh=True)
    net.model[0].weight.requires_grad_(False)
    before = net.model[0].weight.clone()
    for _ in range(3):
        optimizer.step(net.closure)
    assert net.model[0].weight.equal(before)


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_non_finite_activations_freeze_the_weights(method: Method, dtype):
    """NaN that runs through the layers reaches the bases too; nothing of it reaches a weight."""
    net = method.network("mlp", dtype)
    model = net.model
    x = torch.randn(20, 6, dtype=dtype)
    optimizer = method.make(net, weight_decay=0.1)
    optimizer.step(lambda: model(x).square().mean())
    before = weights(model)
    saved = optimizer.state_dict()
    for bad in (float("nan"), float("inf")):
        broken = x.clone()
        broken[3, 2] = bad
        optimizer.step(lambda broken=broken: model(broken).square().mean())
        assert not optimizer.finite or bad == math.inf  # whose tanh is 1
        for name, parameter in model.named_parameters():
            assert optimizer.finite or parameter.equal(before[name]), name
        model.load_state_dict(before, strict=False)  # its buffers stay
        optimizer.load_state_dict(saved)


@every_method
def test_non_finite_loss_freezes_the_weights(method: Method):
    net = qwen3()
    optimizer = method.make(net, weight_decay=0.1)
    optimizer.step(net.closure, net.token_mask)
    before, saved = weights(net.model), optimizer.state_dict()
    for factor in (float("nan"), float("inf")):
        loss = optimizer.step(lambda factor=factor: net.closure() * factor, net.token_mask)
        assert not loss.isfinite()
        assert not optimizer.finite
        for _ in range(2):  # who does not ask is told in the next step, and in each after it
            with pytest.raises(FloatingPointError, match=r"of step 2, or of one before it"):
                optimizer.step(net.closure, net.token_mask)
        for name, parameter in net.model.named_parameters():
            assert parameter.equal(before[name])
        optimizer.load_state_dict(saved)
    optimizer.step(net.closure, net.token_mask)
    assert optimizer.finite
    assert any(not p.equal(before[name]) for name, p in net.model.named_parameters())


@pytest.mark.parametrize("optimizer", [SGD, AdamW])
def test_first_order_sees_a_gradient_that_is_not_finite_and_keeps_it_out(optimizer):
    net = mlp()
    method = optimizer(net.model, lr=1e-2)
    before = weights(net.model)
    method.step(lambda: torch.sqrt(net.closure() * 0.0))  # loss 0, gradient infinite or NaN
    assert not method.finite
    assert all(p.equal(before[n]) for n, p in net.model.named_parameters())


def test_first_order_leaves_frozen_parameters_without_gradients():
    net = qwen3()
    SGD(net.model, lr=1e-2, embeddings="frozen").step(net.closure)
    assert all(p.grad is None for p in net.model.parameters())


def test_first_order_baselines_are_torchs_own():
    for ours, theirs, options in (
        (SGD, torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
        (AdamW, torch.optim.AdamW, {"weight_decay": 0.1}),
    ):
        net, plain = qwen3(), qwen3()
        method = ours(net.model, lr=1e-2, **options)
        reference = theirs(plain.model.parameters(), lr=1e-2, **options)
        for _ in range(3):
            loss = method.step(net.closure)
            reference.zero_grad()
            expected = plain.closure()
            expected.backward()
            reference.step()
            assert loss.equal(expected.detach())
        for a, b in zip(net.model.parameters(), plain.model.parameters(), strict=True):
            assert a.equal(b)
        assert method.forwards == 9


def test_zero_shot_takes_no_step():
    net = mlp()
    method = ZeroShot(net.model)
    assert not method.about.trains
    with pytest.raises(RuntimeError, match="takes no training step"):
        method.step(net.closure)


BAD = [
    (AGZO, {"rank": 0}, "rank=0: allowed are whole numbers >= 1"),
    (AGZO, {"rank": 9}, r"rank=9: the widest input .* is 3.weight, of 8; allowed .* 1 to 8"),
    (AGZO, {"params": lambda name, p: name.endswith("bias")}, "no weight of an nn.Linear is tuned"),
    (AGZO, {"power_steps": -1}, "power_steps=-1"),
    (AGZO, {"refresh_every": 0}, "refresh_every=0"),
    (LOZO, {"rank": 0}, "rank=0"),
    (LOZO, {"rank": 7}, r"rank=7: the widest matrix is 0.weight, of 6; allowed .* 1 to 6"),
    (LOZO, {"refresh_every": 0}, "refresh_every=0"),
    (MeZO, {"eps": 0.0}, "eps=0.0: allowed are finite numbers > 0"),
    (MeZO, {"eps": -1e-3}, "eps=-0.001"),
    (MeZO, {"eps": math.nan}, "eps=nan"),
    (MeZO, {"lr": math.inf}, "lr=inf"),
    (MeZO, {"lr": -1.0}, "lr=-1.0"),
    (MeZO, {"weight_decay": -0.1}, "weight_decay=-0.1"),
    (MeZO, {"queries": 0}, "queries=0"),
    (MeZO, {"queries": True}, "queries=True"),
    (MeZO, {"estimator": "spsa"}, "estimator='spsa': allowed are one_sided, two_sided"),
    (MeZO, {"execution": "fast"}, "execution='fast': allowed are side_branch, batched, in_place"),
    (MeZO, {"rounding": "up"}, "rounding='up': allowed are nearest, stochastic, master"),
    (MeZO, {"embeddings": "on"}, "embeddings='on': allowed are tuned, seen, frozen"),
    (MeZO, {"params": lambda name, p: False}, "leave no parameter to tune"),
    (MeZO, {"params": [nn.Parameter(torch.zeros(1))]}, "does not belong to the model"),
    (AdamW, {"betas": (0.9, 3.0), "eps": None}, r"betas=\(0.9, 3.0\): allowed are two numbers"),
]


@pytest.mark.parametrize(("optimizer", "options", "message"), BAD)
def test_bad_hyperparameters_name_key_value_and_what_is_allowed(optimizer, options, message):
    given = {"lr": 1e-3, "eps": 1e-3, **options}
    given = {key: value for key, value in given.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        optimizer(mlp().model, **given)


@every_method
def test_a_loss_that_is_not_a_function_is_an_error(method: Method):
    net = method.network("mlp")
    with pytest.raises(ValueError, match=r"and then .* for the same weights"):
        method.make(net).step(lambda: net.closure() + torch.rand(()))


def test_active_dropout_is_an_error_that_names_the_module():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
    closure = lambda: model(torch.ones(3, 2)).sum()  # noqa: E731
    with pytest.raises(ValueError, match=r"module 1: active dropout \(p=0.1\)"):
        MeZO(model, lr=1e-3, eps=1e-3).step(closure)
    model.eval()
    MeZO(model, lr=1e-3, eps=1e-3).step(closure)


def test_a_tuned_parameter_without_use_is_an_error_that_names_it():
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "idle": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match=r"does not use 2 tuned .*idle.weight, idle.bias"):
        MeZO(model, lr=1e-3, eps=1e-3).step(lambda: model["used"](torch.ones(3, 2)).sum())


def test_a_scripted_module_is_refused_by_the_side_branch_and_runs_in_place():
    model = torch.jit.script(nn.Sequential(nn.Linear(2, 2)).eval())
    closure = lambda: model(torch.ones(3, 2)).sum()  # noqa: E731
    with pytest.raises(ValueError, match=r"execution='in_place'"):
        MeZO(model, lr=1e-3, eps=1e-3).step(closure)
    optimizer = MeZO(model, lr=1e-3, eps=1e-3, execution="in_place")
    optimizer.step(closure)
    assert optimizer.projected_grad.abs() > 0


@pytest.mark.parametrize("loss", [1.0, torch.ones(2), torch.tensor(1)])
def test_a_closure_must_return_a_scalar_loss(loss):
    with pytest.raises(ValueError, match="closure returned"):
        MeZO(mlp().model, lr=1e-3, eps=1e-3).step(lambda: loss)


def test_a_parameter_given_twice_and_bad_group_options_are_refused():
    model = mlp().model
    weight = model[0].weight
    with pytest.raises(ValueError, match=r"params: 0\.weight given twice"):
        MeZO(model, lr=1e-3, eps=1e-3, params=[weight, weight])
    with pytest.raises(ValueError, match=r"params: lr=-5.0"):
        MeZO(model, lr=1e-3, eps=1e-3, params=[{"params": [weight], "lr": -5.0}])
    with pytest.raises(ValueError, match=r"params: eps=1.0: allowed in a group are lr"):
        MeZO(model, lr=1e-3, eps=1e-3, params=[{"params": [weight], "eps": 1.0}])
    with pytest.raises(ValueError, match="add_param_group"):
        MeZO(model, lr=1e-3, eps=1e-3, params=[weight]).add_param_group({"params": []})


def test_a_class_of_a_scope_and_a_parameter_without_values_are_refused_by_name():
    model = mlp().model
    with pytest.raises(ValueError, match=r"params: the class Scope; allowed is .* Scope\(\.\.\.\)"):
        MeZO(model, lr=1e-3, eps=1e-3, params=Scope)
    model.empty = nn.Parameter(torch.zeros(0, 3))
    with pytest.raises(ValueError, match=r"parameter empty: its shape \(0, 3\) has no values"):
        MeZO(model, lr=1e-3, eps=1e-3)
    model.empty.requires_grad_(False)
    assert len(MeZO(model, lr=1e-3, eps=1e-3).tuned) == 6


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(3, 7), "token_mask: dtype torch.float32"),
        (torch.ones(21, dtype=torch.bool), "token_mask: dtype torch.bool"),
        (torch.ones(7, 3, dtype=torch.bool), r"token_mask of shape \(7, 3\) fits no linear"),
    ],
)
def test_a_mask_that_fits_nothing_is_refused(mask, message):
    net = qwen3()
    with pytest.raises(ValueError, match=message):
        AGZO(net.model, lr=1e-3, eps=1e-3).step(net.closure, mask)


def test_dropout_switched_on_later_is_refused():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)).eval()
    optimizer = MeZO(model, lr=1e-3, eps=1e-3)
    closure = lambda: model(torch.ones(3, 2)).sum()  # noqa: E731
    optimizer.step(closure)
    model.train()
    with pytest.raises(ValueError, match="active dropout"):
        optimizer.step(closure)


@pytest.mark.parametrize(
    ("saved", "loading", "message"),
    [
        ({"rank": 1}, {"rank": 2}, "rank=2: allowed is 1"),
        ({"eps": 1e-3}, {"eps": 1e-2}, "eps=0.01: allowed is 0.001"),
        ({"rounding": "nearest"}, {"rounding": "master"}, "rounding='master': allowed"),
    ],
)
def test_state_of_other_settings_is_refused(saved, loading, message):
    options = {"lr": 1e-3, "eps": 1e-3}
    state = AGZO(mlp().model, **{**options, **saved}).state_dict()
    with pytest.raises(ValueError, match=message):
        AGZO(mlp().model, **{**options, **loading}).load_state_dict(state)
    with pytest.raises(ValueError, match="method='MeZO': allowed is 'AGZO'"):
        MeZO(mlp().model, **options).load_state_dict(state)


@pytest.mark.parametrize(
    ("optimizer", "options", "budget"),
    [
        (AGZO, {"estimator": "two_sided", "refresh_every": 10}, 100),
        (AGZO, {}, 101),
        (MeZO, {"queries": 3}, 100),
        (LOZO, {}, 100),
        (SGD, {}, 100),
    ],
)
def test_a_budget_of_forwards_is_used_up_and_never_exceeded(optimizer, options, budget):
    net = mlp()
    if optimizer is not SGD:
        options = {"eps": 1e-3, **options}
    method = optimizer(net.model, lr=0.0, **options)
    steps = method.steps_within(budget)
    for _ in range(steps):
        method.step(net.closure)
    assert budget - method.forwards_of_step(steps) < method.forwards <= budget


def test_state_of_another_stream_is_refused():
    net = mlp()
    optimizer = MeZO(net.model, lr=1e-3, eps=1e-3)
    state = optimizer.state_dict()
    state["state"]["zo"]["stream"] = "0-cpu"
    with pytest.raises(ValueError, match="stream='0-cpu': allowed is '2'"):
        optimizer.load_state_dict(state)


def test_half_precision_loss_is_differenced_in_float32():
    net = mlp(torch.bfloat16)
    optimizer = MeZO(net.model, lr=1e-3, eps=1e-2)
    assert optimizer.step(net.closure).dtype == torch.float32
    assert optimizer.projected_grad.dtype == torch.float32
    net = mlp(torch.float64)
    assert MeZO(net.model, lr=1e-3, eps=1e-2).step(net.closure).dtype == torch.float64


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        views = {id(a) for a in args} | {getattr(a, "data_ptr", int)() for a in args}
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.data_ptr() not in views:
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "optimizer",
    [
        AGZO,
        MeZO,
        LOZO,
        LOZOM,
        partial(MeZO, update="momentum", large_state=True),  # the state itself apart
        partial(MeZO, update="adam", large_state=True, queries=2),
    ],
)
def test_a_step_makes_no_second_tensor_of_a_large_weights_size(
    optimizer, dtype, rounding, monkeypatch
):
    monkeypatch.setattr("agzo.rng.CHUNK", 4096)
    monkeypatch.setattr("agzo.kernels.PART", 4096)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(256, 256), nn.Linear(256, 256)).to(dtype).eval()
    ids = torch.arange(4)
    method = optimizer(model, lr=1e-3, eps=1e-2, rounding=rounding)
    method.step(lambda: model(ids).float().square().mean())
    with Largest() as largest:
        method.step(lambda: model(ids).float().square().mean())
    assert 0 < largest.numel < 8192  # a weight has 65,536; a chunk 4,096
