"""Prompts and options to the character, and rows that cannot be used."""

import re
from dataclasses import replace

import pytest

from experiments.tasks import TASKS, DataError, get_task

PUBLISHED = [name for name, task in TASKS.items() if task.hub]  # of the protocol

SST2_ROW = {"idx": 3, "sentence": "a gorgeous , witty film . ", "label": 1}
RTE_ROW = {"premise": "Ann sells plums.", "hypothesis": "Ann sells fruit.", "idx": 0, "label": 0}
SQUAD_ROW = {
    "id": "1",
    "title": "Normans",
    "context": "The Normans were the people of Normandy.",
    "question": " Who were the people of Normandy? ",
    "answers": {"text": ["The Normans", "Normans"], "answer_start": [0, 4]},
}
CB_ROW = {"premise": "Ann hoped that it rained.", "hypothesis": "it rained", "label": 2}
BOOLQ_ROW = {"question": "is a plum a fruit", "passage": "Plum -- A stone fruit.", "label": 1}
WSC_ROW = {
    "text": "Ann gave Bea a plum. She ate it.",
    "span1_text": "Bea",
    "span2_text": "She",
    "label": 1,
}
WIC_ROW = {"word": "plum", "sentence1": "A ripe plum.", "sentence2": "A plum job.", "label": 0}
MULTIRC_ROW = {
    "paragraph": "Ann sells plums.",
    "question": "What does Ann sell?",
    "answer": "Pears",
    "label": 0,
}
COPA_ROW = {
    "premise": "Ann sold plums.",
    "choice1": "They were ripe.",
    "choice2": "I bought one.",
    "question": "effect",
    "label": 1,
}
RECORD_ROW = {
    "passage": "Ann Lee sold plums to Bea.\n@highlight\nAnn sold plums",
    "query": "@placeholder has no plums left.",
    "entities": ["Bea", "Ann Lee", "Bea", "Ann"],
    "answers": ["Ann", "Ann Lee"],
}
DROP_ROW = {
    "passage": "Ann sold 5 plums and 2 pears.",
    "question": "Which fruit did Ann sell? ",
    "answers_spans": {"spans": ["plums", "pears"], "types": ["span", "span"]},
}


def test_sst2_prompt():
    example = TASKS["sst2"].example(SST2_ROW)
    assert example.prompt == "a gorgeous , witty film . It was"
    assert example.options == (" terrible", " great")
    assert example.label == 1


def test_rte_prompt():
    example = TASKS["rte"].example(RTE_ROW)
    assert example.prompt == (
        'Ann sells plums.\nDoes this mean that "Ann sells fruit." is true? Yes or No?\n'
    )
    assert example.options == ("Yes", "No")
    assert example.label == 0


def test_squad_prompt():
    example = TASKS["squad"].example(SQUAD_ROW)
    assert example.prompt == (
        "Title: Normans\nContext: The Normans were the people of Normandy.\n"
        "Question: Who were the people of Normandy?\nAnswer:"
    )
    assert example.options == (" The Normans\n",)
    assert example.label is None
    assert example.answers == ("The Normans", "Normans")


def test_cb_prompt():
    example = TASKS["cb"].example(CB_ROW)
    assert example.prompt == (
        'Suppose Ann hoped that it rained. Can we infer that "it rained"? Yes, No, or Maybe?\n'
    )
    assert example.options == ("Yes", "No", "Maybe")
    assert example.label == 2


@pytest.mark.parametrize("question", ["is a plum a fruit", "Is a plum a fruit?"])
def test_boolq_prompt(question: str):
    example = TASKS["boolq"].example({**BOOLQ_ROW, "question": question})
    assert example.prompt == "Plum -- A stone fruit. Is a plum a fruit?\n"
    assert example.options == ("Yes", "No")
    assert example.label == 0  # the hub's 1 is yes, the first option
    assert TASKS["boolq"].example({**BOOLQ_ROW, "label": 0}).label == 1


def test_wsc_prompt():
    example = TASKS["wsc"].example(WSC_ROW)
    assert example.prompt == (
        "Ann gave Bea a plum. She ate it.\n"
        'In the previous sentence, does the pronoun "she" refer to Bea? Yes or No?\n'
    )
    assert example.options == ("No", "Yes")
    assert example.label == 1


def test_wic_prompt():
    example = TASKS["wic"].example(WIC_ROW)
    assert example.prompt == (
        'Does the word "plum" have the same meaning in these two sentences? Yes, No?\n'
        "A ripe plum.\nA plum job.\n"
    )
    assert example.options == ("No", "Yes")
    assert example.label == 0


def test_multirc_prompt():
    example = TASKS["multirc"].example(MULTIRC_ROW)
    assert example.prompt == (
        "Ann sells plums.\nQuestion: What does Ann sell?\n"
        'I found this answer "Pears". Is that correct? Yes or No?\n'
    )
    assert example.options == ("No", "Yes")
    assert example.label == 0


def test_copa_prompt():
    example = TASKS["copa"].example(COPA_ROW)
    assert example.prompt == "Ann sold plums so"
    assert example.options == (" they were ripe.", " I bought one.")
    assert example.label == 1
    cause = {**COPA_ROW, "question": "cause", "premise": "Did Ann sell plums? "}
    assert TASKS["copa"].example(cause).prompt == "Did Ann sell plums? because"


def test_record_prompt():
    example = TASKS["record"].example(RECORD_ROW)
    assert example.prompt == "Ann Lee sold plums to Bea.\n- Ann sold plums\n-"
    assert example.options == (
        " Bea has no plums left.",
        " Ann Lee has no plums left.",
        " Ann has no plums left.",
    )
    assert example.label == 2  # the first answer
    assert example.correct == (1, 2)


def test_drop_prompt():
    example = TASKS["drop"].example(DROP_ROW)
    assert example.prompt == (
        "Passage: Ann sold 5 plums and 2 pears.\nQuestion: Which fruit did Ann sell?\nAnswer:"
    )
    assert example.options == (" plums\n",)
    assert example.label is None
    assert example.answers == ("plums", "pears")


def test_loss_metric_and_dev_are_mezos():
    language_model = {"copa", "record", "squad", "drop"}
    for name in PUBLISHED:
        task = TASKS[name]
        assert task.loss == ("lm" if name in language_model else "classification")
        assert task.metric == ("f1" if name in {"squad", "drop"} else "accuracy")
        assert task.max_dev == (100 if name in {"cb", "copa"} else None)


@pytest.mark.parametrize("name", PUBLISHED)
def test_tasks_are_whole(name: str):
    task = TASKS[name]
    assert task.name == name
    assert task.version >= 1
    assert (task.kind == "generation") == (task.metric == "f1")
    assert task.hub is not None
    assert task.hub.path.count("/") == 1
    assert re.fullmatch("[0-9a-f]{40}", task.hub.revision or "")


def test_spaces_at_both_ends_go_and_newlines_stay():
    example = TASKS["rte"].example({**RTE_ROW, "premise": "  Ann sells plums."})
    assert example.prompt.startswith("Ann")
    assert example.prompt.endswith("No?\n")


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("sst2", {"label": 1}, "'sentence' is missing"),
        ("sst2", {**SST2_ROW, "label": 2}, r"'label' is 2, allowed: \[0, 1\]"),
        ("sst2", {**SST2_ROW, "label": "1"}, "'label' is '1', allowed: a value of type int"),
        ("sst2", {**SST2_ROW, "label": True}, "'label' is True, allowed: a value of type int"),
        ("sst2", {**SST2_ROW, "label": -1}, r"'label' is -1, allowed: \[0, 1\]"),
        ("sst2", {**SST2_ROW, "sentence": " "}, "'sentence' is empty"),
        (
            "sst2",
            {**SST2_ROW, "sentence": None},
            "'sentence' is None, allowed: a value of type str",
        ),
        ("sst2", ["a"], "expected an object"),
        (
            "squad",
            {**SQUAD_ROW, "answers": {"text": []}},
            "allowed: an object whose 'text' lists at least one text",
        ),
        (
            "squad",
            {**SQUAD_ROW, "answers": {}},
            "allowed: an object whose 'text' lists at least one text",
        ),
        ("squad", {**SQUAD_ROW, "answers": {"text": ["ok", " "]}}, "holds ' ', allowed: text"),
        ("cb", {**CB_ROW, "label": 3}, r"'label' is 3, allowed: \[0, 1, 2\]"),
        ("boolq", {**BOOLQ_ROW, "label": True}, "'label' is True, allowed: a value of type int"),
        ("wsc", {**WSC_ROW, "span1_text": ""}, "'span1_text' is empty, allowed: text"),
        ("wic", {**WIC_ROW, "word": 7}, "'word' is 7, allowed: a value of type str"),
        ("multirc", {**MULTIRC_ROW, "answer": " "}, "'answer' is empty, allowed: text"),
        (
            "copa",
            {**COPA_ROW, "question": "Cause"},
            r"'question' is 'Cause', allowed: \['cause', 'effect'\]",
        ),
        (
            "record",
            {**RECORD_ROW, "entities": "Ann"},
            "'entities' is 'Ann', allowed: a value of type list",
        ),
        (
            "record",
            {**RECORD_ROW, "entities": []},
            r"'entities' is \[\], allowed: a list of at least one text",
        ),
        ("record", {**RECORD_ROW, "entities": ["Ann", 3]}, "'entities' holds 3, allowed: text"),
        ("record", {**RECORD_ROW, "answers": []}, r"'answers' is \[\], allowed: a list"),
        (
            "record",
            {**RECORD_ROW, "answers": ["Ann", "Cy"]},
            r"'answers' holds 'Cy', allowed: entities, \('Bea', 'Ann Lee', 'Ann'\)",
        ),
        (
            "record",
            {**RECORD_ROW, "query": "No gap."},
            "'query' is 'No gap.', allowed: text with @placeholder",
        ),
        (
            "drop",
            {**DROP_ROW, "answers_spans": ["plums"]},
            r"'answers_spans' is \['plums'\], allowed: a value of type dict",
        ),
        (
            "drop",
            {**DROP_ROW, "answers_spans": {"types": []}},
            "allowed: an object whose 'spans' lists at least one text",
        ),
        (
            "drop",
            {**DROP_ROW, "answers_spans": {"spans": "plums"}},
            "allowed: an object whose 'spans' lists at least one text",
        ),
        (
            "drop",
            {**DROP_ROW, "answers_spans": {"spans": [5]}},
            "'answers_spans' holds 5, allowed: text",
        ),
    ],
)
def test_bad_rows_are_named(name: str, row, said: str):
    with pytest.raises(DataError, match=said) as caught:
        TASKS[name].example(row, "validation row 7")
    assert f"task '{name}', validation row 7" in str(caught.value)


def test_unknown_task_lists_the_known():
    with pytest.raises(
        DataError, match=r"task='sst3' is unknown, allowed: \['boolq', 'cb', .* 'wsc'\]"
    ):
        get_task("sst3")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fields": {"sentence": str, "mood": int}}, r"labels=\(0, 1\) .* or labels=\(\)"),
        ({"labels": ()}, "the right option is number 2, allowed: 0 to 1"),
    ],
)
def test_a_new_task_that_is_not_whole_says_what_it_needs(changes, said):
    mine = replace(TASKS["sst2"], name="mine", **changes)
    with pytest.raises(DataError, match=f"^task 'mine', line 3: {said}"):
        mine.example({"sentence": "x", "mood": 2, "label": 2}, "line 3")
