"""Chat templates: the same words around every prompt, on every day; any other is refused."""

import json
import shutil

import pytest
import tiny_run
from text_models import byte_tokenizer

from experiments.config.errors import BadInput
from experiments.data import chat
from experiments.data.chat import ChatError, ChatFrame
from experiments.data.encode import Encoder
from experiments.training.session import run

TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
USUAL = TURNS + "{% if add_generation_prompt %}<assistant>{% endif %}"
LLAMA = (
    "{%- if not date_string is defined %}\n{%- if strftime_now is defined %}\n"
    '{%- set date_string = strftime_now("%d %b %Y") %}\n{%- endif %}\n{%- endif %}\n'
    '{{- "Today: " + date_string + "\\n" }}'
)


def tokenizer(template):
    made = byte_tokenizer(bos=True)
    made.chat_template = template
    return made


def frame(template):
    found = ChatFrame(tokenizer(template))
    return found.header, found.footer


@pytest.mark.parametrize(
    ("opening", "written"),
    [
        (LLAMA, "Today: 26 Jul 2024\n"),
        ("{{ strftime_now('%Y-%m-%d %H:%M:%S.%f %A') }} ", "2024-07-26 00:00:00.000000 Friday "),
        ("{{ strftime_now('%-d.%-m. %y') }} ", "26.7. 24 "),
        ("{{ strftime_now('%Y')|int + 1 }}", "2025"),
        ("{% macro day() %}{{ strftime_now('%j') }}{% endmacro %}{{ day() }}", "208"),
        ("\n  {% if true %}x{% endif %}{{ strftime_now('%B') }}", "\nxJuly"),  # spaces as ever
    ],
)
def test_a_template_that_writes_the_date_writes_a_fixed_one(opening, written):
    assert frame(opening + USUAL) == (f"{written}<user>", "</s><assistant>")
    assert ChatFrame(tokenizer(opening + USUAL)).wrap("p") == f"{written}<user>p</s><assistant>"


def test_a_template_without_a_clock_is_rendered_as_it_is(monkeypatch):
    monkeypatch.setattr(chat, "FIXED_CLOCK", "not for this one")
    assert frame(USUAL) == ("<user>", "</s><assistant>")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (
            "{% for m in messages %}{{ m.content }}, again: {{ m.content }}{% endfor %}:",
            ["renders"],
        ),
        ("{% for m in messages %}{% endfor %}answer:", ["renders", "as 'answer:'"]),
        ("{{ messages[0].content | upper }}:", ["as 'IS 7 MORE THAN 3?:'"]),
        ("{{ messages[0].content[:100] }}:", ["renders 'so so so"]),
        ("{{ messages[0].content | replace('\\n', ' ') }}:", ["renders 'The film was fine."]),
        ("{{ messages[0].content | length }}" + USUAL, ["between '17<user>'"]),
        ("{{ ['a', 'b'] | random }}" + USUAL, ["the same around every prompt"]),
        ("{{ lipsum(n=1) }}" + USUAL, ["the same around every prompt"]),
        (TURNS, ["ends a prompt with '</s>', and writes '<assistant>' more"]),
        (
            "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}<t>\n</t>"
            "{% endif %}{{ m.content }}{% endfor %}"
            "{% if add_generation_prompt %}<assistant><t>\n{% endif %}",
            ["ends a prompt with '<assistant><t>\\n', and writes '</t>' more"],
        ),
        ("{{ raise_exception('no system turn') }}", ["cannot be rendered", "no system turn"]),
        ("{% for m in messages %}", ["cannot be rendered", "TemplateSyntaxError"]),
        ("{{ messages[7].content.x.y }}", ["cannot be rendered", "UndefinedError"]),
    ],
)
def test_a_template_that_is_no_frame_is_refused_in_one_line(template, words):
    with pytest.raises(ChatError) as caught:
        frame(template)
    said = str(caught.value)
    assert all(word in said for word in ["model.prompt=chat: the chat template", *words])
    assert said.endswith("allowed is plain")
    assert len(said) < 700
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("template", "footer"),
    [
        (TURNS + "answer:", "</s>answer:"),  # whatever it is asked for
        (
            "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
            "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}",
            " [/INST]",
        ),
        ("{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</s>{% endfor %}<assistant>",
         "</s><assistant>"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}:", ":"),
    ],
)  # fmt: skip
def test_other_ways_to_ask_for_an_answer(template, footer):
    assert frame(template)[1] == footer


def test_words_of_the_template_that_a_prompt_may_have_too():
    assert frame("Answer a prompt. Is it?\n" + USUAL)[0] == "Answer a prompt. Is it?\n<user>"


def test_real_template(shared):
    from transformers import AutoTokenizer

    found = ChatFrame(AutoTokenizer.from_pretrained(shared / "models" / "qwen3-tokenizer"))
    assert found.header == "<|im_start|>user\n"
    assert found.footer == "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def test_the_frame_is_part_of_what_a_run_was_begun_with(tmp_path):
    """In a file that is no part of the model's own hash."""
    folder = shutil.copytree(tiny_run.world() / "model", tmp_path / "model")
    template = folder / "chat_template.jinja"
    template.write_text(USUAL)
    given = ("method=mezo", "model.prompt=chat", f"model.path={folder}", "train.steps=4")
    config = tiny_run.config(tmp_path / "out", *given)
    result = run(config)
    kept = json.loads((config.folder / "origin.json").read_text())["model"]["chat_sha256"]
    assert kept == result["model"]["chat_sha256"] == ChatFrame(tokenizer(USUAL)).sha256
    (config.folder / "result.json").unlink()  # not finished: it would go on
    template.write_text("Be brief.\n" + USUAL)
    with pytest.raises(BadInput, match=r"another origin\.json:\s+model\.chat_sha256"):
        run(config)
    template.write_text(USUAL)
    assert run(config)["resumed_at"] == [4]
    plain = tiny_run.config(tmp_path / "out", "method=mezo", f"model.path={folder}", "seed=1")
    assert "chat_sha256" not in run(plain)["model"]


def test_two_runs_of_a_template_with_a_date_have_the_same_prompts(tmp_path):
    folder = shutil.copytree(tiny_run.world() / "model", tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{{ strftime_now('%H:%M:%S.%f') }}" + USUAL)
    given = ("method=zero_shot", "model.prompt=chat", f"model.path={folder}")
    one, two = (run(tiny_run.config(tmp_path / name, *given)) for name in ("a", "b"))
    assert one["eval"]["loss"] == two["eval"]["loss"]
    assert one["model"] == two["model"]


def test_a_template_that_cannot_be_used_shows_before_the_weights_are_read(tmp_path, monkeypatch):
    from experiments.models import loading

    monkeypatch.setattr(loading, "load_model", lambda *_: pytest.fail("the weights were read"))
    folder = shutil.copytree(tiny_run.world() / "model", tmp_path / "model")
    (folder / "chat_template.jinja").write_text(TURNS)
    given = ("method=mezo", "model.prompt=chat", f"model.path={folder}")
    with pytest.raises(ChatError, match="a generation prompt behind which the answer begins"):
        run(tiny_run.config(tmp_path / "out", *given))


def test_plain_prompts_have_no_frame():
    assert Encoder(tokenizer(None), 64).chat_sha256 is None
