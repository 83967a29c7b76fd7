"""ZO-Act beyond the rules: its bases, its estimate, its adapter, and what it refuses."""

import copy
from functools import partial

import pytest
import tiny_run
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, PrefixTuningConfig, TaskType, get_peft_model
from text_models import random_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from agzo import LowRank
from agzo.activations.calibration import leading_inputs
from agzo.estimator import measure
from agzo.execution.perturb import InPlace
from agzo.rng import Noise
from agzo.tuned.linears import body_linears
from baselines import ZOAct
from experiments.config.errors import BadInput
from experiments.merge import merge
from experiments.models.adapter_files import save_lora
from experiments.records import checkpoint
from experiments.training.session import run
from tests.methods import Method
from tests.networks import NETWORKS, Network, mlp, qwen3, weights

IDS = torch.randint(3, 200, (5, 12), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS, dtype=torch.bool)
MASK[0, :5] = MASK[3, :2] = False  # left padding


def text(family: str = "qwen3", ids: Tensor = IDS, mask: Tensor | None = MASK) -> Network:
    """Layers of 32 and 48 inputs: more than the columns that the subspace iteration has."""
    model = random_model(family)
    return Network(model, lambda: token_loss(model, ids, mask), mask)


def token_loss(model: nn.Module, ids: Tensor, mask: Tensor | None) -> Tensor:
    logits = model(ids, attention_mask=None if mask is None else mask.long()).logits[:, :-1]
    return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


def trained(net: Network, steps: int = 4, **options) -> ZOAct:
    options = {"lr": 0.05, "rank": 2, "calibration_batches": 2, **options}
    optimizer = Method("zo_act", ZOAct).make(net, large_state=True, **options)
    for _ in range(steps):
        optimizer.step(net.closure, net.token_mask)
    assert isinstance(optimizer, ZOAct)
    return optimizer


def exact(net: Network, mask: Tensor | None) -> dict[str, tuple[Tensor, Tensor]]:
    """Singular values and right vectors of each layer's whole input, in float64."""
    inputs: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0]}))
        for name, layer in body_linears(net.model).items()
    ]
    with torch.no_grad():
        net.closure()
    for hook in hooks:
        hook.remove()
    found = {}
    for name, x in inputs.items():
        flat = x.reshape(-1, x.shape[-1])
        rows = flat if mask is None else flat[mask.flatten()]
        _, values, right = torch.linalg.svd(rows.double())
        found[name] = (values, right.T)
    return found


def bases(optimizer: ZOAct) -> dict[str, Tensor]:
    return {name: a.T for name, (a, _) in optimizer.adapter().items()}


def assert_leading(basis: Tensor, values: Tensor, right: Tensor, atol: float) -> int:
    """Each column is +- the singular vector of its place where its value stands apart."""
    r = basis.shape[1]
    ratio = values[1 : r + 1] / values[:r]  # to the next smaller one
    apart = (ratio < 0.9) & (torch.cat([ratio.new_zeros(1), ratio[:-1]]) < 0.9)
    cosines = (basis.double() * right[:, :r]).sum(dim=0).abs()
    torch.testing.assert_close(
        cosines[apart], torch.ones(int(apart.sum())).double(), rtol=0, atol=atol
    )
    torch.testing.assert_close(basis.T @ basis, torch.eye(r), rtol=0, atol=1e-5)
    return int(apart.sum())


@pytest.mark.parametrize("family", ["qwen3", "llama", "opt"])
def test_bases_are_the_leading_singular_vectors_of_the_real_tokens(family):
    net = text(family)
    wanted = exact(net, MASK)
    many = trained(net, steps=0, rank=3, calibration_batches=1, calibration_passes=40)
    found = bases(many)
    assert found.keys() == wanted.keys()
    apart = sum(assert_leading(found[name], *wanted[name], 1e-5) for name in wanted)
    assert apart >= len(wanted)
    few = bases(trained(text(family), steps=0, rank=3, calibration_batches=1))
    for name, (values, right) in wanted.items():  # the default passes: nearly all of the energy
        kept = (few[name].double().T @ (right[:, : len(values)] * values)).norm()
        assert kept > 0.98 * values[:3].norm(), name


def test_subspace_iteration_over_batches_equals_an_exact_svd():
    """Three batches, singular values that fall by a third each: three passes find them exactly."""
    torch.manual_seed(0)
    width, tokens, rank = 120, 90, 4
    left = torch.linalg.qr(torch.randn(tokens, tokens).double()).Q
    right = torch.linalg.qr(torch.randn(width, tokens).double()).Q
    values = 100 * 1.5 ** -torch.arange(tokens).double()
    x = (left * values @ right.T).float()
    layer = nn.Linear(width, 7)
    batches = [(partial(layer, part), None) for part in x.split([20, 30, 40])]
    for passes, atol in ((3, 2e-8), (1, 1e-1)):
        found = leading_inputs(
            {"layer": layer}, batches, rank, passes, Noise(0, 0), lambda closure: closure()
        )["layer"]
        assert_leading(found, values, right, atol)


def test_padding_has_no_part_in_the_bases():
    other = torch.where(MASK, IDS, 7)
    first, second = text(), text(ids=other)
    unmasked = text(ids=other)
    unmasked.token_mask = None
    options = {"steps": 0, "rank": 1, "calibration_batches": 1}
    one, two = bases(trained(first, **options)), bases(trained(second, **options))
    wrong = bases(trained(unmasked, **options))
    differs = 0
    for name in one:
        cosine = (one[name] * two[name]).sum().abs().item()
        assert cosine == pytest.approx(1.0, abs=1e-5), name
        differs += (one[name] * wrong[name]).sum().abs().item() < 0.999
    assert differs > 4


def test_layers_with_one_input_share_one_basis(tmp_path):
    net = text()
    optimizer = trained(net, steps=0)
    layer = net.model.model.layers[1]  # pyright: ignore
    attention, feed = layer.self_attn, layer.mlp
    query = attention.q_proj.zo_act.basis
    assert query is attention.k_proj.zo_act.basis is attention.v_proj.zo_act.basis
    assert feed.gate_proj.zo_act.basis is feed.up_proj.zo_act.basis
    distinct = {id(branch.basis) for branch in optimizer._branches.values()}
    assert len(optimizer._branches) == 14
    assert len(distinct) == 8  # qkv, o, gate and up, down: of two layers
    net.model.save_pretrained(tmp_path)  # pyright: ignore
    kept = [name for name in checkpoint.weights(net.model) if name.endswith("basis")]
    assert len(kept) == 8


@pytest.mark.parametrize("network", NETWORKS)
def test_every_linear_layer_but_the_head_gets_a_branch_and_nothing_else_trains(network):
    net = NETWORKS[network]()
    optimizer = Method("zo_act", ZOAct).make(net, large_state=True)
    wanted = {
        name
        for name, module in net.model.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    }
    assert {each.name for each in optimizer.tuned} == {f"{n}.zo_act.coefficients" for n in wanted}
    trains = {name for name, p in net.model.named_parameters() if p.requires_grad}
    assert trains == {each.name for each in optimizer.tuned}
    assert all(each.parameter.dtype == torch.float32 for each in optimizer.tuned)


def test_full_width_is_plain_zo_on_the_weights():
    """With V square, C's direction Z is the weights' direction Z V^T: same loss, same estimate."""
    net, plain = qwen3(torch.float64), qwen3(torch.float64)
    lr, eps, rank = 1e-3, 1e-3, 16
    optimizer = ZOAct(
        net.model, lr, eps, rank, 1, update="sgd", params=lambda name, _: "down_proj" not in name
    )
    optimizer.calibrate([(net.closure, net.token_mask)])
    measured = optimizer.estimate(net.closure, net.token_mask)
    ((directions, g),) = measured.queries
    own = dict(plain.model.named_parameters())
    on_weights = {
        own[f"{name}.weight"]: LowRank(
            directions[branch.coefficients].dense().double(), branch.basis
        )
        for name, branch in optimizer._branches.items()
    }
    assert len(on_weights) == 12
    for direction in on_weights.values():
        square = direction.right
        torch.testing.assert_close(square @ square.T, torch.eye(16).double(), rtol=0, atol=1e-6)
    reference = measure("two_sided", plain.closure, lambda _: on_weights, 1, eps, InPlace(), None)
    torch.testing.assert_close(measured.loss, reference.loss, rtol=0, atol=1e-12)
    torch.testing.assert_close(g, reference.queries[0][1], rtol=1e-9, atol=1e-9)
    optimizer.step(net.closure, net.token_mask)
    optimizer.merge()
    with torch.no_grad():
        for weight, direction in on_weights.items():
            weight -= lr * g * direction.dense()
    moved = weights(net.model)
    for name, weight in own.items():
        torch.testing.assert_close(moved[name], weight.detach(), rtol=0, atol=1e-12)


def test_a_narrow_basis_measures_the_projected_gradient():
    """g is <G V V^T, Z V^T>: the slope of the weights' gradient as far as V holds it."""
    net, plain = qwen3(torch.float64), qwen3(torch.float64)
    optimizer = ZOAct(net.model, 1e-3, 1e-6, 2, 1, update="sgd")
    optimizer.calibrate([(net.closure, net.token_mask)])
    ((directions, g),) = optimizer.estimate(net.closure).queries
    plain.closure().backward()
    gradients = {name: p.grad for name, p in plain.model.named_parameters()}
    slope = 0.0
    for name, branch in optimizer._branches.items():
        v, z = branch.basis, directions[branch.coefficients].dense().double()
        slope += ((gradients[f"{name}.weight"] @ v @ v.T) * (z @ v.T)).sum().item()
    assert g.item() == pytest.approx(slope, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("estimator", ["one_sided", "two_sided"])
def test_adam_on_the_coefficients_equals_its_textbook_form(estimator):
    net = qwen3(torch.float64)
    optimizer = ZOAct(net.model, 0.01, 1e-3, 2, 1, estimator=estimator, queries=2, large_state=True)
    optimizer.calibrate([(net.closure, net.token_mask)])
    ours = {each.parameter: torch.zeros_like(each.parameter) for each in optimizer.tuned}
    first = {c: torch.zeros_like(c) for c in ours}
    second = {c: torch.zeros_like(c) for c in ours}
    for t in range(1, 6):
        queries = optimizer.estimate(net.closure).queries
        optimizer.step(net.closure)
        for c, value in ours.items():
            gradient = sum(g * d[c].dense().double() for d, g in queries) / 2
            first[c] = 0.9 * first[c] + 0.1 * gradient
            second[c] = 0.999 * second[c] + 0.001 * gradient**2
            scale = (second[c] / (1 - 0.999**t)).sqrt() + 1e-8
            value -= 0.01 * first[c] / (1 - 0.9**t) / scale
            torch.testing.assert_close(c.detach(), value, rtol=1e-3, atol=1e-6)  # float32 moments


def test_a_step_of_the_coefficients_is_not_lost_beside_bfloat16_weights():
    layer = nn.Sequential(nn.Linear(16, 8, bias=False)).to(torch.bfloat16).eval()
    x = torch.randn(20, 16, dtype=torch.bfloat16)
    optimizer = ZOAct(layer, 0.1, 1e-3, large_state=True)
    optimizer.calibrate([(lambda: layer(x).sum(), None)])
    with torch.no_grad():
        layer[0].weight.zero_()
        optimizer.tuned[0].parameter.fill_(0.3)
        before = layer(x).float()
        optimizer.tuned[0].parameter.add_(3e-3)  # below half a spacing of .3 in bfloat16 it is not
        after = layer(x).float()
    torch.testing.assert_close((after / before).mean().item(), 1.01, rtol=0, atol=2e-3)


@pytest.mark.parametrize("family", ["qwen3", "llama", "opt"])
def test_the_adapter_loads_with_peft_and_the_merge_says_the_same(tmp_path, family):
    net = text(family)
    plain = net.model(IDS).logits.detach()
    net.model.save_pretrained(tmp_path / "base")  # pyright: ignore
    optimizer = trained(net, rank=2)
    wanted = net.model(IDS).logits.detach()
    assert (wanted - plain).abs().max() > 0.1
    save_lora(net.model, optimizer.adapter(), tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(loaded(IDS).logits, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loaded.merge_and_unload()(IDS).logits, wanted, rtol=1e-4, atol=1e-4)
    duplicate = copy.deepcopy(net.model)
    optimizer.merge()
    assert not any("zo_act" in name for name in net.model.state_dict())
    assert all(p.requires_grad for p in net.model.parameters())
    torch.testing.assert_close(net.model(IDS).logits, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(duplicate(IDS).logits, wanted)  # has branches of its own
    with pytest.raises(RuntimeError, match="merged; allowed is a new optimizer"):
        optimizer.step(net.closure)
    net.model.save_pretrained(tmp_path / "merged")  # pyright: ignore
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(again(IDS).logits, wanted, rtol=1e-4, atol=1e-4)


def test_a_merge_into_bfloat16_rounds_once():
    model = nn.Sequential(nn.Linear(16, 8)).to(torch.bfloat16).eval()
    x = torch.randn(20, 16, dtype=torch.bfloat16)
    optimizer = ZOAct(model, 0.1, 1e-3, update="sgd")
    optimizer.calibrate([(lambda: model(x).sum(), None)])
    optimizer.step(lambda: model(x).float().square().mean())
    ((a, b),) = optimizer.adapter().values()
    wanted = (model[0].weight.float() + b @ a).to(torch.bfloat16)
    optimizer.merge()
    assert model[0].weight.equal(wanted)


def test_part_of_the_layers_are_named_in_full_for_peft(tmp_path):
    net = text()
    net.model.save_pretrained(tmp_path / "base")  # pyright: ignore
    optimizer = trained(net, params=lambda name, _: ".layers.1." in name and "q_proj" in name)
    assert [each.name for each in optimizer.tuned] == [
        "model.layers.1.self_attn.q_proj.zo_act.coefficients"
    ]
    save_lora(net.model, optimizer.adapter(), tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(loaded(IDS).logits, net.model(IDS).logits, rtol=1e-4, atol=1e-4)


def test_a_run_saves_an_adapter_and_checkpoints_hold_no_frozen_weight(tmp_path):
    config = tiny_run.config(tmp_path, "method=zo_act", "method.lr=0.05", "train.save_model=true")
    result = run(config)
    assert result["forwards"] == 2 + 4 * 3 + 12 * 2  # the check, the calibration, the steps
    assert result["embeddings"] == "frozen"
    kept = tiny_run.best_weights(config, result)
    assert all(".zo_act." in name for name in kept)
    assert result["tuned_parameters"] == sum(
        v.numel() for name, v in kept.items() if name.endswith("coefficients")
    )
    base = tiny_run.world() / "model"
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    assert result["model"]["parameters"] == sum(p.numel() for p in model.parameters())
    loaded = PeftModel.from_pretrained(model, str(config.folder / "model")).eval()
    own = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    optimizer = ZOAct(own, 1.0, 1.0)
    optimizer.calibrate([(lambda: own(IDS).logits.mean(), None)])
    checkpoint.load_weights(config.folder / "checkpoints", result["best_step"], own)
    torch.testing.assert_close(loaded(IDS).logits, own(IDS).logits, rtol=1e-4, atol=1e-4)
    assert (config.folder / "model" / "tokenizer.json").exists()

    merge(config.folder, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(merged(IDS).logits, own(IDS).logits, rtol=1e-4, atol=1e-4)
    with pytest.raises(BadInput, match="merged: it is there already"):
        merge(config.folder, tmp_path / "merged")
    with pytest.raises(BadInput, match=r"it holds no adapter_config\.json; .*save_model=true"):
        merge(tmp_path, tmp_path / "new")


BAD = {
    "rank": (
        {"rank": 9},
        r"rank=9: the widest input of a linear layer is 3, of 8; allowed are ranks from 1 to 8",
    ),
    "no rank": ({"rank": 0}, "rank=0: allowed are whole numbers >= 1"),
    "batches": ({"calibration_batches": 0}, "calibration_batches=0: allowed .* >= 1"),
    "passes": ({"calibration_passes": 0}, "calibration_passes=0: allowed .* >= 1"),
    "embeddings": ({"embeddings": "tuned"}, "embeddings='tuned': allowed is 'frozen'"),
    "no layer": ({"params": lambda *_: False}, "no linear layer beside the head is tuned"),
    "parameters": ({"params": []}, r"allowed is None or a filter \(name, weight\) -> bool"),
    "update": ({"update": "adamw"}, "update='adamw': allowed are sgd, momentum, adam"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_are_refused_and_leave_the_model_alone(case):
    net = mlp()
    before = set(net.model.state_dict())
    options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        ZOAct(net.model, **{"lr": 0.1, "eps": 0.1, "large_state": True, **options})
    assert set(net.model.state_dict()) == before
    assert all(p.requires_grad and not p.grad for p in net.model.parameters())
    assert not any(module._forward_hooks for module in net.model.modules())


@pytest.mark.parametrize(
    "config", [LoraConfig(target_modules=["q_proj"]), PrefixTuningConfig(num_virtual_tokens=2)]
)
def test_a_model_with_an_adapter_is_refused_and_one_whose_adapter_is_merged_is_not(config):
    """Its branch beside an adapter's own matrices would be neither method, and saved as neither."""
    config.task_type = TaskType.CAUSAL_LM
    adapted = get_peft_model(random_model("qwen3"), config)
    before = {name: p.requires_grad for name, p in adapted.named_parameters()}
    for model in (adapted, adapted.base_model) if config.peft_type == "LORA" else (adapted,):
        with pytest.raises(ValueError, match=r"model: it holds an adapter of PEFT .*; allowed is"):
            ZOAct(model, lr=0.1, eps=0.1)
    assert {name: p.requires_grad for name, p in adapted.named_parameters()} == before
    if config.peft_type == "LORA":
        assert ZOAct(adapted.merge_and_unload(), lr=0.1, eps=0.1).tuned


def test_bad_calibration_is_refused():
    net = qwen3()
    options = {"lr": 0.1, "eps": 0.1, "large_state": True}
    optimizer = ZOAct(net.model, **options)
    with pytest.raises(RuntimeError, match="no bases yet; call calibrate"):
        optimizer.step(net.closure)
    with pytest.raises(ValueError, match="calibration: no batches; allowed is at least one"):
        optimizer.calibrate([])
    nothing = torch.zeros(3, 7, dtype=torch.bool)
    with pytest.raises(ValueError, match="rank=1: the calibration batches hold 0 tokens for layer"):
        optimizer.calibrate([(net.closure, nothing)])
    with pytest.raises(ValueError, match="the token mask fits no layer's input"):
        optimizer.calibrate([(net.closure, nothing[:, 1:])])
    with pytest.raises(ValueError, match="no batch reaches any of 14 layers"):
        optimizer.calibrate([(lambda: torch.zeros(()), None)])
    with pytest.raises(ValueError, match="has a branch of ZO-Act already"):
        ZOAct(net.model, **options)
    with torch.no_grad():
        net.model.model.embed_tokens.weight.fill_(float("nan"))  # pyright: ignore
    with pytest.raises(ValueError, match=r"input of layer model\.layers\.0.* is not finite"):
        optimizer.calibrate([(net.closure, net.token_mask)])


def test_a_weight_of_two_layers_cannot_be_merged_or_looked_at():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    model[1].weight = model[0].weight
    optimizer = ZOAct(model, 0.1, 0.1, large_state=True)
    with pytest.raises(ValueError, match="merge: layer 0 shares its weight with another one"):
        optimizer.merge()
    with pytest.raises(ValueError, match="on_weights: layer 0 shares its weight with another one"):
        optimizer.on_weights({})
    assert optimizer.adapter().keys() == {"0", "1"}
