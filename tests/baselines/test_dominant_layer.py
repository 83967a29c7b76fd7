"""Dominant-layer ZO: detectors, what is tuned and how it is held, reused layers, whole runs."""

import copy
import json
from typing import Any

import pytest
import tiny_run
import torch
from safetensors import safe_open
from text_models import byte_tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPTNeoConfig, GPTNeoForCausalLM

from agzo import AGZO, ZeroOrderOptimizer
from agzo.distributed import Piece
from agzo.tuned.layers import decoder_layers
from baselines import (
    FZOO,
    GRZO,
    LOZO,
    LOZOM,
    DeepZero,
    DominantLayer,
    HiZOO,
    MeZO,
    SubZero,
    on_dominant_layer,
)
from baselines.outliers import DETECTORS, THRESHOLDS, Scan, first_above, last_matrix
from experiments.config.composed import compose
from experiments.config.errors import BadInput
from experiments.methods import registry
from experiments.training import parts as parts_of_a_run
from experiments.training.session import run
from tests.experiments.training.test_resume import run_and_die
from tests.networks import Block, Network, Stack, qwen3, weights
from tests.outlier_models import DEPTH, FAMILIES, PAD, WIDTH, network, plant, random_model

every_family = pytest.mark.parametrize("family", FAMILIES)


def method(model: nn.Module, **options) -> ZeroOrderOptimizer:
    return on_dominant_layer(model, **{"lr": 1e-3, "eps": 1e-3, **options})


def scores(net: Network, masked: bool = True) -> dict[str, list[float]]:
    scan = Scan(decoder_layers(net.model)[1])
    scan.look(net.closure, net.token_mask if masked else None)
    return scan.scores()


def found(net: Network, masked: bool = True) -> dict[str, int | None]:
    return {name: first_above(s, THRESHOLDS[name]) for name, s in scores(net, masked).items()}


@every_family
@pytest.mark.parametrize("layer", [0, 1, 3])
def test_every_detector_finds_a_planted_outlier(family, layer):
    net = network(plant(random_model(family), layer))
    assert found(net) == dict.fromkeys(DETECTORS, layer)
    for name in DETECTORS:
        optimizer = method(copy.deepcopy(net.model), detector=name)
        study(optimizer, batches=2)
        assert optimizer.scope.layer == layer
        assert {t.name.split("layers.")[1][0] for t in optimizer.tuned} == {str(layer)}


def study(optimizer: ZeroOrderOptimizer, batches: int = 1) -> Network:
    nets = [network(optimizer.model, seed) for seed in range(1, batches + 1)]
    optimizer.calibrate([(net.closure, net.token_mask) for net in nets])
    return nets[0]


@every_family
def test_padding_is_not_looked_at(family):
    """An outlier that padding alone sets off is none, and padding is no first token."""
    net = network(plant(random_model(family), 2, token=PAD))
    assert found(net) == dict.fromkeys(DETECTORS)
    assert found(net, masked=False)["massive_activations"] == 2


@every_family
@pytest.mark.parametrize("detector", DETECTORS)
def test_a_model_without_outliers_is_an_error_with_the_scores_and_the_way_out(family, detector):
    model = random_model(family)
    optimizer = method(model, detector=detector)
    with pytest.raises(ValueError, match=f"^detector={detector}: no layer is an outlier") as error:
        study(optimizer)
    listed = [f"{score:.3g}" for score in scores(network(model))[detector]]
    assert ", ".join(listed) in str(error.value)
    assert "layer=0 to 4 (method.layer=... of a run)" in str(error.value)


def test_a_layer_that_is_given_is_tuned_and_the_scan_is_for_the_record():
    model = plant(random_model("qwen3"), 2)
    optimizer = method(model, layer=4, scan_batches=1)
    net = study(optimizer)
    before = weights(model)
    optimizer.step(net.closure, net.token_mask)
    moved = {name for name, p in model.named_parameters() if not p.equal(before[name])}
    assert moved == {name for name in before if ".layers.4." in name}
    assert optimizer.calibrated is not None
    assert optimizer.calibrated["given"] is True
    assert optimizer.calibrated["layer"] == 4
    assert optimizer.calibrated["found"] == dict.fromkeys(DETECTORS, 2)
    assert optimizer.forwards == optimizer.forwards_once + optimizer.forwards_of_step(0)


@pytest.mark.parametrize("method", [FZOO, HiZOO, SubZero, MeZO], ids=lambda method: method.__name__)
def test_every_method_takes_the_layer_as_what_it_tunes(method):
    """One scope serves several optimizers, each with the layer that its own batches show."""
    scope, moved = DominantLayer(scan_batches=1), list[set[str]]()
    options = {"rank": 2, "queries": 2} if method is SubZero else {}
    for layer in (2, 3):
        model = plant(random_model("qwen3"), layer)
        optimizer = method(model, 1e-3, 1e-3, params=scope, large_state=True, **options)
        with pytest.raises(RuntimeError, match=r"^layer=None: call calibrate.* list of 1 .closure"):
            optimizer.step(network(model).closure)
        net = study(optimizer)
        before = weights(model)
        optimizer.step(net.closure, net.token_mask)
        moved.append({name.split("layers.")[1][0] for name, p in weights(model).items()
                      if not p.equal(before[name])})  # fmt: skip
        assert optimizer.calibrated is not None
        assert optimizer.calibrated["layer"] == layer
    assert moved == [{"2"}, {"3"}]
    assert scope.layer is scope.found is None


def test_a_scope_narrows_what_params_says_and_its_layer_is_part_of_the_state():
    model = random_model("qwen3")
    matrices = lambda name, p: p.dim() == 2  # noqa: E731
    optimizer = MeZO(model, 1e-3, 1e-3, params=DominantLayer(layer=1, params=matrices))
    assert all(each.parameter.dim() == 2 and "layers.1." in each.name for each in optimizer.tuned)
    other = MeZO(random_model("qwen3"), 1e-3, 1e-3, params=DominantLayer(layer=2, params=matrices))
    with pytest.raises(ValueError, match=r"^layer=2: allowed is 1, as when"):
        other.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"^layer=1: .* and this MeZO has no layer; allowed are"):
        MeZO(model, 1e-3, 1e-3, params=matrices).load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"^layer=1: .* has no parameter to tune"):
        MeZO(model, 1e-3, 1e-3, params=DominantLayer(layer=1, params=lambda name, p: "2" in name))


@pytest.mark.parametrize("layer", [-1, DEPTH, 99, True, 1.0])
def test_a_layer_outside_the_model_is_an_error(layer):
    with pytest.raises(ValueError, match=rf"^layer={layer}: allowed are 0 to 4"):
        method(random_model("llama"), layer=layer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"detector": "eyes"}, r"detector='eyes': allowed are massive_activations, super_weight"),
        ({"base": "sgd"}, r"base='sgd': allowed are mezo, lozo, lozo_m, agzo"),
        ({"reuse_prefix": 2}, r"reuse_prefix=2: allowed are True and False"),
        ({"scan_batches": 0}, r"scan_batches=0: allowed are whole numbers >= 1"),
        ({"rank": 2}, r"rank=2: base=mezo has no rank"),
        ({"base": "lozo", "power_steps": 2}, r"power_steps=2: base=lozo has no power_steps"),
        ({"warm_start": True}, r"warm_start=True: base=mezo has no warm_start"),
        ({"base": "lozo_m", "basis": "exact"}, r"basis=exact: base=lozo_m has no basis"),
        ({"base": "agzo", "rank": 99, "layer": 0}, r"rank=99"),
        ({"refresh_every": "one_shot"}, r"refresh_every=one_shot: base=mezo has no refresh_every"),
        (
            {"base": "lozo", "refresh_every": "one_shot"},
            r"refresh_every=one_shot: allowed with base=lozo are 1 or more, or None",
        ),
        (
            {"base": "agzo", "refresh_every": "once"},
            r"refresh_every=once: allowed with base=agzo are 1 or more, 'one_shot', or None",
        ),
        ({"base": "agzo", "refresh_every": 0}, r"refresh_every=0: allowed are whole numbers >= 1$"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        method(random_model("qwen3"), **options)


def test_one_shot_bases_are_those_of_the_first_batch_and_null_is_the_bases_default():
    """The word is AGZO's refresh_every=None; None, here and in a run, stays the base's default."""
    net = network(random_model("qwen3"))
    for given, wanted in (("one_shot", None), (None, 1), (3, 3)):
        optimizer = method(copy.deepcopy(net.model), base="agzo", layer=1, refresh_every=given)
        assert optimizer.refresh_every == wanted  # pyright: ignore[reportAttributeAccessIssue]
    run_of = compose(["method=dominant_layer", "method.base=agzo", "method.layer=1"])
    for given, wanted in (("one_shot", None), (None, 1)):
        run_of.method["refresh_every"] = given
        values = registry.settings(run_of.method, "nearest")
        assert registry.build("dominant_layer", net.model, values, 0).refresh_every == wanted  # pyright: ignore
    run_of.method["refresh_every"] = "once"
    with pytest.raises(BadInput, match=r"method.refresh_every=once: allowed with base=agzo"):
        registry.settings(run_of.method, "nearest")


def test_a_step_before_the_layer_is_known_is_an_error():
    net = network(random_model("qwen3"))
    with pytest.raises(RuntimeError, match=r"layer=None: call calibrate"):
        method(net.model).step(net.closure, net.token_mask)
    with pytest.raises(ValueError, match=r"batches=\[\]: allowed are one or more"):
        method(net.model).calibrate([])


def test_the_base_method_works_as_it_does_alone_on_those_parameters():
    """Base by base the same numbers as the base method with params= the layer's."""
    bases: list[tuple[str, type[ZeroOrderOptimizer], dict]] = [
        ("mezo", MeZO, {}),
        ("lozo", LOZO, {"rank": 3}),
        ("lozo_m", LOZOM, {"refresh_every": 2}),
        ("agzo", AGZO, {"rank": 2, "estimator": "two_sided"}),
        ("agzo", AGZO, {"refresh_every": None, "queries": 2}),
    ]
    for base, reference, own in bases:
        ends = []
        for dominant in (True, False):
            net = network(random_model("qwen3"))
            options = {"lr": 1e-2, "eps": 1e-3, "seed": 5, **own}
            if dominant:
                if own.get("refresh_every", 1) is None:
                    options["refresh_every"] = "one_shot"
                optimizer = method(net.model, layer=2, base=base, **options)
            else:
                inside = lambda name, p: ".layers.2." in name  # noqa: E731
                optimizer = reference(net.model, params=inside, **options)
            assert isinstance(optimizer, reference)
            for _ in range(4):
                optimizer.step(net.closure, net.token_mask)
            ends.append(weights(net.model))
        assert all(ends[0][name].equal(ends[1][name]) for name in ends[0])


def test_only_parameters_with_requires_grad_inside_the_layer_are_tuned():
    """What adapters need: the layer's frozen weights stay, its trainable ones are tuned."""
    net = network(random_model("qwen3"))
    for name, parameter in net.model.named_parameters():
        parameter.requires_grad_("q_proj" in name)
    optimizer = method(net.model, layer=1)
    assert [each.name for each in optimizer.tuned] == ["model.layers.1.self_attn.q_proj.weight"]
    optimizer.step(net.closure, net.token_mask)
    net.model.requires_grad_(False)
    net.model.lm_head.requires_grad_(True)
    with pytest.raises(ValueError, match=r"layer=1: model.layers.1 has no parameter to tune"):
        method(net.model, layer=1)


def test_groups_and_a_schedule_made_before_the_scan_hold_after_it():
    model = plant(random_model("qwen3"), 1)
    norms = [p for n, p in model.named_parameters() if "norm" in n]
    rest = [p for n, p in model.named_parameters() if "norm" not in n and "embed" not in n]
    optimizer = method(model, params=[{"params": norms, "lr": 0.0}, {"params": rest}])
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, total_iters=2)
    net = study(optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 1e-3]
    before = weights(model)
    optimizer.step(net.closure, net.token_mask)
    schedule.step()
    assert optimizer.param_groups[1]["lr"] == pytest.approx(0.75e-3)
    moved = {name for name, p in model.named_parameters() if not p.equal(before[name])}
    assert moved == {name for name in before if ".layers.1." in name and "norm" not in name}


# The decoder layers


def test_layers_are_found_in_any_model():
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_layers": 2, "num_heads": 2}
    neo = GPTNeoForCausalLM(GPTNeoConfig(**sizes, attention_types=[[["global", "local"], 1]]))
    names = {family: decoder_layers(random_model(family))[0] for family in FAMILIES}
    assert names == dict.fromkeys(FAMILIES, "model.layers") | {"opt": "model.decoder.layers"}
    name, layers = decoder_layers(neo)
    assert (name, len(layers)) == ("transformer.h", 2)
    experts = nn.ModuleList([nn.Linear(4, 4) for _ in range(9)])
    mixture = nn.ModuleList([nn.ModuleDict({"experts": experts}) for _ in range(2)])
    heads = nn.ModuleList([nn.Linear(1, 1) for _ in range(5)])
    assert decoder_layers(nn.ModuleDict({"heads": heads, "body": mixture}))[0] == "body"
    assert decoder_layers(heads) == ("", list(heads))
    for none in (nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2), nn.Tanh()]), nn.ModuleList()):
        with pytest.raises(ValueError, match="has no decoder layers; needed"):
            decoder_layers(none)


def test_a_layer_that_shares_its_weights_cannot_be_tuned_alone():
    model = Stack(3).eval()
    model.layers[2] = model.layers[0]
    with pytest.raises(ValueError, match=r"layers.0: shares layers.2.norm.weight with the rest"):
        method(model, layer=0)
    method(model, layer=1)
    model.last.weight = model.layers[1].linear.weight
    with pytest.raises(ValueError, match=r"shares last.weight"):
        method(model, layer=1)


def test_the_last_matrix_of_a_layer():
    for family, name in (("qwen3", "mlp.down_proj"), ("llama", "mlp.down_proj"), ("opt", "fc2")):
        layer = decoder_layers(random_model(family))[1][0]
        assert last_matrix(layer) is layer.get_submodule(name)
        layer.adapter = nn.Linear(WIDTH, 2)  # small: not meant
        assert last_matrix(layer) is layer.get_submodule(name)


class Router(nn.Linear):
    def forward(self, input: Tensor) -> Any:
        return super().forward(input), None


def test_layers_that_cannot_be_scored_are_refused_and_one_that_is_given_is_not_scanned():
    model = Stack(2).eval()
    closure = lambda: model(torch.ones(3, 6)).square().mean()  # noqa: E731
    for layer in model.layers:
        layer.linear = nn.Sequential(Router(8, 8), First())
    with pytest.raises(ValueError, match=r"Block: its last matrix is that of a Router, which retu"):
        MeZO(model, 1e-3, 1e-3, params=DominantLayer()).calibrate([(closure, None)])
    given = DominantLayer(1, scan_batches=0)
    optimizer = DeepZero(model, 1e-3, 1e-3, queries=2, density=0.5, score_queries=1, params=given)
    optimizer.calibrate([(closure, None)])
    optimizer.step(closure)
    assert optimizer.forwards == optimizer.forwards_once + optimizer.forwards_per_step


class First(nn.Module):
    def forward(self, pair: Any) -> Tensor:
        return pair[0]


# Layers before the tuned one, run once a step


def count_calls(layers: list[nn.Module]) -> list[int]:
    """Count real runs of each layer: those that reach its first matrix."""
    counts = [0] * len(layers)

    def counter(index: int):
        def hook(module: nn.Module, args: Tensor, output: Tensor) -> None:
            counts[index] += 1

        return hook

    for index, layer in enumerate(layers):
        last_matrix(layer).register_forward_hook(counter(index))
    return counts


@every_family
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"base": "agzo", "queries": 2},
        {"base": "agzo", "estimator": "two_sided", "execution": "in_place"},
    ],
    ids=["mezo", "agzo-q2", "agzo-two-sided"],
)
def test_reused_layers_give_the_same_bits_and_are_run_once(family, options):
    ends = []
    for reuse in (True, False):
        net = network(random_model(family))
        optimizer = method(net.model, layer=3, lr=1e-2, reuse_prefix=reuse, **options)
        losses = [optimizer.step(net.closure, net.token_mask)]
        layers = decoder_layers(net.model)[1]
        counts = count_calls(layers)
        losses += [optimizer.step(net.closure, net.token_mask) for _ in range(5)]
        per_step = optimizer.forwards_per_step
        before = 5 if reuse else 5 * per_step
        assert counts == [before] * 3 + [5 * per_step] * 2
        assert (
            optimizer.forwards == optimizer.forwards_once - optimizer.wants_batches + 6 * per_step
        )
        assert not any("forward" in vars(layer) for layer in layers)
        ends.append((torch.stack(losses), weights(net.model)))
    assert ends[0][0].equal(ends[1][0])
    assert all(ends[0][1][name].equal(ends[1][1][name]) for name in ends[0][1])


def test_evaluation_between_steps_and_an_error_in_a_step_see_the_whole_model():
    net = network(random_model("qwen3"))
    other = network(net.model, seed=2)
    optimizer = method(net.model, layer=2)
    optimizer.step(net.closure, net.token_mask)
    calls = 0

    def failing() -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return net.closure()

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(failing, net.token_mask)
    fresh = copy.deepcopy(net.model)
    assert other.closure().equal(network(fresh, seed=2).closure())
    counts = count_calls(decoder_layers(net.model)[1])
    optimizer.estimate(other.closure, other.token_mask)
    assert counts == [1, 1, 2, 2, 2]
    net.closure()
    assert counts == [2, 2, 3, 3, 3]


@pytest.mark.parametrize("kind", [GRZO, AGZO])
def test_pieces_with_directions_of_their_own_are_reused_each_by_itself(kind):
    losses = []
    for reuse in (True, False):
        net = network(random_model("qwen3"))
        other = network(net.model, seed=2)
        scope = DominantLayer(layer=2, scan_batches=0, reuse_prefix=reuse)
        options = {"estimator": "per_piece", "update": "sgd", "accumulation": 2, "params": scope}
        optimizer = kind(net.model, lr=1e-2, eps=1e-3, **options)
        pieces = [Piece(each.closure, each.token_mask) for each in (net, other)]
        losses.append(torch.stack([optimizer.step(pieces) for _ in range(4)]))
        losses.append(optimizer.projected_grad)
    assert losses[0].equal(losses[2])
    assert losses[1].equal(losses[3])
    assert losses[1][0] != losses[1][1]


def test_a_closure_that_runs_the_model_twice_is_reused_call_by_call():
    losses = []
    for reuse in (True, False):
        net = network(random_model("qwen3"))
        other = network(net.model, seed=2)
        optimizer = method(net.model, layer=2, lr=1e-2, reuse_prefix=reuse)
        both = lambda net=net, other=other: net.closure() + other.closure()  # noqa: E731
        losses.append(torch.stack([optimizer.step(both) for _ in range(4)]))
    assert losses[0].equal(losses[1])


@pytest.mark.parametrize("execution", ["side_branch", "in_place", "batched"])
@pytest.mark.parametrize("queries", [1, 2])
def test_a_later_batch_whose_second_call_needs_the_tuned_layer_is_refused(execution, queries):
    model = random_model("qwen3")
    net = network(model)
    optimizer = method(
        model, layer=2, lr=1e-2, estimator="two_sided", execution=execution, queries=queries
    )
    optimizer.step(net.closure)
    ids = torch.randint(8, 40, (3, 6), generator=torch.Generator().manual_seed(3))
    table = model.get_input_embeddings().weight
    before = weights(model)

    def scored_again() -> Tensor:
        logits = model(ids, use_cache=False).logits
        expected = logits.softmax(-1) @ table  # what the first call says, as the second's input
        return model(inputs_embeds=expected, use_cache=False).logits[:, -1, 5].mean()

    with pytest.raises(ValueError, match=r"another input.*reuse_prefix=False"):
        optimizer.step(scored_again)
    assert all(before[name].equal(value) for name, value in weights(model).items())
    assert not any("forward" in vars(layer) for layer in decoder_layers(model)[1])
    optimizer.step(net.closure)  # the next batch can be reused again


def test_an_input_written_in_place_between_two_calls_is_refused():
    model = random_model("qwen3")
    net = network(model)
    optimizer = method(model, layer=2, lr=1e-2)
    optimizer.step(net.closure)
    held = torch.randn(3, 6, 32)

    def overwriting() -> Tensor:
        first = model(inputs_embeds=torch.zeros(3, 6, 32), use_cache=False).logits.mean()
        held.copy_(held + first)
        return model(inputs_embeds=held, use_cache=False).logits.mean()

    with pytest.raises(ValueError, match=r"changed in place.*reuse_prefix=False"):
        optimizer.step(overwriting)


@every_family
def test_a_closure_that_leaves_the_models_cache_on_is_reused_too(family):
    losses = []
    for reuse in (True, False):
        net = network(random_model(family))
        ids = torch.randint(8, 40, (3, 6), generator=torch.Generator().manual_seed(3))
        optimizer = method(net.model, layer=3, lr=1e-2, reuse_prefix=reuse)
        closure = lambda model=net.model, ids=ids: model(ids).logits[:, -1, 5].mean()  # noqa: E731
        losses.append(torch.stack([optimizer.step(closure) for _ in range(4)]))
    assert losses[0].equal(losses[1])


class Twice(Stack):
    """Runs its layers two times, so that all but the first run depend on each of them."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in [*self.layers, *self.layers]:
            x = layer(x)
        return self.last(x)


class Writing(Block):
    """Adds to its input in place."""

    def forward(self, x: Tensor) -> Tensor:
        return x.add_(self.linear(torch.tanh(self.norm(x))))


def test_a_model_that_cannot_be_reused_is_refused_and_runs_without():
    x = torch.randn(5, 6)
    writing = Stack(3).eval()
    writing.layers = nn.ModuleList([Writing(8) for _ in range(3)])
    for model in (Twice(3).eval(), writing):
        closure = lambda model=model: model(x).square().mean()  # noqa: E731
        with pytest.raises(ValueError, match=r"reuse_prefix=False"):
            method(model, layer=1).step(closure)
        method(model, layer=1, reuse_prefix=False).step(closure)
        method(model, layer=0).step(closure)


def test_a_batch_that_changes_within_a_step_is_an_error():
    net = network(random_model("qwen3"))
    optimizer = method(net.model, layer=2)
    optimizer.step(net.closure, net.token_mask)
    ids = iter([torch.ones(2, 4).long(), torch.ones(2, 5).long()])
    with pytest.raises(ValueError, match=r"\(2, 5, 32\) after \(2, 4, 32\)"):
        optimizer.step(lambda: net.model(input_ids=next(ids), use_cache=False).logits.mean())


# The tuned layer in float32


@every_family
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_tuned_layer_is_held_in_float32(family, dtype):
    model = random_model(family).to(dtype)
    net = network(model)
    plain = net.closure()
    optimizer = method(model, layer=2, lr=1e-9, base="agzo")
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if ".layers.2." in name else dtype)
    hidden = []
    for layer in decoder_layers(model)[1]:
        layer.register_forward_hook(lambda _, args, output: hidden.append(output.dtype))
    torch.testing.assert_close(net.closure(), plain, rtol=1e-2, atol=0)
    assert hidden == [dtype] * DEPTH
    before = weights(model)
    for _ in range(3):
        optimizer.step(net.closure, net.token_mask)
    for each in optimizer.tuned:  # an update that the low precision would lose
        if each.role == "linear":
            assert not each.parameter.equal(before[each.name]), each.name
    ids = torch.randint(8, 40, (2, 5))
    grown = model.generate(ids, max_new_tokens=4, do_sample=False)  # with its cache
    without = model.generate(ids, max_new_tokens=4, do_sample=False, use_cache=False)
    assert grown.shape == without.shape == (2, 9)


def test_what_is_saved_holds_the_layer_in_float32(tmp_path):
    net = network(random_model("qwen3").to(torch.bfloat16))
    optimizer = method(net.model, layer=2, lr=1e-3)
    for _ in range(3):
        optimizer.step(net.closure, net.token_mask)
    net.model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        for key in file.keys():  # noqa: SIM118
            wanted = torch.float32 if ".layers.2." in key else torch.bfloat16
            assert file.get_tensor(key).dtype == wanted
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    for name, parameter in net.model.named_parameters():
        assert again.get_parameter(name).equal(parameter.float())
    fresh = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    torch.testing.assert_close(network(fresh).closure(), net.closure(), rtol=1e-2, atol=0)


def test_a_second_optimizer_finds_the_layer_in_float32_already():
    model = qwen3(torch.bfloat16).model
    for _ in range(2):
        method(model, layer=1)
    layer = decoder_layers(model)[1][1]
    assert len(layer._forward_hooks) == len(layer._forward_pre_hooks) == 1


# Whole runs


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A saved model whose outlier is set off by the letter a, with which each prompt begins."""
    folder = tmp_path_factory.mktemp("planted")
    tokenizer = byte_tokenizer()
    token = tokenizer("a")["input_ids"][0]
    plant(random_model("qwen3"), 3, token).save_pretrained(folder)  # pyright: ignore
    tokenizer.save_pretrained(folder)
    return folder


def config(out, planted, *overrides):
    return tiny_run.config(
        out, "method=dominant_layer", "method.layer=null", "method.scan_batches=2",
        f"model.path={planted}", *overrides,
    )  # fmt: skip


def test_a_run_scans_tunes_and_goes_on_exactly_after_a_kill(tmp_path, planted):
    options = ("precision=bf16", "method.base=agzo", "train.schedule=linear")
    whole = config(tmp_path / "whole", planted, *options)
    killed = config(tmp_path / "killed", planted, *options)
    result = run(whole)
    assert result["study"]["layer"] == 3
    assert result["study"]["found"]["massive_activations"] == 3
    assert result["study"]["batches"] == 2
    assert len(result["study"]["scores"]["super_weight"]) == DEPTH
    assert result["forwards"] == 2 + 2 + 3 + 12 * 2  # scan, check, check of reuse, steps
    assert result["embeddings"] == "frozen"
    run_and_die(killed, parts_of_a_run, "sample_batch", 2 + 7)
    resumed = run(killed)
    assert resumed["resumed_at"] == [4]
    tiny_run.assert_same(killed, resumed, whole, result)
    saved = tiny_run.best_weights(whole, result)
    start = AutoModelForCausalLM.from_pretrained(planted, dtype=torch.bfloat16)
    moved = {n for n, p in start.named_parameters() if not saved[n].equal(p.to(saved[n].dtype))}
    assert moved == {name for name in saved if ".layers.3." in name}


def test_bad_layers_and_models_without_outliers_are_one_message(tmp_path, planted, capsys):
    cases = {
        "method.layer=5": ["method.layer=5: allowed are 0 to 4", "(method=dominant_layer)"],
        "method.layer=-1": ["method.layer=-1: allowed are 0 to 4", "(method=dominant_layer)"],
        "method.layer=one": ["method.layer=one: allowed is a whole number"],
        f"model.path={tiny_run.world() / 'model'}": [
            "method.detector=massive_activations: no layer is an outlier",
            "method.layer=... of a run",
        ],
    }
    for override, words in cases.items():
        with pytest.raises(BadInput) as error:
            run(config(tmp_path, planted, override))
        assert all(word in str(error.value) for word in words), str(error.value)
        assert len(str(error.value).splitlines()) == 1


def test_the_scan_is_shown(tmp_path, planted, capsys):
    given = config(tmp_path, planted, "method.layer=1", "method.detector=first_token")
    result = run(given)
    out, err = capsys.readouterr()
    assert "dominant_layer tunes layer 1 of 5, as given (scores " in err
    assert "study       tunes layer 1 of 5" in out
    assert result["study"]["given"] is True
    assert json.loads((given.folder / "result.json").read_text())["study"] == result["study"]
