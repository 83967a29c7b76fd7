"""Updates that are put off: the trajectory of updates at once, and no stale weight unnoticed."""

import io

import pytest
import tiny_run
import torch
from test_resume import run_and_die
from torch import nn

from agzo import AGZO
from agzo.pieces import Piece
from agzo.stream import StreamedLayers
from baselines import LOZO, DominantLayer, MeZO, ZOAct
from experiments import checkpoint, prepare
from experiments.config import BadInput
from experiments.probe import scene
from experiments.replay import replay
from experiments.session import run, verify
from tests.methods import METHODS, Method
from tests.networks import mlp, qwen3, weights

OTHERS = [
    Method("lozo-published", LOZO, {"refresh_every": 3, "published_refresh": True}),
    Method("agzo-adam", AGZO, {"refresh_every": 3, "update": "adam", "large_state": True}),
    Method("lozo-q3-one-sided", LOZO, {"queries": 3, "estimator": "one_sided", "rank": 1}),
]
DENSE = ("mezo", "zo_act", "agzo-isotropic")
LOW_RANK = [
    *(m for m in METHODS if m.name != "dominant-layer" and not m.name.startswith(DENSE)),
    *OTHERS,
]
FEW = [m for m in LOW_RANK if m.name in ("agzo", "agzo-r2-lagged-q2", "lozo", "lozo-m")]
every_low_rank = pytest.mark.parametrize("method", LOW_RANK, ids=str)
few = pytest.mark.parametrize("method", FEW, ids=str)


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([w.flatten() for w in weights(model).values()])


def linear_weights(optimizer) -> dict[str, torch.Tensor]:
    return {t.name: t.parameter.detach().clone() for t in optimizer.tuned if t.role == "linear"}


def trained(method: Method, network: str, dtype, steps: int, flush_every: int, **options):
    """Losses, flushed weights and forwards of some steps."""
    net = method.network(network, dtype)
    optimizer = method.make(net, flush_every=flush_every, **options)
    losses = [optimizer.step(net.closure, net.token_mask) for _ in range(steps)]
    optimizer.flush()
    return torch.stack(losses), flat(net.model), torch.tensor(optimizer.forwards)


@pytest.mark.parametrize("network", ["qwen3-tied", "llama-untied", "opt-tied", "mlp"])
@every_low_rank
def test_in_float64_the_trajectory_is_that_of_updates_at_once(method: Method, network):
    at_once = trained(method, network, torch.float64, 22, 1)
    assert (at_once[0] - at_once[0][0]).abs().max() > 1e-4  # it does move
    for flush_every in (4, 50):
        put_off = trained(method, network, torch.float64, 22, flush_every)
        torch.testing.assert_close(put_off, at_once, rtol=1e-9, atol=1e-11)


@few
@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "master"])
def test_in_lower_precision_it_is_as_close_as_its_rounding(method: Method, rounding):
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        ends = [trained(method, "qwen3-tied", dtype, 8, n, lr=1e-4, rounding=rounding)[1]
                for n in (1, 4)]  # fmt: skip
        assert (ends[1] - ends[0]).norm() <= bound * ends[0].norm()


def test_bfloat16_keeps_what_rounding_at_each_step_would_lose():
    """Sixteen given updates, each below half a spacing of most weights; their sum is not."""
    ends = []
    for dtype, flush_every in ((torch.float32, 1), (torch.bfloat16, 1), (torch.bfloat16, 16)):
        torch.manual_seed(0)
        model = nn.Linear(64, 64, bias=False, dtype=torch.bfloat16).to(dtype).eval()
        start = flat(model).float()
        optimizer = LOZO(model, lr=1e-4, eps=1e-3, flush_every=flush_every)
        for _ in range(16):
            optimizer.retrace(torch.ones(1))
        ends.append(flat(model).float() - start)
    exact, at_once, put_off = ends
    assert (put_off - exact).norm() < 0.4 * (at_once - exact).norm()


@few
def test_weights_stand_still_between_flushes_and_while_measuring(method: Method):
    net = qwen3()
    optimizer = method.make(net, flush_every=4)
    before, everything = linear_weights(optimizer), flat(net.model)
    for step in range(1, 9):
        seen = []

        def closure(seen=seen):
            with torch._C.DisableTorchFunction():  # as it is, and not as the loss sees it
                seen.append(flat(net.model))
            return net.closure()

        optimizer.step(closure, net.token_mask)
        assert all(each.equal(everything) for each in seen)
        now = linear_weights(optimizer)
        moved = [name for name in now if not now[name].equal(before[name])]
        assert moved == ([] if step % 4 else list(now)), step
        assert not flat(net.model).equal(everything), "what is dense moves in each step"
        before, everything = now, flat(net.model)
        optimizer.estimate(net.closure, net.token_mask)
        assert flat(net.model).equal(everything)


@few
def test_looking_between_steps_does_not_mix_bases(method: Method):
    """An estimate may leave other bases than those of the update before."""
    ends = []
    for flush_every in (1, 5):
        net = qwen3(torch.float64)
        optimizer = method.make(net, flush_every=flush_every)
        for step in range(11):
            optimizer.step(net.closure, net.token_mask)
            if step % 3 == 1:
                optimizer.estimate(net.closure, net.token_mask, step=6)
        optimizer.flush()
        ends.append(flat(net.model))
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-11)


def test_updates_with_one_right_factor_take_the_room_of_one():
    net = qwen3()
    optimizer = LOZO(net.model, 1e-3, 1e-3, rank=2, refresh_every=6, flush_every=16)
    ranks = []
    for _ in range(14):
        optimizer.step(net.closure)
        assert optimizer._deferred is not None
        kept = optimizer._deferred.state_dict()["kept"]
        ranks.append({rows.shape[0] for pair in kept.values() for rows in pair})
    assert ranks == [{2}] * 6 + [{4}] * 6 + [{6}] * 2
    assert all(each.dtype == torch.float32 for pair in kept.values() for each in pair)


def test_a_tied_linear_weight_is_seen_at_each_use():
    ends = []
    for flush_every in (1, 3):
        torch.manual_seed(0)
        one, two = nn.Linear(6, 6).double(), nn.Linear(6, 6).double()
        two.weight = one.weight
        model = nn.Sequential(one, nn.Tanh(), two).eval()
        x = torch.randn(9, 6, dtype=torch.float64)
        optimizer = LOZO(model, 1e-2, 1e-4, flush_every=flush_every)
        for _ in range(7):
            # read otherwise too: then a copy is perturbed, in float32 where nothing is put off
            optimizer.step(lambda: model(x).square().mean() + one.weight.square().sum())  # noqa: B023
        optimizer.flush()
        ends.append(flat(model))
    torch.testing.assert_close(*ends, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("how", ["gram", "forwards", "first"])
def test_micro_batches_see_what_is_put_off(how):
    ends = []
    for flush_every in (1, 4):
        net = mlp(torch.float64)
        x, y = torch.randn(20, 6, generator=torch.Generator().manual_seed(1)).double(), [0, 1] * 10

        def loss(rows, model=net.model, x=x, y=y):
            return nn.functional.cross_entropy(model(x[rows]), torch.tensor(y)[rows])

        optimizer = AGZO(net.model, 1e-2, 1e-3, accumulation=2, accumulated_basis=how,
                         flush_every=flush_every)  # fmt: skip
        for _ in range(10):
            first = Piece(lambda loss=loss: loss(slice(0, 8)), weight=8)
            rest = Piece(lambda loss=loss: loss(slice(8, 20)), weight=12, rows=8)
            optimizer.step([first, rest])
        optimizer.flush()
        ends.append(flat(net.model))
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-11)


@few
@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "master"])
def test_resume_in_the_middle_of_a_period_is_bit_exact(method: Method, rounding):
    dtype = torch.float32 if rounding == "nearest" else torch.bfloat16
    ends = []
    for stops in ((), (3,), (6, 8)):
        net = qwen3(dtype)
        optimizer = method.make(net, flush_every=4, rounding=rounding)
        losses = []
        for step in range(11):
            if step in stops:
                held, file = flat(net.model), io.BytesIO()
                torch.save((net.model.state_dict(), optimizer.state_dict()), file)
                assert flat(net.model).equal(held), "a checkpoint flushes nothing"
                file.seek(0)
                saved = torch.load(file, weights_only=True)
                net = qwen3(dtype)
                optimizer = method.make(net, flush_every=4, rounding=rounding, seed=99)
                if step == 8:
                    optimizer.step(net.closure, net.token_mask)  # what it kept itself is dropped
                net.model.load_state_dict(saved[0])
                optimizer.load_state_dict(saved[1])
            losses.append(optimizer.step(net.closure, net.token_mask))
        optimizer.flush()
        ends.append((torch.stack(losses), flat(net.model)))
    for losses, end in ends[1:]:
        assert losses.equal(ends[0][0])
        assert end.equal(ends[0][1])


def test_a_state_does_not_change_when_training_goes_on():
    net = qwen3()
    optimizer = LOZO(net.model, 1e-3, 1e-3, flush_every=9)
    optimizer.step(net.closure)
    kept = optimizer.state_dict()["state"]["zo"]["deferred"]["kept"]
    copies = {name: [rows.clone() for rows in pair] for name, pair in kept.items()}
    for _ in range(3):
        optimizer.step(net.closure)
    assert all(a.equal(b) for name in kept for a, b in zip(kept[name], copies[name], strict=True))


def test_a_state_of_another_period_is_refused():
    net = qwen3()
    saved = LOZO(net.model, 1e-3, 1e-3, flush_every=4).state_dict()
    with pytest.raises(ValueError, match=r"flush_every=1: allowed is 4"):
        LOZO(net.model, 1e-3, 1e-3).load_state_dict(saved)


def test_a_state_of_other_weights_is_refused():
    def first(name, _):
        return "layers.0" in name

    def second(name, _):
        return "layers.1" in name

    optimizer = LOZO(qwen3().model, 1e-3, 1e-3, flush_every=4, params=first)
    optimizer.retrace(torch.ones(1))
    saved = optimizer.state_dict()
    other = LOZO(qwen3().model, 1e-3, 1e-3, flush_every=4, params=second)
    message = r"flush_every=4: .* updates of model\.layers\.0\..*, \(\d+, \d+\); .* here is none"
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(saved)
    kept = saved["state"]["zo"]["deferred"]["kept"]
    name = next(iter(kept))
    kept[name] = (kept[name][0][:, :3], kept[name][1])
    with pytest.raises(ValueError, match=r"\(3, \d+\); .* here is \(\d+, \d+\)"):
        optimizer.load_state_dict(saved)


@few
def test_a_loss_that_is_not_finite_freezes_what_is_put_off_too(method: Method):
    ends = []
    for steps, flush_every in ((3, 1), (3, 5), (9, 5)):
        net = qwen3(torch.float64)
        optimizer = method.make(net, flush_every=flush_every)
        for step in range(steps):
            factor = float("nan") if step == 3 else 1.0
            optimizer.step(lambda factor=factor, net=net: net.closure() * factor, net.token_mask)
        assert bool(optimizer.finite) == (steps == 3)
        optimizer.flush()
        ends.append(flat(net.model))
    torch.testing.assert_close(ends[2], ends[1], rtol=1e-13, atol=1e-15)  # summed in another order
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-9, atol=1e-11)


def test_activations_that_are_not_finite_reach_nothing_that_is_put_off():
    net = mlp()
    x = torch.randn(20, 6)
    optimizer = AGZO(net.model, 1e-3, 1e-3, flush_every=3)
    for bad in (1.0, float("nan"), float("inf"), 1.0):
        broken = x.clone()
        broken[3, 2] = bad
        optimizer.step(lambda broken=broken: net.model(broken).square().mean())
    assert not optimizer.finite
    assert all(w.isfinite().all() for w in weights(net.model).values())


def test_a_closure_that_raises_leaves_what_is_put_off():
    net = qwen3()
    optimizer = LOZO(net.model, 1e-3, 1e-3, flush_every=4)
    optimizer.step(net.closure)
    assert optimizer._deferred is not None
    kept, before = optimizer._deferred.state_dict()["kept"], flat(net.model)

    def closure():
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        optimizer.step(closure)
    after = optimizer._deferred.state_dict()["kept"]
    assert flat(net.model).equal(before)
    assert all(a.equal(b) for name in kept for a, b in zip(kept[name], after[name], strict=True))


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (AGZO, {"flush_every": 0}, r"flush_every=0: allowed are whole numbers >= 1"),
        (AGZO, {"execution": "in_place"}, r"flush_every=4: with execution='in_place' allowed is 1"),
        (LOZO, {"execution": "batched"}, r"flush_every=4: with execution='batched' allowed is 1"),
        (LOZO, {"weight_decay": 0.1}, r"flush_every=4: with weight_decay=0.1 allowed is 1"),
        (AGZO, {"isotropic": 0.5}, r"flush_every=4: AGZO moves no weight of a linear layer"),
        (MeZO, {}, r"flush_every=4: MeZO moves no weight of a linear layer along a low-rank"),
        (ZOAct, {}, r"flush_every=4: ZOAct moves no weight of a linear layer along a low-rank"),
        (DominantLayer, {"layer": 0}, r"flush_every=4: base=mezo has no low-rank direction"),
    ],
)
def test_what_nothing_can_be_put_off_with_is_refused(method, options, message):
    with pytest.raises(ValueError, match=message):
        method(qwen3().model, lr=1e-3, eps=1e-3, **{"flush_every": 4, **options})


def test_streamed_layers_and_decay_of_a_group_are_refused():
    net = qwen3()
    stream = StreamedLayers(net.model, "cpu")
    with pytest.raises(ValueError, match=r"flush_every=4: with streamed layers allowed is 1"):
        LOZO(net.model, 1e-3, 1e-3, flush_every=4, stream=stream)
    net = qwen3()
    groups = [{"params": list(net.model.parameters()), "weight_decay": 0.1}]
    with pytest.raises(ValueError, match=r"flush_every=4: with weight_decay=0.1 allowed is 1"):
        LOZO(net.model, 1e-3, 1e-3, flush_every=4, params=groups)
    optimizer = LOZO(net.model, 1e-3, 1e-3, flush_every=4)
    optimizer.param_groups[0]["weight_decay"] = 0.2
    before = flat(net.model)
    with pytest.raises(ValueError, match=r"weight_decay=0.2"):
        optimizer.step(net.closure)
    assert flat(net.model).equal(before)


# Whole runs.


@pytest.mark.parametrize("method", ["agzo", "lozo", "lozo_m"])
def test_a_run_reads_no_stale_weights(tmp_path, method):
    """12 steps, dev after 6 and 12; with flush_every=3 and 5 (the end is written in any case)."""
    ends = {}
    for flush_every in (1, 3, 5):
        look = "train.eval_every=12" if flush_every == 5 else "train.eval_every=6"
        config = tiny_run.config(
            tmp_path / str(flush_every), f"method={method}", look, "train.save_model=true",
            f"method.flush_every={flush_every}", "train.checkpoint_every=4",
        )  # fmt: skip
        result = run(config)
        ends[flush_every] = (result["eval"]["loss"], result["best_step"])
        saved = tiny_run.load_file(config.folder / "model" / "model.safetensors")
        best = tiny_run.best_weights(config, result)
        assert all(torch.equal(saved[name], best[name]) for name in saved)
        if flush_every != 5:
            rows = {r["step"]: r["dev"]["loss"] for r in result["metrics"] if r["dev"]}
            ends[flush_every] += (rows[6], rows[12])
    assert ends[3] == pytest.approx(ends[1], rel=1e-5)
    if ends[1][1] == 12:
        assert ends[5][0] == pytest.approx(ends[1][0], rel=1e-5)


@pytest.mark.parametrize(
    "overrides",
    [
        ("method=agzo", "method.rank=2", "method.flush_every=4"),
        ("method=lozo", "method.refresh_every=3", "method.flush_every=4"),
        ("method=lozo", "method.flush_every=4", "precision=bf16_stochastic"),
        ("method=lozo", "method.flush_every=4", "precision=bf16_master"),
    ],
    ids=",".join,
)
def test_a_run_that_dies_between_two_flushes_goes_on_exactly(tmp_path, overrides):
    config = tiny_run.config(tmp_path / "dies", *overrides, "train.checkpoint_every=3")
    run_and_die(config, prepare, "sample_batch", 7)
    run_and_die(config, prepare, "sample_batch", 5)
    result = run(config)
    assert result["resumed_at"] == [6, 9]
    whole = tiny_run.config(tmp_path / "lives", *overrides, "train.checkpoint_every=3")
    tiny_run.assert_same(config, result, whole, run(whole))


@pytest.mark.parametrize("precision", ["fp32", "bf16_stochastic"])
@pytest.mark.parametrize(("flush_every", "look"), [(5, 12), (3, 6)])
def test_a_replay_has_the_bits_of_the_run(tmp_path, precision, flush_every, look):
    config = tiny_run.config(
        tmp_path, "method=lozo", "method.refresh_every=4", f"method.flush_every={flush_every}",
        f"train.eval_every={look}", f"precision={precision}",
    )  # fmt: skip
    best = run(config)["best_step"]
    model, _, _ = replay(config.folder, best)
    own = {key: value.clone() for key, value in checkpoint.weights(model).items()}
    checkpoint.load_weights(config.folder / "checkpoints", best, model)
    assert all(torch.equal(own[key], value) for key, value in checkpoint.weights(model).items())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("method.flush_every=3",), "method.flush_every=3: with train.eval_every=4 dev is"),
        (
            ("method.flush_every=4", "train.eval_every=null", "train.evals=5"),
            "method.flush_every=4: with train.evals=5 dev is evaluated after step 3, when the",
        ),
        (("method.flush_every=2.5",), "method.flush_every=2.5: allowed is a whole number"),
        (("method.flush_every=4", "method.execution=batched"), "method.flush_every=4: with exec"),
        (("method.flush_every=4", "method.weight_decay=0.1"), "method.flush_every=4: with weight"),
        (("method.flush_every=4", "model.offload=layers"), "method.flush_every=4: with streamed"),
        (("method=mezo", "+method.flush_every=4"), "method.flush_every=4: mezo has no such key"),
        (("method=zo_act", "+method.flush_every=4"), "method.flush_every=4: zo_act has no such"),
        (("method=dominant_layer", "method.flush_every=4"), "method.flush_every=4: base=mezo has"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, tuple) else "",
)
def test_a_run_that_could_not_is_refused_before_anything_is_loaded(tmp_path, overrides, message):
    method = () if overrides[0].startswith("method=") else ("method=lozo",)
    with pytest.raises(BadInput) as refused:
        verify(tiny_run.config(tmp_path, *method, *overrides))
    assert str(refused.value).startswith(message)


def test_a_budget_of_forwards_is_judged_by_its_steps(tmp_path):
    budget = ("train.steps=null", "train.forwards=26", "train.eval_every=5")  # 12 steps
    config = tiny_run.config(tmp_path, "method=lozo", "method.flush_every=4", *budget)
    with pytest.raises(BadInput, match=r"method.flush_every=4: .* after step 5, when .* last 1 up"):
        run(config)
    assert not config.folder.exists()


def test_a_probe_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"method\.flush_every=4: a probe reads the weights"):
        scene.load(tiny_run.arguments(tmp_path, "method=agzo", "method.flush_every=4"))
