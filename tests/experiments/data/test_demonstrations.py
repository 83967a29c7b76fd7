"""In-context learning: which demonstrations, how they read, how many fit; and chat templates."""

import pytest
import tiny_run

from experiments.data.chat import ChatError
from experiments.data.demonstrations import answered, with_demonstrations
from experiments.data.encode import Encoder
from experiments.tasks import TASKS, Example
from experiments.training.session import run
from tests.experiments.tasks.test_tasks import SQUAD_ROW, SST2_ROW
from tests.text_models import byte_tokenizer

POOL = [Example(f"{n}.", (" bad", " good"), n % 2) for n in range(6)]
QUESTIONS = [Example("film? It was", (" bad", " good"), 0), Example("x" * 30, (" bad", " good"), 1)]
ENCODER = Encoder(byte_tokenizer(), 200)


def test_a_demonstration_reads_as_the_task_with_its_answer():
    assert answered(TASKS["sst2"].example(SST2_ROW)) == "a gorgeous , witty film . It was great"
    assert answered(TASKS["squad"].example(SQUAD_ROW)).endswith("\nAnswer: The Normans")


def test_demonstrations_stand_before_the_question_with_blank_lines_between():
    made, used = with_demonstrations(QUESTIONS, POOL, 3, ENCODER, 200, seed=0)
    assert used == [3, 3]
    for example, question in zip(made, QUESTIONS, strict=True):
        *shown, last = example.prompt.split("\n\n")
        assert last == question.prompt
        assert (example.options, example.label) == (question.options, question.label)
        assert len(set(shown)) == 3
        assert set(shown) <= {answered(example) for example in POOL}
    assert made[0].prompt.split("\n\n")[:3] != made[1].prompt.split("\n\n")[:3]


def test_they_depend_on_the_seed_and_not_on_the_number_of_questions():
    made, _ = with_demonstrations(QUESTIONS, POOL, 3, ENCODER, 200, seed=0)
    assert with_demonstrations(QUESTIONS[:1], POOL, 3, ENCODER, 200, seed=0)[0] == made[:1]
    assert with_demonstrations(QUESTIONS, POOL, 3, ENCODER, 200, seed=1)[0] != made


@pytest.mark.parametrize("room", [17, 26, 27, 45, 60, 200])
def test_as_many_whole_ones_as_fit(room: int):
    """One token a byte: a demonstration takes 6 or 7 and the blank line 2."""
    encoder = Encoder(byte_tokenizer(), 200)
    made, used = with_demonstrations(QUESTIONS[:1], POOL, 4, encoder, room, seed=0)
    length = max(len(row) for row in encoder.encode(made[0]).ids)
    assert length <= room
    more, _ = with_demonstrations(QUESTIONS[:1], POOL, used[0] + 1, encoder, 200, seed=0)
    assert used[0] == 4 or max(len(row) for row in encoder.encode(more[0]).ids) > room


def test_no_more_than_the_pool_and_none_at_all():
    assert with_demonstrations(QUESTIONS, POOL, 32, ENCODER, 200, seed=0)[1] == [6, 6]
    made, used = with_demonstrations(QUESTIONS, POOL, 32, ENCODER, 5, seed=0)
    assert (made, used) == (QUESTIONS, [0, 0])


def test_the_length_of_the_gold_answer_is_not_looked_at():
    asked = [Example("Who?", (f" {'x' * n}\n",), None, ("x" * n,)) for n in (1, 60)]
    pool = [Example(f"{n}?", (" y\n",), None, ("y",)) for n in range(40)]
    made, used = with_demonstrations(asked, pool, 32, ENCODER, 100, seed=0)
    for example in made:
        assert ENCODER.length(example) <= 100
    assert min(used) > 90 // (6 + 2) - 1
    one, _ = with_demonstrations(asked[:1], pool, 32, ENCODER, 100, seed=0)
    other, _ = with_demonstrations([asked[1]], pool, 32, ENCODER, 100, seed=0)
    assert one[0].prompt == other[0].prompt


def test_the_result_says_how_many_were_used(tmp_path):
    short = run(tiny_run.config(tmp_path, "method=icl"))
    assert short["demonstrations"]["requested"] == 32
    assert 0 < short["demonstrations"]["eval"]["max"] < 16
    few = run(tiny_run.config(tmp_path, "method=icl", "method.demonstrations=1", "variant=one"))
    assert few["demonstrations"]["dev"] == {"min": 1, "mean": 1, "max": 1}
    zero = run(tiny_run.config(tmp_path, "method=zero_shot"))
    assert zero["demonstrations"] is None
    assert len({result["eval"]["loss"] for result in (short, few, zero)}) == 3


TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% if not enable_thinking %} (at once){% endif %}"
    "{{ '\\n' }}{% endif %}"
)


def chat_tokenizer(template: str | None = TEMPLATE):
    tokenizer = byte_tokenizer(bos=True)
    tokenizer.chat_template = template
    return tokenizer


def test_chat_puts_the_prompt_into_the_template_and_the_option_behind_it():
    encoder = Encoder(chat_tokenizer(), 100, chat=True)
    encoded = encoder.encode(Example("It was", (" bad", " good"), 1))
    assert encoded.option_lengths == (3, 4)
    whole = encoder.tokenizer.decode(encoded.ids[1])
    assert whole == "<s>user: It was\nassistant: (at once)\ngood"
    assert encoded.ids[0].count(1) == 1  # no second <s>
    prompt = encoder.encode_prompt(Example("It was", (" x\n",), None), 5)
    assert encoder.tokenizer.decode(prompt.ids) == "<s>user: It was\nassistant: (at once)\n"


def test_chat_keeps_its_header_when_a_prompt_is_cut():
    encoder = Encoder(chat_tokenizer(), 40, chat=True)
    encoded = encoder.encode(Example("x" * 50 + " It was", (" bad", " good"), 1))
    assert encoded.truncated
    said = encoder.tokenizer.decode(encoded.ids[0])
    assert said == "<s>user: x It was\nassistant: (at once)\nbad"
    assert len(encoded.ids[0]) == 40


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "model.prompt=chat: this model's tokenizer has no chat template"),
        ("{{ messages[0].content | upper }}", "model.prompt=chat: the chat template renders"),
    ],
)
def test_a_chat_template_that_cannot_be_used(template, said):
    with pytest.raises(ChatError, match=said):
        Encoder(chat_tokenizer(template), 100, chat=True)


def test_chat_is_refused_for_a_model_without_a_template(tmp_path):
    with pytest.raises(ChatError, match="allowed is plain"):
        run(tiny_run.config(tmp_path, "method=zero_shot", "model.prompt=chat"))
