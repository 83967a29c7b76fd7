"""Where two choices meet: an adapter and a method of a part, the metric and reused layers."""

import json
import shutil

import pytest
import tiny_run
import torch
from text_models import byte_tokenizer
from transformers import AutoModelForCausalLM

from agzo.tuned.layers import decoder_layers
from baselines import on_dominant_layer
from experiments.config.errors import BadInput
from experiments.config.schema import AdapterConfig
from experiments.data.batches import collate
from experiments.data.encode import Encoder
from experiments.merge import merge
from experiments.models import adapters
from experiments.models.loss import loss
from experiments.probe import scene
from experiments.records.provenance import refuse_other_model
from experiments.tasks import TASKS
from experiments.training import parts as parts_of_a_run
from experiments.training import prepare
from experiments.training.session import run
from tests.experiments.data.test_batches import EXAMPLES
from tests.experiments.training.test_resume import run_and_die
from tests.outlier_models import FAMILIES, plant, random_model
from tests.quick import quick

ENCODER = Encoder(byte_tokenizer(), 64)
LORA = AdapterConfig("lora", rank=4, alpha=8.0, dtype="fp32")
ZO_ACT = ("method=zo_act", "method.large_state=true")
DOMINANT = ("method=dominant_layer", "method.layer=1", "method.scan_batches=0")
peft_warns = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")


def read_rows(config):
    text = (config.folder / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def refusal(tmp_path, *overrides: str) -> str:
    with pytest.raises(BadInput) as error:
        run(tiny_run.config(tmp_path, *overrides))
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.mark.parametrize("adapter", ["lora", "prefix"])
def test_zo_act_attaches_an_adapter_of_its_own_and_takes_no_other(tmp_path, adapter):
    words = (f"adapter.name={adapter}: method=zo_act cannot tune it", "allowed is adapter=none")
    message = refusal(tmp_path, *ZO_ACT, f"adapter={adapter}")
    assert all(word in message for word in words), message
    with pytest.raises(BadInput, match=words[0]):  # a probe refuses it too
        scene.load(tiny_run.arguments(tmp_path, *ZO_ACT, f"adapter={adapter}"))


def test_a_prefix_lies_in_no_layer(tmp_path):
    message = refusal(tmp_path, *DOMINANT, "adapter=prefix")
    assert "adapter.name=prefix: method=dominant_layer" in message
    assert "allowed are adapter=none and adapter=lora" in message


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("base", ["mezo", "lozo", "lozo_m", "agzo"])
@pytest.mark.parametrize("layer", [None, 1])
def test_a_dominant_layer_of_an_adapted_model_is_its_adapter(family, base, layer):
    """The layer is found through the adapter; what else lies in it stays frozen."""
    batch = collate(ENCODER.encode_all(EXAMPLES), TASKS["sst2"], ENCODER.pad_id)
    token = int(batch.input_ids[batch.token_mask][0])
    ends = []
    for reuse in (True, False):
        model = adapters.attach(LORA, plant(random_model(family), 2, token), 0, 64)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        options = {"rank": 2} if base != "mezo" else {}
        if base == "lozo_m":
            options |= {"large_state": True, "refresh_every": 2}
        optimizer = on_dominant_layer(
            model, 1e-3, 1e-3, layer=layer, base=base, reuse_prefix=reuse, **options
        )
        optimizer.calibrate([(lambda m=model: loss(m, batch), batch.token_mask)])
        for _ in range(3):
            optimizer.step(lambda m=model: loss(m, batch), batch.token_mask)
        moved = {name for name, p in model.named_parameters() if not p.equal(before[name])}
        inside = f"layers.{2 if layer is None else layer}."
        assert moved == {name for name in before if "lora_" in name and inside in name}
        assert moved == {each.name for each in optimizer.tuned}
        ends.append([p.detach() for p in model.parameters()])
    assert all(one.equal(other) for one, other in zip(*ends, strict=True))


@peft_warns
def test_a_run_tunes_the_adapter_of_one_layer_and_goes_on_exactly(tmp_path):
    words = (*DOMINANT, "adapter=lora", "train.save_model=true", "precision=bf16")
    whole = tiny_run.config(tmp_path / "whole", *words)
    result = run(whole)
    assert result["study"] is None
    assert result["adapter"]["name"] == "lora"
    assert 0 < result["tuned_parameters"] < result["adapter"]["parameters"]
    killed = tiny_run.config(tmp_path / "killed", *words)
    run_and_die(killed, parts_of_a_run, "sample_batch", 7)
    again = run(killed)
    assert again["resumed_at"] == [4]
    tiny_run.assert_same(killed, again, whole, result)
    parts = prepare.prepare(whole)
    saved = tiny_run.best_weights(whole, result)
    start = dict(parts.model.named_parameters())
    moved = {name for name in saved if not saved[name].equal(start[name].to(saved[name].dtype))}
    assert moved
    assert moved <= {each.name for each in parts.optimizer.tuned}
    assert all("lora_" in name and ".layers.1." in name for name in moved)
    merge(whole.folder, tmp_path / "merged")
    merged = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "merged").named_parameters())
    path = tiny_run.world() / "model"
    plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    changed = {n for n, p in plain.named_parameters() if not p.equal(merged[n].bfloat16())}
    assert changed
    assert all(".layers.1.self_attn." in name for name in changed)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, id="-".join(options[:2]), marks=marks)
        for marks, options in (
            ([], ["base=lozo_m", "refresh_every=3", "large_state=true"]),
            (pytest.mark.slow, ["base=lozo_m", "update=sgd"]),
            (pytest.mark.slow, ["base=mezo", "update=adam", "large_state=true"]),
            (
                pytest.mark.slow,
                ["base=agzo", "warm_start=true", "estimator=two_sided", "update=momentum"],
            ),
            (pytest.mark.slow, ["base=agzo", "basis=exact", "refresh_every=3"]),
        )
    ],
)
def test_moments_and_variants_inside_one_layer_go_on_exactly(tmp_path, options):
    words = (*DOMINANT, *(f"method.{option}" for option in options))
    whole, killed = (tiny_run.config(tmp_path / end, *words) for end in ("whole", "killed"))
    result = run(whole)
    run_and_die(killed, parts_of_a_run, "sample_batch", 7)
    again = run(killed)
    assert again["resumed_at"] == [4]
    tiny_run.assert_same(killed, again, whole, result)


def test_the_defaults_of_a_dominant_layer_are_those_of_its_base():
    kinds = {}
    for base in ("mezo", "lozo", "lozo_m", "agzo"):
        model = random_model("qwen3")
        made = on_dominant_layer(model, 1e-3, 1e-3, layer=1, base=base, large_state=True)
        kinds[base] = (made.update, made.estimator, getattr(made, "rank", None))
    assert kinds == {
        "mezo": ("sgd", "two_sided", None),
        "lozo": ("sgd", "two_sided", 2),
        "lozo_m": ("momentum", "two_sided", 2),
        "agzo": ("sgd", "one_sided", 1),
    }


@pytest.mark.parametrize("update", quick(["momentum", "adam"], "adam"))
@peft_warns
def test_moments_of_an_adapter_go_on_exactly(tmp_path, update):
    words = ("method=agzo", "adapter=lora", f"method.update={update}", "method.large_state=true")
    whole, killed = (tiny_run.config(tmp_path / end, *words) for end in ("whole", "killed"))
    result = run(whole)
    run_and_die(killed, parts_of_a_run, "sample_batch", 7)
    tiny_run.assert_same(killed, run(killed), whole, result)


@peft_warns
def test_a_lora_run_is_merged_and_a_prefix_is_not(tmp_path):
    words = ("method=mezo", "train.save_model=true", "train.max_length=64", "train.steps=4")
    lora = tiny_run.config(tmp_path, *words, "adapter=lora", "method.lr=1e-2")
    run(lora)
    merge(lora.folder, tmp_path / "merged")
    ids = torch.tensor([[5, 6, 7, 8]])
    parts = prepare.prepare(lora)
    adapted = AutoModelForCausalLM.from_pretrained(tiny_run.world() / "model")
    adapted.load_adapter(str(lora.folder / "model"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=1e-4, atol=1e-4)
        assert not torch.equal(merged(ids).logits, parts.model(ids).logits)
    prefix = tiny_run.config(tmp_path, *words, "adapter=prefix")
    run(prefix)
    with pytest.raises(BadInput, match="of kind PREFIX_TUNING; allowed is LORA"):
        merge(prefix.folder, tmp_path / "new")


@peft_warns
def test_an_adapter_is_not_merged_into_another_model_than_its_own(tmp_path):
    folder = shutil.copytree(tiny_run.world() / "model", tmp_path / "model")
    words = ("method=mezo", "adapter=lora", "train.save_model=true", "train.steps=4")
    config = tiny_run.config(tmp_path, *words, "train.max_length=64", f"model.path={folder}")
    run(config)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(BadInput, match=r"model\.side_files_sha256=.* that of the run, None; allo"):
        merge(config.folder, tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(folder)
    next(model.parameters()).data.mul_(0.5)
    model.save_pretrained(folder)
    with pytest.raises(BadInput, match=r"model\.sha256=.*: the start model is not that of the run"):
        merge(config.folder, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    with pytest.raises(BadInput, match=r"model\.commit=b: .* that of the run, a; allowed"):
        refuse_other_model({"commit": "a"}, {"commit": "b"})


def test_reused_layers_and_generated_tokens_exclude_each_other(tmp_path):
    """What a tuned layer generates enters the layers before it."""
    metric = (*DOMINANT, "train.objective=metric")
    message = refusal(tmp_path, *metric, "task=squad")
    assert "method.reuse_prefix=true: with train.objective=metric squad generates" in message
    assert "allowed is method.reuse_prefix=false" in message
    words = (*metric, "method.eps=1.0", "method.lr=0.3")
    one, other = (tiny_run.config(tmp_path / end, *words) for end in ("one", "other"))
    other.method["reuse_prefix"] = False
    assert run(one)["objective"] == run(other)["objective"] == "metric"
    rows = [
        [(row["loss"], row["zero_grads"]) for row in read_rows(config)] for config in (one, other)
    ]
    assert rows[0] == rows[1]
    assert any(zeros < 1 for _, zeros in rows[0] if zeros is not None)


@pytest.mark.parametrize("method", [ZO_ACT, (*DOMINANT[:2], "method.scan_batches=2")])
def test_a_method_studies_the_loss_where_it_trains_the_metric(tmp_path, method):
    result = run(tiny_run.config(tmp_path, *method, "train.objective=metric"))
    assert result["status"] == "finished"


@peft_warns
def test_lora_beside_quantised_weights(tmp_path):
    pytest.importorskip("torchao")
    words = ("method=mezo", "adapter=lora", "model.quantize=int8", "train.save_model=true")
    config = tiny_run.config(tmp_path, *words)
    result = run(config)
    assert result["tuned_parameters"] == result["adapter"]["parameters"]
    saved = json.loads((config.folder / "model" / "adapter_config.json").read_text())
    assert saved["peft_type"] == "LORA"
    saved = tiny_run.best_weights(config, result)
    assert all("lora_" in name for name in saved)


def test_the_layers_of_an_adapted_model_are_those_of_the_model():
    model = random_model("qwen3")
    count = len(decoder_layers(model)[1])
    name, layers = decoder_layers(adapters.attach(LORA, model, 0, 64))
    assert len(layers) == count
    assert name.endswith("model.layers")
