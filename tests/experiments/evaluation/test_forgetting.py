"""What a run does to unrelated text, and how far its weights moved."""

import json
import shutil

import pytest
import tiny_run
import torch
import torch.nn.functional as F
from text_models import byte_tokenizer, random_model

from experiments.config.errors import BadInput
from experiments.evaluation import forgetting
from experiments.records.provenance import changes_since
from experiments.training.session import run

TEXT = "The first passage has some words.\n\nAnother one.\n\n\n\nAnother one.\n\nx\n\nThe last one."


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def test_passages_are_parted_by_blank_lines_each_once_and_cut(text, monkeypatch):
    monkeypatch.setattr(forgetting, "TOKENS", 9)
    monkeypatch.setattr(forgetting, "PASSAGES", 3)
    found = forgetting.read(str(text), byte_tokenizer())
    assert len(found.ids) == 2  # the third, x, has a single token
    assert [len(row) for row in found.ids] == [9, 9]
    assert found.about["passages"] == 2
    assert found.about["tokens"] == 16


def test_json_lines_give_their_text_or_context(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"context": "a passage", "id": 1}, {"context": "a passage"}, {"text": "another"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert forgetting.read(str(path), byte_tokenizer()).about["passages"] == 2
    path.write_text('{"text": "fine"}\n{"words": "no"}\n')
    expected = r"line 2: .* allowed is an object with a text in the field text or context"
    with pytest.raises(BadInput, match=expected):
        forgetting.read(str(path), byte_tokenizer())


@pytest.mark.parametrize("content", [b"", b" \n\n ", b"\xff\xfe\x00", b"x"])
def test_a_file_without_a_passage_is_refused(tmp_path, content):
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"train\.forgetting="):
        forgetting.read(str(path), byte_tokenizer())
    with pytest.raises(BadInput, match="cannot be read"):
        forgetting.read(str(tmp_path / "absent.txt"), byte_tokenizer())


def test_the_loss_is_the_mean_over_all_tokens_of_all_passages(text):
    model = random_model("qwen3").eval()
    ids = forgetting.read(str(text), byte_tokenizer()).ids
    losses = []
    for row in ids:
        tokens = torch.tensor([row])
        logits = model(tokens).logits[0, :-1].float()
        losses += F.cross_entropy(logits, tokens[0, 1:], reduction="none").tolist()
    found = forgetting.loss(model, ids, torch.device("cpu"))
    assert found == pytest.approx(sum(losses) / len(losses), rel=1e-5)


@pytest.mark.parametrize("method", ["mezo", "agzo", "zo_act", "sgd"])
def test_a_run_reports_both_losses_and_the_distance(tmp_path, text, method):
    config = tiny_run.config(tmp_path, f"method={method}", f"train.forgetting={text}")
    found = run(config)["forgetting"]
    assert found["loss_before"] != found["loss_after"]
    assert found["moved"] > 0
    assert found["norm"] > found["moved"]  # of the weights, also where a branch is tuned


def test_a_result_does_not_stand_for_another_text(tmp_path, text):
    elsewhere = tmp_path / "elsewhere.txt"
    shutil.copy(text, elsewhere)
    method = ["method=mezo", "train.steps=2"]
    result = run(tiny_run.config(tmp_path, *method, f"train.forgetting={text}"))
    moved = tiny_run.config(tmp_path, *method, f"train.forgetting={elsewhere}")
    assert changes_since(moved, result) == []
    assert run(moved) == result  # it is done already
    elsewhere.write_text("Another text, with words of its own.")
    assert changes_since(moved, result)[0].startswith("forgetting.sha256: ")
    with pytest.raises(BadInput, match=r"forgetting\.sha256"):
        run(moved)


def test_an_untouched_model_moves_nowhere(tmp_path, text):
    found = run(tiny_run.config(tmp_path, "method=zero_shot", f"train.forgetting={text}"))
    assert found["forgetting"]["loss_before"] == found["forgetting"]["loss_after"]
    assert found["forgetting"]["moved"] is None


def test_it_changes_nothing_of_the_run_and_is_off_by_default(tmp_path, text):
    plain = run(tiny_run.config(tmp_path / "a", "method=mezo"))
    watched = run(tiny_run.config(tmp_path / "b", "method=mezo", f"train.forgetting={text}"))
    assert plain["forgetting"] is None
    assert plain["eval"]["loss"] == watched["eval"]["loss"]
