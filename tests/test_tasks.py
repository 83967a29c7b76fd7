"""Prompts and options to the character, and rows that cannot be used."""

import pytest

from experiments.tasks import TASKS, DataError, get_task

SST2_ROW = {"idx": 3, "sentence": "a gorgeous , witty film . ", "label": 1}
RTE_ROW = {"premise": "Ann sells plums.", "hypothesis": "Ann sells fruit.", "idx": 0, "label": 0}
SQUAD_ROW = {
    "id": "1",
    "title": "Normans",
    "context": "The Normans were the people of Normandy.",
    "question": " Who were the people of Normandy? ",
    "answers": {"text": ["The Normans", "Normans"], "answer_start": [0, 4]},
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


@pytest.mark.parametrize("name", TASKS)
def test_tasks_are_whole(name: str):
    task = TASKS[name]
    assert task.name == name
    assert task.version >= 1
    assert (task.kind == "generation") == (task.metric == "f1")
    assert task.hub.path.count("/") == 1


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
