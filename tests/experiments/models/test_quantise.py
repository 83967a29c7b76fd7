"""Quantised models: what is replaced, what it weighs, that ZO-Act trains beside it, who refuses."""

import pytest
import tiny_run
import torch
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from agzo import AGZO
from agzo.tuned.linears import body_linears, is_quantised, stored_bytes
from baselines import LOZO, SGD, AdamW, MeZO, ZOAct
from experiments.config.errors import BadInput
from experiments.merge import merge
from experiments.models import quantise as quantising
from experiments.models.quantise import quantise
from experiments.training import parts as parts_of_a_run
from experiments.training.session import run
from tests.baselines.test_zo_act import IDS, MASK, save_lora, token_loss, trained
from tests.networks import Network

pytest.importorskip("torchao")

KINDS = ("int8", "int4")


def model(kind: str = "none", tied: bool = True) -> nn.Module:
    """Widths that are multiples of 32, in bfloat16, in which int4 is fast on a CPU too."""
    torch.manual_seed(0)
    made = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=259, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, head_dim=32,
            num_key_value_heads=1, intermediate_size=128, max_position_embeddings=64,
            initializer_range=0.1, pad_token_id=0, tie_word_embeddings=tied,
        )
    )  # fmt: skip
    made = made.to(torch.bfloat16).eval()
    return made if kind == "none" else quantise(made, kind)


def network(kind: str) -> Network:
    made = model(kind)
    return Network(made, lambda: token_loss(made, IDS, MASK), MASK)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_linear_layers_are_quantised_and_the_rest_is_as_it_was(kind, tied):
    plain, made = dict(model(tied=tied).named_parameters()), model(kind, tied=tied)
    body = {f"{name}.weight" for name in body_linears(made)}
    assert len(body) == 14
    saved = 0
    for name, parameter in made.named_parameters():
        assert is_quantised(parameter) == (name in body)
        if name in body:
            saved += plain[name].numel()
        else:
            assert parameter.equal(plain[name])
    # of 2 bytes a value 1 or 1/2 are left, and scales: one a row, or 4 bytes for 32 inputs
    gained = stored_bytes(model(tied=tied)) - stored_bytes(made)
    share = {"int8": (0.9, 1.0), "int4": (1.35, 1.4)}[kind]
    assert share[0] * saved < gained < share[1] * saved


@pytest.mark.parametrize(("kind", "atol"), [("int8", 0.02), ("int4", 0.15)])
def test_zo_act_trains_beside_quantised_weights_and_they_stay(kind, atol):
    net, plain = network(kind), network("none")
    before = {n: codes(p) for n, p in net.model.named_parameters() if is_quantised(p)}
    start = token_loss(net.model, IDS, MASK)
    assert abs(start - token_loss(plain.model, IDS, MASK)) < atol
    optimizer = trained(net, steps=15, lr=0.03)
    assert token_loss(net.model, IDS, MASK) < start - 0.05
    assert len(before) == 14
    for name, parameter in net.model.named_parameters():
        if name in before:
            assert all(a.equal(b) for a, b in zip(codes(parameter), before[name], strict=True))
    full = trained(plain, steps=0)
    for name, (a, _) in optimizer.adapter().items():  # the bases of the float model, nearly
        overlap = (a @ full.adapter()[name][0].T).norm() / 2**0.5
        assert overlap > {"int8": 0.99, "int4": 0.9}[kind], name
    with pytest.raises(ValueError, match=r"merge: the weight of layer .*q_proj is quantised"):
        optimizer.merge()


def codes(parameter: nn.Parameter) -> list[torch.Tensor]:
    names, _ = parameter.__tensor_flatten__()  # pyright: ignore
    return [getattr(parameter, name).clone() for name in names]


@pytest.mark.parametrize("kind", KINDS)
def test_the_branch_adds_the_same_beside_a_quantised_layer(kind):
    """y - y(C = 0) is (x V) C^T, whatever the weight is."""
    net = network(kind)
    optimizer = trained(net, steps=3)
    layer = net.model.model.layers[0].mlp.down_proj  # pyright: ignore
    x = torch.randn(3, 5, 128, dtype=torch.bfloat16)
    with torch.no_grad():
        y = layer(x)
        a, b = optimizer.adapter()["model.layers.0.mlp.down_proj"]
        wanted = x.float() @ a.T @ b.T
        layer.zo_act.coefficients.zero_()
        difference = y.float() - layer(x).float()
    torch.testing.assert_close(difference, wanted, rtol=0.05, atol=0.05 * wanted.abs().max().item())


def test_the_adapter_of_a_quantised_base_is_an_ordinary_one(tmp_path):
    from peft import PeftModel

    net = network("int8")
    optimizer = trained(net)
    save_lora(net.model, optimizer.adapter(), tmp_path)
    loaded = PeftModel.from_pretrained(model("int8"), str(tmp_path)).eval()  # pyright: ignore
    with torch.no_grad():
        wanted, got = net.model(IDS).logits.float(), loaded(IDS).logits.float()
    assert (wanted - got).norm() < 0.02 * wanted.norm()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_layer_with_a_bias_in_every_dtype(kind, dtype):
    torch.manual_seed(0)
    small = nn.Sequential(nn.Linear(64, 48)).to(dtype).eval()
    x = torch.randn(2, 5, 64).to(dtype)
    with torch.no_grad():
        plain = small(x).float()
        quantise(small, kind)
        optimizer = ZOAct(small, 1e-2, 1e-3, update="sgd", calibration_batches=1)
        optimizer.calibrate([(lambda: small(x).float().square().mean(), None)])
        assert (small(x).float() - plain).norm() < {"int8": 0.01, "int4": 0.12}[kind] * plain.norm()
        for _ in range(3):
            optimizer.step(lambda: small(x).float().square().mean())
    assert optimizer.finite
    with pytest.raises(BadInput, match="layer 0 has 64 inputs and 40 outputs; allowed are multi"):
        quantise(nn.Sequential(nn.Linear(64, 40)), "int4")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", [MeZO, LOZO, AGZO, SGD, AdamW])
def test_a_quantised_weight_cannot_be_tuned(method, kind):
    made = model(kind)
    options = {"lr": 1e-3} if method in (SGD, AdamW) else {"lr": 1e-3, "eps": 1e-3}
    name = r"model\.layers\.0\.self_attn\.q_proj\.weight"
    message = rf"parameter {name}: its layer is quantised .*allowed are plain floats.*zo_act"
    with pytest.raises(ValueError, match=message):
        method(made, **options)
    with pytest.raises(ValueError, match=message):
        method(made, **options, params=[made.get_parameter(name.replace("\\", ""))])
    if method is not AGZO:  # which needs a linear weight
        norms = method(made, **options, params=lambda name, _: "norm" in name)
        assert all("norm" in each.name for each in norms.tuned)


def test_frozen_quantised_weights_are_left_out_where_plain_ones_are_frozen_too():
    """As below a PEFT adapter: its base is frozen as a whole."""
    made = model("int8")
    for parameter in made.parameters():
        parameter.requires_grad_(False)
    made.model.norm.weight.requires_grad_(True)  # pyright: ignore
    assert [each.name for each in MeZO(made, lr=1e-3, eps=1e-3).tuned] == ["model.norm.weight"]


def test_a_run_on_a_quantised_model_goes_on_exactly(tmp_path):
    overrides = ("method=zo_act", "model.quantize=int8", "precision=bf16", "train.save_model=true")
    config = tiny_run.config(tmp_path / "whole", *overrides)
    result = run(config)
    assert result["config"]["model"]["quantize"] == "int8"
    plain = run(tiny_run.config(tmp_path / "plain", *overrides, "model.quantize=none"))
    assert result["model_gib"] < 0.85 * plain["model_gib"]
    assert result["model"] == plain["model"]
    with pytest.raises(
        BadInput, match=r"model\.quantize=int8: nothing can be added to quantised weights"
    ):
        merge(config.folder, tmp_path / "merged")
    interrupted = tiny_run.config(tmp_path / "parts", *overrides)
    from tests.test_resume import run_and_die

    run_and_die(interrupted, parts_of_a_run, "sample_batch", 4 + 7)
    again = run(interrupted)
    assert again["resumed_at"] == [4]
    tiny_run.assert_same(interrupted, again, config, result)


def test_bad_input(tmp_path):
    config = tiny_run.config(tmp_path, "method=mezo", "model.quantize=int8")
    with pytest.raises(BadInput, match=r"method=mezo: parameter model\.layers\.0.* is quantised"):
        run(config)
    config = tiny_run.config(tmp_path, "method=zo_act", "model.quantize=int4")
    message = (
        r"model\.quantize=int4: layer model\.layers\.0\.mlp\.down_proj has 48 inputs and 32 outputs"
    )
    with pytest.raises(BadInput, match=message):
        run(config)
    with pytest.raises(BadInput, match=r"model\.quantize=int3: allowed are none, int8, int4"):
        tiny_run.config(tmp_path, "method=zo_act", "model.quantize=int3")
    config = tiny_run.config(tmp_path, "method=zo_act", "method.rank=33")
    with pytest.raises(BadInput, match=r"method\.rank=33: layer .* an input width of 32"):
        run(config)
    with torch.no_grad():
        spoiled = tiny_run.random_model("qwen3")
        spoiled.model.norm.weight.fill_(float("inf"))  # pyright: ignore
        spoiled.model.layers[1].input_layernorm.weight.fill_(float("inf"))  # pyright: ignore
    spoiled.save_pretrained(tmp_path / "model")  # pyright: ignore
    tiny_run.byte_tokenizer().save_pretrained(tmp_path / "model")
    config = tiny_run.config(tmp_path, "method=zo_act", f"model.path={tmp_path / 'model'}")
    with pytest.raises(BadInput, match=r"method=zo_act: calibration: .*layers\.1.* is not finite"):
        run(config)
    with pytest.raises(ValueError, match="rank=65"):
        ZOAct(model("int8"), 1e-3, 1e-3, rank=65)


def test_without_torchao_it_is_one_clear_message(monkeypatch):
    monkeypatch.setattr(quantising, "import_torchao", lambda: False)
    with pytest.raises(BadInput, match=r"model\.quantize=int8: it needs torchao .*is none"):
        model("int8")
