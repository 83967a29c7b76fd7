"""Packed batches: no padding is computed, and losses, gradients and steps are the padded ones'."""

import copy
import json

import pytest
import tiny_run
import torch
from torch import Tensor, nn

from agzo import AGZO
from agzo.activations import capture
from agzo.activations.capture import ActivationCapture
from agzo.activations.subspace import leading
from agzo.rng import Noise
from agzo.tuned.select import select
from baselines import SGD, MeZO
from experiments.config.composed import compose
from experiments.config.errors import BadInput
from experiments.data import packing
from experiments.data.batches import Batch, collate, collate_rows
from experiments.data.encode import Encoder
from experiments.models import attention
from experiments.models.loss import label_logits, loss
from experiments.probe.memory_count import LiveBytes
from experiments.records.interrupt import Interrupted
from experiments.tasks import TASKS, Example
from experiments.training import pack_choice, prepare
from experiments.training import parts as parts_of_a_run
from experiments.training.objective import minus_accuracy
from experiments.training.session import run
from tests.quick import quick
from tests.text_models import byte_tokenizer, random_model

EXAMPLES = [
    Example("I", (" bad", " good"), 1),
    Example("a much longer prompt. It was", (" bad", " good"), 0),
    Example("three. It", (" a", " bb", " is a long one"), 2),
]
ONE_TOKEN = [  # one row each, the first of one token
    Example("I", ("x", "y"), 1),
    Example("a much longer prompt. It was", ("x", "y"), 0),
    Example("three. It", ("x", "y"), 1),
]
ENCODER = Encoder(byte_tokenizer(), 64)
CLASSIFICATION, LM = TASKS["sst2"], TASKS["squad"]
KINDS = {
    "shared rows": (ONE_TOKEN, CLASSIFICATION, True),
    "a row each": (ONE_TOKEN, CLASSIFICATION, False),
    "options of several tokens": (EXAMPLES, CLASSIFICATION, True),
    "lm": (EXAMPLES, LM, True),
}
FAMILIES = ("qwen3", "llama", "opt", "gpt2", "mistral")  # the last one with a sliding window
every_family = pytest.mark.parametrize("family", FAMILIES)
every_kind = pytest.mark.parametrize("kind", KINDS)


def ready(family: str = "qwen3") -> nn.Module:
    model = random_model(family)
    assert attention.install(model)
    return model


def both(kind: str = "options of several tokens") -> tuple[Batch, Batch]:
    """The same batch padded and packed."""
    examples, task, share = KINDS[kind]
    encoded = ENCODER.encode_all(examples)
    padded = collate(encoded, task, ENCODER.pad_id, share=share)
    found = collate(encoded, task, ENCODER.pad_id, share=share, pack_from=0.0)
    assert padded.layout is None
    assert found.layout is not None
    return padded, found


def flat_gradient(model: nn.Module, value: Tensor) -> Tensor:
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(value, parameters)
    return torch.cat([one.flatten() for one in found])


@every_kind
def test_a_packed_batch_holds_the_real_tokens_alone(kind: str):
    padded, found = both(kind)
    real = padded.token_mask
    assert found.input_ids.shape == (1, real.sum())
    assert torch.equal(found.input_ids[0], padded.input_ids[real])
    assert torch.equal(found.position_ids[0], padded.position_ids[real])
    assert found.token_mask.all()
    assert not found.padded
    assert torch.equal(found.targets, padded.targets)
    wanted = padded.input_ids[:, padded.label_positions][padded.target_mask]
    assert torch.equal(found.input_ids[0, found.label_positions], wanted)
    with pytest.raises(ValueError, match="packed already"):
        found.pack()


@every_family
@every_kind
def test_loss_and_gradient_are_the_padded_ones(family: str, kind: str):
    model = ready(family)
    values = [loss(model, batch) for batch in both(kind)]
    torch.testing.assert_close(values[1], values[0], rtol=1e-6, atol=1e-6)
    gradients = [flat_gradient(model, value) for value in values]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)


@every_family
def test_nothing_is_read_back_to_the_host(family: str):
    """On the meta device there are no values: a read-back would raise."""
    _, batch = both()
    with torch.no_grad():
        assert loss(ready(family).to("meta"), batch.to("meta")).is_meta


def test_the_metric_is_the_padded_one():
    model, right = ready(), torch.tensor([[False, True], [True, False], [False, True]])
    with torch.no_grad():
        values = [minus_accuracy(model, batch, right) for batch in both("shared rows")]
    assert torch.equal(values[0], values[1])


def test_bfloat16():
    model = ready().bfloat16()
    with torch.no_grad():
        values = [loss(model, batch) for batch in both()]
    assert values[1].dtype == torch.float32
    torch.testing.assert_close(values[1], values[0], rtol=3e-2, atol=3e-2)


def leading_with_signs(x: Tensor, rank: int, keep: Tensor | None = None) -> Tensor:
    """The leading directions with a sign that does not hang on rounding."""
    found = leading(x, rank, keep)
    return found * found.gather(0, found.abs().argmax(dim=0, keepdim=True)).sign()


@every_family
@pytest.mark.parametrize("method", ["mezo", "agzo", "sgd"])
def test_ten_steps_give_nearly_the_same_weights(family: str, method: str, monkeypatch):
    if (family, method) == ("gpt2", "agzo"):
        return  # its layers are no nn.Linear
    monkeypatch.setattr(capture, "leading", leading_with_signs)
    weights = []
    for batch in both("shared rows" if method == "agzo" else "lm"):
        model = ready(family)
        made = {
            "mezo": lambda m: MeZO(m, lr=1e-4, eps=1e-2),
            "agzo": lambda m: AGZO(m, lr=1e-3, eps=1e-2, basis="exact"),
            "sgd": lambda m: SGD(m, lr=1e-2),
        }
        optimizer = made[method](model)
        start = [p.detach().clone() for p in model.parameters()]
        for _ in range(10):
            optimizer.step(lambda m=model, b=batch: loss(m, b), token_mask=batch.token_mask)
        pairs = zip(model.parameters(), start, strict=True)
        weights.append(torch.cat([(p.detach() - s).flatten() for p, s in pairs]))
    assert weights[0].norm() > 0
    assert (weights[1] - weights[0]).norm() < 1e-2 * weights[0].norm()


@pytest.mark.parametrize("family", ["qwen3", "opt"])
@every_kind
def test_bases_span_the_same_subspace(family: str, kind: str):
    model = ready(family)
    linear = [each for each in select(model, None, "tuned")[0] if each.role == "linear"]
    spans = []
    for batch in both(kind):
        watch = ActivationCapture(linear, 3, None, Noise(0, 0), batch.token_mask)
        with torch.no_grad(), watch:
            loss(model, batch)
        spans.append({name: basis @ basis.T for name, basis in watch.bases.items()})
    assert spans[0].keys() == spans[1].keys()
    if kind in ("options of several tokens", "lm"):
        spans[0].pop(
            "lm_head.weight", None
        )  # padded, it sees positions left of a shorter option as well
    for name, span in spans[0].items():
        torch.testing.assert_close(spans[1][name], span, rtol=0, atol=1e-3, msg=name)


def test_a_batch_is_packed_from_its_share_of_padding_on():
    encoded = ENCODER.encode_all(ONE_TOKEN)
    share = collate(encoded, CLASSIFICATION, ENCODER.pad_id).padding
    assert share == pytest.approx(1 - (1 + 28 + 9) / (3 * 28))

    def layout(examples, least):
        return collate(examples, CLASSIFICATION, ENCODER.pad_id, pack_from=least).layout

    assert layout(encoded, share - 1e-6) is not None
    assert layout(encoded, share + 1e-6) is None
    assert layout(encoded[:1], 0.0) is None


def test_other_models_and_batches_run_as_before():
    padded, found = both()
    model, plain = ready(), random_model("qwen3")
    with torch.no_grad():
        assert torch.equal(label_logits(model, padded), label_logits(plain, padded))
        with pytest.raises(RuntimeError, match="knows nothing of its rows"):
            loss(plain, found)
        assert packing.active() is None
    assert not attention.install(random_model("gpt_neo"))
    assert not attention.install(nn.Linear(2, 2))


def test_an_attention_that_gets_other_shapes_says_so():
    layout = packing.layout_of(*[torch.ones(2, 3, dtype=torch.bool)] * 2)
    with pytest.raises(ValueError, match=r"got \(2, 1, 3, 4\).*allowed is \(1, heads, 6, size\)"):
        layout.spread(torch.zeros(2, 1, 3, 4))


# Grouped heads in float32


def test_repeated_heads_give_the_same(monkeypatch):
    model, rows = ready(), collate_rows([[3, 4, 5, 6], [7, 8, 9, 10]], [1, 1], 0)
    assert not attention.needs_repeat(torch.zeros(1, 1, 2, 1))
    wanted = loss_and_gradient(model, rows)
    monkeypatch.setattr(attention, "needs_repeat", lambda query: True)
    torch.testing.assert_close(loss_and_gradient(model, rows), wanted, rtol=1e-5, atol=1e-6)


def loss_and_gradient(model: nn.Module, rows) -> tuple[Tensor, Tensor]:
    logits = label_logits(model, rows)
    return logits.detach(), flat_gradient(model, logits.square().mean())


def test_heads_are_repeated_where_there_is_no_fused_kernel(monkeypatch):
    asked = []

    def watched(*arguments, **keywords):
        asked.append((arguments[0].shape[1], arguments[1].shape[1], keywords.get("enable_gqa")))
        return arguments[0]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    ids = torch.zeros(2, 5, dtype=torch.int64, device="meta")
    for dtype, installed in ((torch.float32, True), (torch.bfloat16, True), (torch.float32, False)):
        model = random_model("qwen3").to(dtype).to("meta")
        if installed:
            attention.install(model)
        with torch.no_grad(), LiveBytes("meta"):
            model(ids)
    assert asked[::2] == [(2, 2, None), (2, 1, True), (2, 1, True)]


# What a run decides


def ragged(out, *overrides):
    """A run whose batches have padding."""
    return tiny_run.config(out, "train.packing=always", *overrides)


def decide(config, model, task=CLASSIFICATION, optimizer=MeZO):
    encoded = ENCODER.encode_all(EXAMPLES)
    return pack_choice.choose(config, model, optimizer, task, encoded, ENCODER.pad_id)


def test_the_rule(tmp_path):
    asked = {
        p: tiny_run.config(tmp_path, f"train.packing={p}") for p in ("auto", "always", "never")
    }
    found = {name: decide(config, ready()) for name, config in asked.items()}
    assert {name: choice.least for name, choice in found.items()} == {
        "auto": pack_choice.LEAST, "always": 0.0, "never": None,
    }  # fmt: skip


class Odd(nn.Module):
    """An attention that is asked, and a model that lets tokens of one row see another's."""

    def __init__(self, inner) -> None:
        super().__init__()
        self.inner, self.config = inner, inner.config

    def forward(self, input_ids, attention_mask=None, position_ids=None, **keywords):
        output = self.inner(
            input_ids, attention_mask=attention_mask, position_ids=position_ids, **keywords
        )
        output.logits = output.logits.cumsum(1)
        return output


def obstacles():
    checkpointing, linear = ready().train(), ready()
    checkpointing.gradient_checkpointing_enable()
    linear.config = copy.deepcopy(linear.config)
    linear.config.layer_types = ["full_attention", "linear_attention"]
    padding = AGZO(ready(), lr=1e-3, eps=1e-3, include_padding=True)
    return {
        r"GPTNeoForCausalLM with model\.attention=sdpa does not ask": (random_model("gpt_neo"), {}),
        "layers of linear_attention": (linear, {}),
        "gradient checkpointing": (checkpointing, {}),
        r"method\.include_padding=true": (padding.model, {"optimizer": padding}),
        "answers a packed batch otherwise": (Odd(ready()), {}),
    }


def test_what_cannot_be_packed_is_padded_or_refused(tmp_path):
    auto, always = (tiny_run.config(tmp_path, f"train.packing={p}") for p in ("auto", "always"))
    for reason, (model, more) in obstacles().items():
        choice = decide(auto, model, **more)
        assert choice.least is None
        with pytest.raises(BadInput, match=f"train.packing=always: .*{reason}.*; allowed are auto"):
            decide(always, model, **more)


def test_objectives_that_generate_and_prefixes_are_padded(tmp_path):
    for overrides, task in (
        (("train.objective=metric",), LM),
        (("adapter=prefix",), CLASSIFICATION),
    ):
        with pytest.raises(BadInput, match=r"train\.packing=always"):
            decide(ragged(tmp_path, *overrides), ready(), task)


def test_the_key_names_what_is_allowed():
    with pytest.raises(BadInput, match=r"train\.packing=yes: allowed are auto, always, never"):
        compose(["train.packing=yes"])


def without_packing(result):
    return {k: v for k, v in result.items() if k not in ("packing", "config", "variant")}


@pytest.mark.parametrize("extra", [(), ("train.objective=metric", "method.eps=1e-1")])
def test_a_packed_run_gives_the_padded_numbers(tmp_path, extra):
    results = []
    for choice in ("never", "always"):
        config = tiny_run.config(
            tmp_path / choice, "method=mezo", f"train.packing={choice}", *extra
        )
        results.append(run(config))
    assert results[0]["packing"] == {
        "asked": "never", "least": None, "why": "train.packing=never",
    }  # fmt: skip
    assert results[1]["packing"]["least"] == 0.0
    for one, other in zip(results[0]["metrics"], results[1]["metrics"], strict=True):
        if one["loss"] is not None:
            assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)


@pytest.mark.parametrize(
    "overrides",
    quick(
        [("method=agzo",), ("method=dominant_layer",), ("method=lozo", "adapter=lora")],
        "method=agzo",
        name=" ".join,
    ),
)
def test_a_packed_run_resumes_exactly(tmp_path, monkeypatch, overrides):
    config, other = (ragged(tmp_path / name, *overrides) for name in ("cut", "whole"))
    whole = run(other)
    real, layouts = parts_of_a_run.collate, []

    def interrupt(*arguments, **keywords):
        batch = real(*arguments, **keywords)
        layouts.append(batch.layout)
        if len(layouts) == 7:
            raise Interrupted("stop")
        return batch

    monkeypatch.setattr(parts_of_a_run, "collate", interrupt)
    with pytest.raises(Interrupted):
        run(config)
    monkeypatch.setattr(parts_of_a_run, "collate", real)
    assert any(layout is not None for layout in layouts)
    tiny_run.assert_same(config, run(config), other, whole)


def test_what_a_method_studies_is_padded(tmp_path):
    parts = prepare.prepare(ragged(tmp_path, "method=zo_act"))
    assert parts.batch(4, 0, 0).layout is not None
    assert parts.batch(4, 0, 0, pack=False).layout is None
    rows = parts.batch(4, 0, 0, pack=False).token_mask.shape
    assert parts.task_loss(4, 0, 0, pack=False).token_mask.shape == rows


def test_the_saved_model_names_no_attention_of_ours(tmp_path):
    config = ragged(tmp_path, "train.save_model=true")
    run(config)
    saved = json.loads((config.folder / "model" / "config.json").read_text())
    assert packing.ATTENTION not in json.dumps(saved)
