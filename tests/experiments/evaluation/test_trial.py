"""What a few rows show of a model before its run, and how it is asked from then on."""

import json
import math
import sys

import odd_models
import pytest
import tiny_run
import torch
from odd_models import ENCODERS, NO_COPIES, ONE_LENGTH, OTHERS, odd_model
from text_models import byte_tokenizer, random_model
from torch import nn

from agzo.tuned.roles import Usage
from experiments.config.errors import BadInput
from experiments.data.batches import collate
from experiments.data.encode import Encoded, EncodeError, Encoder
from experiments.evaluation.asking import USUAL, Asking
from experiments.evaluation.evaluate import evaluate, questions
from experiments.evaluation.generate import generate
from experiments.evaluation.scoring import option_scores
from experiments.evaluation.trial import check_runs, try_out
from experiments.models import loading
from experiments.models.loss import loss
from experiments.models.reach import leave_out, unreached
from experiments.replay import replay
from experiments.run import main
from experiments.tasks import TASKS
from experiments.tasks.base import Example
from experiments.training import pack_choice
from experiments.training.session import run
from tests.quick import quick

ENCODER = Encoder(byte_tokenizer(), 96)
ONE_TOKEN = [
    Example("good film It was", (" terrible", " great"), 0),
    Example("the film was long and she liked every part of it It was", (" bad", " fine"), 1),
]
SST2, COPA, SQUAD = (TASKS[name] for name in ("sst2", "copa", "squad"))
ENCODED = ENCODER.encode_all(ONE_TOKEN)


def tried(model: nn.Module, task=COPA, encoded=ENCODED):
    return try_out("model.path=here", model, task, encoded, ENCODER.pad_id)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_is_no_causal_language_model(name, dtype):
    model = odd_model(ENCODERS, name).to(dtype)
    with pytest.raises(BadInput, match=r"model.path=here: \w+ is no causal .* answer in sight"):
        tried(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["qwen3", "llama", "opt", "mistral", "gpt_neo", "gpt2"])
def test_of_most_models_there_is_nothing_to_say(family, dtype):
    found = tried(random_model(family).to(dtype))
    assert found.asking == USUAL
    assert (found.left_out, found.why, found.lines()) == ([], {}, [])


@pytest.mark.parametrize("name", ONE_LENGTH)
def test_scores_and_losses_do_not_depend_on_the_batch(name):
    """A row beside others, in whatever batch, has the score it has alone."""
    model = odd_model(ONE_LENGTH, name)
    found = tried(model)
    assert not found.asking.padded
    assert found.lines()[-1].endswith("each length is run by itself")
    rows = [
        Encoded((row,), (length,), 0, False)
        for example in ENCODED
        for row, length in zip(example.ids, example.option_lengths, strict=True)
    ]
    alone = option_scores(model, rows, ENCODER.pad_id, 1, "cpu", share=False)
    wanted = torch.cat(alone).split([len(example.ids) for example in ENCODED])
    wrong = option_scores(model, ENCODED, ENCODER.pad_id, 8, "cpu", share=False, asking=USUAL)
    assert max(float((a - b).abs().max()) for a, b in zip(wrong, wanted, strict=True)) > 1e-2
    for size, asking in ((1, found.asking), (4, found.asking), (8, found.asking), (8, None)):
        scores = option_scores(model, ENCODED, ENCODER.pad_id, size, "cpu", asking=asking)
        for one, other in zip(scores, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    for task in (SST2, COPA):
        together = loss(model, collate(ENCODED, task, ENCODER.pad_id, one_length=True))
        alone = [loss(model, collate([e], task, ENCODER.pad_id, one_length=True)) for e in ENCODED]
        weights = [1.0, 1.0]
        if task.loss == "lm":
            weights = [float(e.option_lengths[e.label]) for e in ENCODED]
        mean = sum(w * one for w, one in zip(weights, alone, strict=True)) / sum(weights)
        torch.testing.assert_close(together, mean, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NO_COPIES)
def test_options_are_scored_plainly_where_a_cache_has_no_copies(name):
    model = odd_model(NO_COPIES, name)
    found = tried(model)
    assert found.asking == Asking(cached=False)
    assert found.lines()[0].endswith("so each is scored behind its own prompt")
    asked = questions(ENCODER, COPA, ONE_TOKEN)
    one, many = (
        evaluate(model, ENCODER, COPA, asked, size, "cpu", asking=found.asking)["loss"]
        for size in (1, 8)
    )
    assert math.isclose(one, many, abs_tol=1e-5)


class Forgets(nn.Module):
    """A model that takes a cache, and does not look into it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = random_model("qwen3")
        self.config = self.inner.config

    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=False):
        width = input_ids.shape[1]
        mask = None if attention_mask is None else attention_mask[:, -width:]
        return self.inner(input_ids, attention_mask=mask, use_cache=use_cache)


def test_a_cache_that_is_not_read_is_seen():
    found = tried(Forgets().eval())
    assert found.asking == Asking(cached=False)
    assert "log-probabilities differ" in found.why["options"]
    with pytest.raises(BadInput, match=r"task=squad: it generates text, and Forgets does not go"):
        tried(Forgets().eval(), SQUAD)


@pytest.mark.parametrize(("family", "name"), [(OTHERS, "mamba"), (ONE_LENGTH, "recurrent_gemma")])
def test_a_model_without_a_cache_generates_nothing(family, name):
    with pytest.raises(BadInput, match=r"task=squad: it generates text, .* tasks with options"):
        tried(odd_model(family, name), SQUAD)
    assert tried(random_model("qwen3"), SQUAD).asking == USUAL


def test_prompts_of_one_length_are_continued_together():
    model = odd_model(ONE_LENGTH, "roberta")
    prompts = [[5, 6, 7], [8, 9], [10, 11, 12], [13, 14, 15, 16]]
    alone = [generate(model, ENCODER, [prompt], 6)[0] for prompt in prompts]
    assert generate(model, ENCODER, prompts, 6, asking=Asking(padded=False)) == alone


# --- what text never reaches


def test_towers_and_attention_to_an_encoder_are_left_out_and_named():
    model = odd_model(OTHERS, "gemma3")
    found = tried(model)
    assert found.left_out == ["model.multi_modal_projector", "model.vision_tower"]
    assert found.lines() == [
        "left as it is, for text never comes to it: model.multi_modal_projector, model.vision_tower"
    ]
    leave_out(model, found.left_out)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("vision" not in name and "multi_modal" not in name)
    bart = tried(odd_model(ONE_LENGTH, "bart")).left_out
    layers = [f"model.decoder.layers.{index}" for index in range(2)]
    assert bart == sorted(
        f"{layer}.{part}"
        for layer in layers
        for part in ("encoder_attn", "encoder_attn_layer_norm")
    )


class Experts(nn.Module):
    """Rows choose experts; one module is for images, one parameter for nothing."""

    def __init__(self, reached: int) -> None:
        super().__init__()
        self.reached = reached
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.images = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.spare = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return self.experts[self.reached](x)


def test_an_expert_that_no_token_chose_is_no_tower():
    model = Experts(1)
    with Usage(model.parameters()) as usage:
        model(torch.ones(2, 4))
    assert unreached(model, usage) == ["images", "spare"]
    model.images.requires_grad_(False)
    assert unreached(model, usage) == ["spare"]


# --- one line where something does not fit


def test_a_packed_batch_that_fails_is_padded(tmp_path, monkeypatch):
    model = random_model("qwen3")
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    config = tiny_run.config(tmp_path, f"model.path={folder}")
    model, _ = loading.load(config.model, "fp32", torch.device("cpu"))

    def fails(module, args, kwargs):
        if kwargs.get("attention_mask") is not None and len(args[0]) == 1:
            raise RuntimeError("a packed row is no mask\nof mine")

    model.register_forward_pre_hook(fails, with_kwargs=True)
    said = pack_choice.disagreement(model, ENCODED, ENCODER.pad_id)
    assert said == (
        "Qwen3ForCausalLM cannot run a packed batch (RuntimeError: a packed row is no mask of mine)"
    )


def test_a_row_that_a_model_cannot_run_is_one_line():
    """Positions that end before the configuration says so: RoBERTa's begin behind the padding's."""
    config = {**odd_models.SIZES, "max_position_embeddings": 64}
    torch.manual_seed(0)
    model = odd_models.t.RobertaForCausalLM(
        odd_models.t.RobertaConfig(**{**config, "is_decoder": True})
    ).eval()
    with pytest.raises(BadInput, match=r"model.path=here: it cannot run a row of 65 tokens \("):
        check_runs("model.path=here", model, ENCODED, 65, ENCODER.pad_id)
    check_runs("model.path=here", model, ENCODED, 60, ENCODER.pad_id)


def test_tokens_without_an_embedding():
    """A padding token that the model does not know lends another; text with one is an error."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == 259
    assert Encoder(tokenizer, 64, vocabulary=260).pad_id == 259
    encoder = Encoder(tokenizer, 64, vocabulary=259)
    assert encoder.pad_id == tokenizer.eos_token_id
    assert encoder.encode_all(ONE_TOKEN) == Encoder(tokenizer, 64).encode_all(ONE_TOKEN)
    with pytest.raises(EncodeError, match=r"token '\[PAD\]' has id 259, .* embeds 259 tokens"):
        encoder.encode(Example("a [PAD] b", (" no", " yes"), 0))


def test_the_longest_sequence_has_several_names():
    t = odd_models.t
    assert loading.context(t.MptConfig(max_seq_len=16)) == 16
    assert loading.context(t.GPT2Config(n_positions=17)) == 17
    assert loading.context(t.LlamaConfig(max_position_embeddings=18)) == 18
    assert loading.context(odd_model(OTHERS, "gemma3").config) == 256
    assert loading.context(None) is None


# --- whole runs


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of odd models."""
    root = tmp_path_factory.mktemp("models")

    def save(family: dict, name: str):
        folder = root / name
        if not folder.exists():
            odd_model(family, name).save_pretrained(folder)
            byte_tokenizer().save_pretrained(folder)
        return f"model.path={folder}"

    return save


def test_a_run_says_how_its_model_is_asked_and_what_moves(tmp_path, saved, capfd):
    words = ("method=agzo", saved(ONE_LENGTH, "bart"), "train.eval_at_start=true")
    results = [
        run(tiny_run.config(tmp_path, *words, f"train.eval_batch_size={size}", f"variant=b{size}"))
        for size in (1, 8)
    ]
    for result in results:
        assert result["trial"]["rows"] == "of one length"
        assert len(result["trial"]["left_out"]) == 4
        assert result["packing"]["least"] is None
        counts = result["coordinates"]
        assert counts["basis"]["tensors"] == 12
        assert counts["frozen"]["tensors"] == 20
        assert (
            sum(counts[k]["coordinates"] for k in ("basis", "dense", "frozen"))
            == (result["model"]["parameters"])
        )
        assert result["tuned_parameters"] == (
            counts["basis"]["coordinates"] + counts["dense"]["coordinates"]
        )
    for split in ("eval", "dev", "start_dev"):
        one, many = (result[split] for result in results)
        assert math.isclose(one["loss"], many["loss"], abs_tol=1e-5)
        assert one["accuracy"] == many["accuracy"]
    said = capfd.readouterr().out.splitlines()
    begin = next(at for at, line in enumerate(said) if line.startswith("agzo:"))
    first, second, third, *_ = said[begin:]
    assert first.startswith("agzo: lr 0.001, eps 0.001; of its coordinates ")
    assert "; 2 forwards a step, " in first
    assert results[0]["summary"]["forwards_per_step"] == 2
    assert second.startswith("left as it is, for text never comes to it: model.decoder.layers.0.")
    assert third.startswith("BartForCausalLM answers a row otherwise beside longer ones")
    told = json.loads(
        (tiny_run.config(tmp_path, *words, "variant=b8").folder / "origin.json").read_text()
    )
    assert told["trial"] == results[1]["trial"]


def test_what_is_left_out_is_left_out_of_a_replay(tmp_path, saved):
    config = tiny_run.config(
        tmp_path, "method=mezo", saved(ONE_LENGTH, "bart"), "train.eval_every=12"
    )
    result = run(config)
    model, _, _ = replay(config.folder)
    kept = tiny_run.best_weights(config, result)
    assert all(torch.equal(p, kept[n]) for n, p in model.named_parameters() if n in kept)


@pytest.mark.parametrize("method", quick(["agzo", "zo_act", "lozo"], "agzo"))
def test_methods_run_on_models_of_every_make(tmp_path, saved, method):
    """A weight that no linear call reads does not end a run; Falcon's x @ W.T has a basis."""
    for family, name in ((OTHERS, "mamba"), (OTHERS, "falcon"), (OTHERS, "gemma3")):
        words = (f"method={method}", saved(family, name), "train.steps=2", "train.eval_every=2")
        result = run(tiny_run.config(tmp_path, *words, "model.attention=eager", f"variant={name}"))
        counts = result["coordinates"]
        if (name, method) == ("mamba", "agzo"):
            assert counts["basis"]["tensors"] == 6  # in_proj, x_proj, out_proj; not dt_proj
        if (name, method) == ("falcon", "agzo"):
            assert counts["basis"]["tensors"] == 8
        if name == "gemma3":
            assert counts["frozen"]["tensors"] >= 20
            assert result["trial"]["left_out"] == [
                "model.multi_modal_projector", "model.vision_tower",
            ]  # fmt: skip
        assert counts["basis"]["coordinates"] > 0


def test_bases_are_not_taken_in_compiled_layers_that_use_x_w(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "gpt2"
    random_model("gpt2").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    given = tiny_run.arguments(
        tmp_path, f"model.path={folder}", "method=agzo", "train.compile=layers"
    )
    monkeypatch.setattr(sys, "argv", ["run", *given])
    assert main() == 2
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "error: train.compile=layers: GPT2LMHeadModel has weights W that it uses as x W, and "
        "compiled layers have bases for nn.Linear alone; allowed are auto, never"
    ]
