"""Adapters: every method tunes them and them alone; losses, evaluation and files stay exact."""

import copy
import json

import peft
import pytest
import tiny_run
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, FalconConfig

from agzo import AGZO
from baselines import LOZO, SGD, AdamW, MeZO
from experiments.config.composed import compose
from experiments.config.errors import BadInput
from experiments.config.schema import AdapterConfig
from experiments.data.batches import collate, pad_left
from experiments.data.encode import Encoder
from experiments.evaluation.generate import generate
from experiments.evaluation.scoring import option_scores
from experiments.models import adapters
from experiments.models.loss import accepted_keywords, loss
from experiments.records import checkpoint
from experiments.run import main
from experiments.tasks import TASKS
from experiments.training import parts as parts_of_a_run
from experiments.training import prepare
from experiments.training.parts import virtual_tokens
from experiments.training.session import run
from tests.experiments.data.test_batches import EXAMPLES, ONE_TOKEN, TWO_OPTIONS, token_log_probs
from tests.networks import qwen3
from tests.text_models import FAMILIES, byte_tokenizer, random_model

ENCODER = Encoder(byte_tokenizer(), 64)
SST2, SQUAD = TASKS["sst2"], TASKS["squad"]
LORA = AdapterConfig("lora", rank=4, alpha=8.0, dtype="fp32")
PREFIX = AdapterConfig("prefix", tokens=3, init="activations", dtype="fp32")
PROJECTED = AdapterConfig("prefix", tokens=3, init="projected", dtype="fp32")
ADAPTERS = {"lora": LORA, "prefix": PREFIX, "projected": PROJECTED}
METHODS = {
    "agzo": lambda model: AGZO(model, lr=1e-3, eps=1e-3),
    "mezo": lambda model: MeZO(model, lr=1e-4, eps=1e-3),
    "lozo": lambda model: LOZO(model, lr=1e-4, eps=1e-3),
    "sgd": lambda model: SGD(model, lr=1e-2),
    "adamw": lambda model: AdamW(model, lr=1e-3),
}
ZERO_ORDER = {"agzo": AGZO, "mezo": MeZO, "lozo": LOZO}
every_family = pytest.mark.parametrize("family", FAMILIES)
every_adapter = pytest.mark.parametrize("adapter", ADAPTERS)


def adapted(family: str, adapter: str | AdapterConfig = "lora", seed: int = 0, moved: bool = False):
    """An adapted random model; `moved` puts every tuned value off its start."""
    config = ADAPTERS[adapter] if isinstance(adapter, str) else adapter
    model = adapters.attach(config, random_model(family), seed, 64)
    if moved:
        generator = torch.Generator().manual_seed(5)
        for parameter in tuned(model).values():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def tuned(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@every_family
@every_adapter
@pytest.mark.parametrize("method", METHODS)
def test_every_method_moves_the_adapter_and_nothing_else(family: str, adapter: str, method: str):
    model = adapted(family, adapter)
    batch = collate(ENCODER.encode_all(EXAMPLES), SST2, ENCODER.pad_id)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    if (adapter, method) == ("prefix", "agzo"):
        with pytest.raises(ValueError, match=r"no weight of an nn\.Linear"):
            METHODS[method](model)
        return
    optimizer = METHODS[method](model)
    mask = None if virtual_tokens(model) else batch.token_mask
    losses = [optimizer.step(lambda: loss(model, batch), token_mask=mask) for _ in range(3)]
    assert torch.stack(losses).isfinite().all()
    moved = {name for name, p in model.named_parameters() if not p.equal(before[name])}
    assert moved == set(tuned(model)) == {each.name for each in optimizer.tuned}
    marks = ("lora_A", "lora_B") if adapter == "lora" else ("prompt_encoder",)
    assert all(any(mark in name for mark in marks) for name in moved)


@every_family
def test_lora_starts_as_the_model_itself(family: str):
    batch = collate(ENCODER.encode_all(EXAMPLES), SST2, ENCODER.pad_id)
    with torch.no_grad():
        assert torch.equal(loss(adapted(family), batch), loss(random_model(family), batch))


@every_family
def test_lora_is_the_model_with_the_product_added_to_its_weights(family: str):
    config = AdapterConfig("lora", rank=2, alpha=5.0, dtype="fp32")
    model, plain = adapted(family, config, moved=True), random_model(family)
    for name in adapters.about(config, model)["layers"]:
        layer = model.get_base_model().get_submodule(name)
        product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        plain.get_submodule(name).weight.data += 5.0 / 2 * product.data
    batch = collate(ENCODER.encode_all(EXAMPLES), SST2, ENCODER.pad_id)
    with torch.no_grad():
        torch.testing.assert_close(loss(model, batch), loss(plain, batch), rtol=1e-5, atol=1e-5)


@every_adapter
@pytest.mark.parametrize("method", ["agzo", "mezo", "lozo"])
def test_both_executions_agree_on_an_adapter(adapter: str, method: str):
    if (adapter, method) == ("prefix", "agzo"):
        return
    batch = collate(ENCODER.encode_all(EXAMPLES), SST2, ENCODER.pad_id)
    found = []
    for execution in ("side_branch", "in_place"):
        model = adapted("qwen3", adapter, moved=True)
        optimizer = ZERO_ORDER[method](model, lr=1e-3, eps=1e-2, execution=execution)
        mask = None if virtual_tokens(model) else batch.token_mask
        losses = [optimizer.step(lambda m=model: loss(m, batch), mask) for _ in range(4)]
        found.append((torch.stack(losses), [p.detach() for p in tuned(model).values()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


@every_family
@pytest.mark.parametrize("tokens", [1, 5])
def test_a_prefix_starts_as_random_tokens_in_front_of_every_row(family: str, tokens: int):
    config = AdapterConfig("prefix", tokens=tokens, init="activations", dtype="fp32")
    model = adapted(family, config)
    plain, vocabulary = random_model(family), model.config.vocab_size
    first = torch.randint(vocabulary, (tokens,), generator=torch.Generator().manual_seed(0))
    for task in (SST2, SQUAD):
        encoded = ENCODER.encode_all(EXAMPLES)
        longer = copy.deepcopy(encoded)
        for example in longer:
            for row in example.ids:
                row[:0] = first.tolist()
        with torch.no_grad():
            found = loss(model, collate(encoded, task, ENCODER.pad_id))
            wanted = loss(plain, collate(longer, task, ENCODER.pad_id))
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@every_family
@every_adapter
def test_logits_are_made_at_label_positions_alone(family: str, adapter: str):
    model = adapted(family, adapter)
    batch = collate(ENCODER.encode_all(EXAMPLES), SST2, ENCODER.pad_id)
    seen = []
    head = model.get_base_model().get_output_embeddings()
    head.register_forward_hook(lambda module, given, out: seen.append(out.shape))
    loss(model, batch)
    assert [tuple(shape[:2]) for shape in seen] == [tuple(batch.targets.shape[:2])]
    assert batch.targets.shape[1] < batch.input_ids.shape[1]
    assert {"logits_to_keep", "past_key_values", "position_ids"} <= accepted_keywords(model)


@every_family
@every_adapter
def test_batched_and_cached_scores_are_those_of_single_rows(family: str, adapter: str):
    model = adapted(family, adapter, moved=True)
    encoded = ENCODER.encode_all([*EXAMPLES, *ONE_TOKEN, *TWO_OPTIONS])
    single = [
        [
            float(token_log_probs(model, *row).mean())
            for row in zip(e.ids, e.option_lengths, strict=True)
        ]
        for e in encoded
    ]
    plain = option_scores(random_model(family), encoded, ENCODER.pad_id, 4, "cpu")
    assert any(abs(own[0] - other[0]) > 0.05 for own, other in zip(single, plain, strict=True))
    for share, size in ((True, 2), (True, 64), (False, 64)):
        scores = option_scores(model, encoded, ENCODER.pad_id, size, "cpu", share=share)
        for own, wanted in zip(scores, single, strict=True):
            assert own.tolist() == pytest.approx(wanted, abs=1e-5)


@every_family
@every_adapter
def test_generation_from_the_cache_is_that_of_whole_sequences(family: str, adapter: str):
    model = adapted(family, adapter, moved=True)
    prompts = [ENCODER.tokenizer(text)["input_ids"] for text in ("one", "a longer prompt", "two: ")]
    logits: list[torch.Tensor] = []
    hook = model.register_forward_hook(lambda module, given, out: logits.append(out.logits[:, -1]))
    generate(model, ENCODER, prompts, 6)
    hook.remove()
    assert len(logits) == 6
    for row, prompt in enumerate(prompts):
        ids = list(prompt)
        for step in logits:
            with torch.no_grad():  # one row, no padding, no cache that is gone on from
                whole = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
            torch.testing.assert_close(step[row], whole, rtol=1e-4, atol=1e-4)
            ids.append(int(step[row].argmax()))


@every_adapter
def test_the_start_is_a_function_of_the_seed_and_leaves_torchs_generator(adapter: str):
    models = {}
    for name, seed, noise in (("one", 3, 1), ("same", 3, 2), ("other", 4, 1)):
        base = random_model("qwen3")
        torch.manual_seed(noise)
        state = torch.get_rng_state()
        models[name] = adapters.attach(ADAPTERS[adapter], base, seed, 64)
        assert torch.get_rng_state().equal(state)
        assert not any(module.training for module in models[name].modules())
    one, same, other = (
        torch.cat([p.flatten() for p in tuned(models[name]).values()]) for name in models
    )
    assert one.equal(same)
    assert not one.equal(other)


def test_agzo_takes_bases_from_the_inputs_of_both_lora_layers():
    net = qwen3(torch.float64)
    model = adapters.attach(LORA, net.model, 0, 64)
    for name, parameter in tuned(model).items():
        if "lora_B" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    optimizer = AGZO(model, lr=0.0, eps=1e-8, rank=2, power_steps=60)
    inputs: dict[str, torch.Tensor] = {}

    def note(name: str):
        def hook(module, given):
            inputs.setdefault(f"{name}.weight", given[0].detach())

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "lora_" in name:
            module.register_forward_pre_hook(note(name))
    optimizer.step(net.closure, net.token_mask)  # keeps its bases
    measured = optimizer.estimate(net.closure, net.token_mask, step=0)
    bases = optimizer.state_dict()["state"]["zo"]["bases"]
    assert set(bases) == set(tuned(model)) == set(inputs)
    for name, basis in bases.items():
        assert basis.shape == (4 if "lora_B" in name else 16, 2)
        kept = inputs[name][net.token_mask]
        right = torch.linalg.svd(kept).Vh[:2].T  # the leading directions of the layer's own input
        overlap = torch.linalg.svdvals(right.T.float() @ basis.float())
        assert overlap.min() > 0.99
    net.closure().backward()
    ((directions, slope),) = measured.queries
    wanted = sum(directions[p].inner(p.grad) for p in tuned(model).values())
    torch.testing.assert_close(slope, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["fp32", "model"])
@every_adapter
def test_the_adapters_dtype(adapter: str, dtype: str):
    config = copy.deepcopy(ADAPTERS[adapter])
    config.dtype = dtype
    model = adapters.attach(config, random_model("qwen3").to(torch.bfloat16), 0, 64)
    wanted = torch.float32 if dtype == "fp32" else torch.bfloat16
    assert {p.dtype for p in tuned(model).values()} == {wanted}
    batch = collate(ENCODER.encode_all(EXAMPLES), SST2, ENCODER.pad_id)
    method = MeZO if adapter == "prefix" else AGZO
    optimizer = method(model, lr=1e-3, eps=1e-2, rounding="stochastic")
    assert optimizer.step(lambda: loss(model, batch)).isfinite()
    about = adapters.about(config, model)
    assert about["dtype"] == str(wanted).removeprefix("torch.")
    assert about["parameters"] == sum(p.numel() for p in tuned(model).values())


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (["nothing"], ["adapter.targets=[nothing]", "not found", "k_proj", "q_proj", "v_proj"]),
        (
            ["q_proj", "k_prj"],
            ["targets=[q_proj,k_prj]", "k_prj matches no layer", "k_proj"],
        ),
        (["input_layernorm"], ["adapter.targets=[input_layernorm]", "q_proj"]),
    ],
)
def test_targets_that_match_nothing_are_named_beside_layers_there_are(targets, words):
    with pytest.raises(BadInput) as error:
        adapted("qwen3", AdapterConfig("lora", rank=2, alpha=4.0, targets=targets, dtype="fp32"))
    assert all(word in str(error.value) for word in words), error.value


def test_targets_may_be_given_and_have_a_default_where_peft_knows_the_architecture(monkeypatch):
    both = AdapterConfig("lora", rank=2, alpha=4.0, targets=["k_proj", "o_proj"], dtype="fp32")
    assert all("k_proj" in n or "o_proj" in n for n in tuned(adapted("llama", both)))
    unknown = random_model("qwen3")
    monkeypatch.setattr(type(unknown.config), "model_type", "unheard-of")
    with pytest.raises(BadInput, match=r"adapter\.targets=null: .*target_modules.*q_proj"):
        adapters.attach(LORA, unknown, 0, 64)


@pytest.mark.parametrize("family", ["mistral", "gpt_neo"])
def test_a_prefix_is_refused_where_padding_would_hide_it(family: str):
    with pytest.raises(BadInput, match=r"adapter\.name=prefix: .*\(window: 6\).*adapter=lora"):
        adapted(family, "prefix")
    assert adapted(family, "lora")


def test_a_window_that_holds_the_longest_row_and_the_prefix_is_no_reason_to_refuse():
    def wide(window: int) -> nn.Module:
        model = random_model("mistral")
        model.config.sliding_window = window
        return adapters.attach(PREFIX, model, 0, 64)

    encoded = ENCODER.encode_all([*EXAMPLES, *ONE_TOKEN])
    model = wide(67)
    plain = option_scores(model, encoded, ENCODER.pad_id, 1, "cpu", share=False)
    found = option_scores(model, encoded, ENCODER.pad_id, 64, "cpu")
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)
    with pytest.raises(BadInput, match=r"window: 66"):
        wide(66)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["adapter=lora", "adapter.rank=0"], ["adapter.rank=0", "1 or more"]),
        (["adapter=lora", "adapter.alpha=0"], ["adapter.alpha=0", "above 0"]),
        (["adapter=lora", "adapter.alpha=inf"], ["adapter.alpha=inf", "finite number above 0"]),
        (["adapter=lora", "adapter.alpha=nan"], ["adapter.alpha=nan", "finite number above 0"]),
        (["adapter=lora", "adapter.rank=null"], ["adapter.rank=null", "needs a value"]),
        (["adapter=lora", "adapter.targets=[]"], ["adapter.targets=[]", "names of linear layers"]),
        (["adapter=lora", "adapter.tokens=5"], ["adapter.tokens=5", "adapter=lora", "rank, alpha"]),
        (["adapter.rank=4"], ["adapter.rank=4", "adapter=none", "allowed are name"]),
        (["adapter=prefix", "adapter.tokens=0"], ["adapter.tokens=0", "1 or more"]),
        (["adapter=prefix", "adapter.init=zeros"], ["adapter.init=zeros", "activations, random"]),
        (["adapter=prefix", "adapter.dtype=fp8"], ["adapter.dtype=fp8", "fp32, model"]),
        (["adapter=dora"], ["adapter=dora", "lora, none, prefix"]),
    ],
)
def test_bad_keys_are_named(overrides, words):
    with pytest.raises(BadInput) as error:
        compose(overrides)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method=icl", "adapter=lora"], ["adapter.name=lora", "method=icl", "adapter=none"]),
        (["method=zero_shot", "adapter=prefix"], ["adapter.name=prefix", "trains nothing"]),
        (["method=agzo", "adapter=prefix"], ["nn.Linear", "adapter=prefix", "init=projected"]),
        (["method=agzo", "adapter=lora", "method.rank=999"], ["method.rank=999", "1 to"]),
        (["method=mezo", "adapter=prefix", "method.embeddings=frozen"], ["frozen", "embedding"]),
        (["adapter=prefix", "method=mezo", "adapter.tokens=250"], ["tiny+prefix allows 6"]),
        (["adapter=prefix", "method=mezo", "adapter.tokens=9999"], ["tokens=9999", "1 to 254"]),
        (["adapter=lora", "method=mezo", "adapter.targets=[x]"], ["adapter.targets=[x]", "q_proj"]),
    ],
)
def test_what_a_run_cannot_use_is_one_message(tmp_path, monkeypatch, capfd, overrides, words):
    given = tiny_run.arguments(tmp_path, "model.name=tiny", *overrides)
    if "method=agzo" not in overrides and "method=mezo" not in overrides:
        given.remove("method.lr=1e-3")
    monkeypatch.setattr("sys.argv", ["run", *given])
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    assert main() == 2
    err = capfd.readouterr().err
    assert len(err.splitlines()) == 1
    assert all(word in err for word in words), err


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings")  # PEFT's own
def test_an_adapter_of_a_tied_head_is_not_merged_and_one_of_an_untied_is(tmp_path):
    """The sum would change the embedding too, which the adapter beside the head leaves alone."""
    ids = torch.arange(5, 25)[None]
    config = AdapterConfig("lora", rank=4, alpha=8.0, targets=["lm_head"], dtype="fp32")
    for family, tied in (("opt", True), ("qwen3", False)):
        model = adapted(family, config, moved=True)
        model.save_pretrained(tmp_path / family, save_embedding_layers=False)
        plain = random_model(family)
        if tied:
            with pytest.raises(BadInput, match=r"opt: layer lm_head shares its weight with anothe"):
                adapters.merged(plain, tmp_path / family)
            continue
        whole = adapters.merged(plain, tmp_path / family)
        torch.testing.assert_close(whole(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("init", ["activations", "random", "projected"])
def test_a_model_whose_keys_peft_takes_for_others_is_refused_before_a_step(init: str):
    """Falcon has one key and value head for all queries, of which PEFT's prefix knows nothing."""
    model = AutoModelForCausalLM.from_config(
        FalconConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    )
    config = AdapterConfig("prefix", tokens=3, init=init, dtype="fp32")
    with pytest.raises(BadInput, match=r"cannot put a prefix on FalconFor.* allowed is adapter=lo"):
        adapters.attach(config, model, 0, 64)


class Stopped(Exception):
    pass


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # PEFT's own
@pytest.mark.parametrize(
    ("method", "adapter"),
    [
        ("agzo", ["adapter=lora"]),
        pytest.param("adamw", ["adapter=lora"], marks=pytest.mark.slow),
        ("mezo", ["adapter=prefix"]),
        pytest.param("agzo", ["adapter=prefix", "adapter.init=projected"], marks=pytest.mark.slow),
    ],
)
def test_a_run_saves_the_adapter_alone_and_goes_on_exactly(tmp_path, monkeypatch, method, adapter):
    words = (f"method={method}", *adapter, "train.save_model=true", "train.max_length=64")
    whole = tiny_run.config(tmp_path / "whole", *words)
    result = run(whole)
    name = adapter[0].partition("=")[2]
    assert whole.folder.parts[-4] == f"model+{name}"
    assert result["model"]["name"] == f"model+{name}"
    assert result["model"]["class"] == "Qwen3ForCausalLM"
    assert result["adapter"]["name"] == name
    assert result["adapter"]["parameters"] == result["tuned_parameters"]
    assert result["tuned_parameters"] < result["model"]["parameters"]
    saved = tiny_run.best_weights(whole, result)
    assert sum(value.numel() for value in saved.values()) == result["tuned_parameters"]

    config = tiny_run.config(tmp_path / "parts", *words)
    real, calls = parts_of_a_run.sample_batch, []

    def stop(*arguments):
        calls.append(1)
        if len(calls) == 7:
            raise Stopped
        return real(*arguments)

    monkeypatch.setattr(parts_of_a_run, "sample_batch", stop)
    with pytest.raises(Stopped):
        run(config)
    monkeypatch.undo()
    again = run(config)
    assert again["resumed_at"] == [4]
    tiny_run.assert_same(config, again, whole, result)

    base = AutoModelForCausalLM.from_pretrained(tiny_run.world() / "model")
    loaded = peft.PeftModel.from_pretrained(base, whole.folder / "model").eval()
    parts = prepare.prepare(whole)
    checkpoint.load_weights(whole.folder / "checkpoints", result["best_step"], parts.model)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, parts.model(ids).logits)
    files = {path.name for path in (whole.folder / "model").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= files
    assert "model.safetensors" not in files
    stored = json.loads((whole.folder / "model" / "adapter_config.json").read_text())
    assert stored["base_model_name_or_path"] == str(tiny_run.world() / "model")
    assert load_file(whole.folder / "model" / "adapter_model.safetensors")


def test_an_adapter_is_another_run(tmp_path):
    folders = {
        tiny_run.config(tmp_path, "method=mezo", *more).folder
        for more in ([], ["adapter=lora"], ["adapter=prefix"])
    }
    assert len(folders) == 3
    run(tiny_run.config(tmp_path, "method=mezo", "adapter=lora"))
    with pytest.raises(BadInput, match=r"adapter\.rank: 8 -> 4"):
        run(tiny_run.config(tmp_path, "method=mezo", "adapter=lora", "adapter.rank=4"))


def test_prefix_rows_keep_their_mask_behind_a_cache():
    """The mask of a continued call may hold padding of its own: it is not the prefix that grows."""
    model = adapted("qwen3", "prefix", moved=True)
    ids, mask, positions = pad_left([[5, 6], [7, 8, 9, 10]], 0)
    with torch.no_grad():
        whole = model(ids, attention_mask=mask.long(), position_ids=positions).logits[:, -1]
        past = model(
            ids[:, :3], attention_mask=mask[:, :3].long(), position_ids=positions[:, :3],
            use_cache=True,
        ).past_key_values  # fmt: skip
        assert past.get_seq_length() == 3 + 3  # virtual tokens, columns
        behind = model(
            ids[:, 3:], attention_mask=mask.long(), position_ids=positions[:, 3:],
            past_key_values=past,
        ).logits[:, -1]  # fmt: skip
    torch.testing.assert_close(behind, whole, rtol=1e-5, atol=1e-5)


def test_truncation_and_lengths_leave_room_for_the_prefix():
    assert prepare._context(random_model("opt")) == 256
    assert prepare._context(adapted("opt", "prefix")) == 253
    assert prepare._context(adapted("opt", "lora")) == 256
