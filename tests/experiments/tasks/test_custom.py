"""A task without code: files of many shapes train, and what cannot be used is refused by name."""

import csv
import json
from pathlib import Path

import pytest
import tiny_run
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.config.composed import compose, from_dict
from experiments.config.errors import BadInput
from experiments.config.paths import quoted
from experiments.config.schema import TaskConfig
from experiments.data import load_splits
from experiments.models.loading import model_sha256
from experiments.records.provenance import changes_since
from experiments.tasks import TASKS, DataError, task_of
from experiments.training.session import run

WORDS = ("bad", "good")
PROMPT, OPTIONS, LABEL = (
    "task.prompt={sentence} It was",
    "task.options=[terrible,great]",
    "task.label=label",
)
SHORT = [
    "model=pocket", "data=local", "method=mezo", "tracking=disabled", "device=cpu", "train.steps=2",
    "train.evals=1", "train.eval_at_start=false", "train.batch_size=2", "train.num_train=4",
    "train.num_dev=2", "train.num_eval=2", "train.max_new_tokens=4", "train.max_length=64",
]  # fmt: skip


def reviews(count: int = 10, labels: tuple = (0, 1), **more: object) -> list[dict]:
    return [
        {"sentence": f"a {WORDS[i % 2]} film {i}", "label": labels[i % len(labels)], **more}
        for i in range(count)
    ]


def save(path: Path, rows: list[dict]) -> Path:
    """Write rows in the format that the path's ending names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def task(**keys: object) -> TaskConfig:
    return TaskConfig(name="mine", revision=None, **keys)  # pyright: ignore[reportArgumentType]


def reviews_task(**keys: object):
    given = {"prompt": "{sentence} It was", "options": ["terrible", "great"], "label": "label"}
    return task_of(task(**given | keys))


def composed(root: object, *words: str, out: object = "out"):
    given = ["task=custom", *SHORT, f"data.root={root}", f"out={out}", *words]
    return compose([quoted(word) for word in given])


# Five shapes of data, each trained for two steps


def csv_with_quotes_and_newlines(folder):
    rows = [row | {"sentence": f'"{row["sentence"]}",\nhe said'} for row in reviews()]
    save(folder / "train.csv", rows)
    save(folder / "validation.csv", rows[:4])
    return folder, [PROMPT, OPTIONS, LABEL]


def string_labels(folder):
    rows = reviews(labels=("neg", "pos"))
    save(folder / "train.jsonl", rows)
    save(folder / "test.jsonl", rows[:4])
    words = ["task.labels={neg: terrible, pos: great}", "task.splits=[train,test]"]
    return folder, [PROMPT, OPTIONS, LABEL, *words]


def three_classes(folder):
    rows = reviews(labels=(1, 2, 3))
    save(folder / "train.json", rows)
    save(folder / "validation.json", rows[:4])
    words = ["task.options=[terrible,okay,great]", "task.labels=[1,2,3]"]
    return folder, [PROMPT, LABEL, *words]


def parquet_with_options_of_its_own(folder):
    rows = [{**row, "choices": ["was bad", "was good"]} for row in reviews()]
    save(folder / "train.parquet", rows)
    save(folder / "validation.parquet", rows[:4])
    return folder, ["task.prompt={sentence}, so it", "task.options=choices", LABEL]


def one_file_without_splits(folder):
    rows = [{"q": f"{i} and {i}?", "a": {"text": [str(2 * i), "x"]}} for i in range(10)]
    path = save(folder / "all.jsonl", rows)
    return path, ["task.prompt=Question: {q}\nAnswer:", "task.answer=a.text", "task.name=sums"]


SHAPES = [
    *(csv_with_quotes_and_newlines, string_labels, three_classes),
    *(parquet_with_options_of_its_own, one_file_without_splits),
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_it_trains(tmp_path, shape):
    root, words = shape(tmp_path / "data")
    config = composed(root, *words, out=tmp_path / "out")
    result = run(config)
    assert result["steps"] == 2
    assert result["task"] == config.task.name
    assert result["task_version"] == task_of(config.task).version
    assert str(result["task_version"]).startswith("sha256:")
    assert result["data"]["train_sha256"]
    assert ("f1" if "a.text" in str(words) else "accuracy") in result["eval"]
    assert run(config) == json.loads((config.folder / "result.json").read_text())
    path = next(iter(sorted(root.glob("train.*")))) if root.is_dir() else root
    save(path, load_splits(task_of(config.task), "local", root=root).train[:8])  # pyright: ignore
    with pytest.raises(BadInput, match=r"data\.train_sha256"):
        run(config)


def test_a_result_on_a_folder_is_none_of_one_of_its_files(tmp_path):
    """A folder has rows of its own for evaluation; of one file they are a fifth."""
    rows = reviews()
    root = save(tmp_path / "data" / "train.jsonl", rows).parent
    save(root / "validation.jsonl", rows[:4])
    words = (PROMPT, OPTIONS, LABEL, "method=zero_shot")
    folder, file = (composed(each, *words) for each in (root, root / "train.jsonl"))
    both, one = (
        {
            "task_version": task_of(config.task).version,
            "model": {"sha256": model_sha256(config.model)},
            "data": load_splits(task_of(config.task), "local", root=config.data.root).origin,
        }
        for config in (folder, file)
    )
    assert changes_since(folder, both) == changes_since(file, one) == []
    digest = both["data"]["validation_sha256"]
    assert changes_since(file, both) == [f"data.validation_sha256: {digest} -> <absent>"]
    assert changes_since(folder, one) == [f"data.validation_sha256: <absent> -> {digest}"]


# What an example is


def test_a_template_over_fields_braces_objects_and_lists():
    made = reviews_task(prompt="{{{a.b}}} {c.0}, {a b} {n}")
    row = {"a": {"b": " x\n"}, "c": ["y"], "a b": "z", "n": 3, "label": 1}
    example = made.example(row)
    assert example.prompt == "{x} y, z 3"
    assert example.options == (" terrible", " great")
    assert example.label == 1


def test_options_follow_a_newline_at_once_and_may_be_templates():
    made = reviews_task(prompt="{q}\n", options=["{a}", "not {a}"], label="right")
    example = made.example({"q": "Which?", "a": "x", "right": "not x"})
    assert (example.prompt, example.options, example.label) == ("Which?\n", ("x", "not x"), 1)
    assert made.loss == "lm"
    assert reviews_task().loss == "classification"


def test_sst2_is_written_without_code():
    row = {"sentence": "a fine film ", "label": 1}
    assert reviews_task().example(row) == TASKS["sst2"].example(row)


def test_an_answer_is_generated():
    made = task_of(task(prompt="Q: {q}\nA:", answer="a"))
    one, many = (made.example({"q": "1 + 1", "a": a}) for a in (2, ["2", "two"]))
    assert (made.kind, made.loss, made.metric) == ("generation", "lm", "f1")
    assert one.options == many.options == (" 2\n",)
    assert (one.label, one.answers, many.answers) == (None, ("2",), ("2", "two"))


@pytest.mark.parametrize(
    ("labels", "value", "number"),
    [
        (None, 1, 1), (None, "1", 1), (None, "great", 1), (None, " terrible ", 0),
        (["neg", "pos"], "pos", 1), (["5", "7"], 7, 1), (["5", "7"], "5", 0),
        (["false", "true"], True, 1), (["false", "true"], "true", 1), (["0.0", "1.0"], 1.0, 1),
        ({"a": "great", "b": "0", "c": "great"}, "c", 1), ({"a": "great", "b": "0"}, "b", 0),
    ],
)  # fmt: skip
def test_labels_of_every_kind(labels, value, number):
    row = {"sentence": "x", "label": value}
    assert reviews_task(labels=labels).example(row).label == number


def test_numbers_as_options_take_labels():
    made = reviews_task(options=["1", "2", "3"], labels=["1", "2", "3"])
    assert made.example({"sentence": "x", "label": 3}).label == 2


@pytest.mark.parametrize("options", ["choices", ["{choices.0}", "{choices.1}"]])
def test_a_label_that_is_one_option_s_number_and_another_one_s_text_is_refused(options):
    row = {"sentence": "5 + 5", "choices": ["1", "10"], "label": 1}
    with pytest.raises(DataError) as caught:
        reviews_task(options=options).example(row, "here")
    said = "field 'label' is 1: the number of option '10' and the text of option number 0, allowed"
    assert said in str(caught.value)
    assert "a number, with task.labels=[0, 1], or a text" in str(caught.value)
    assert reviews_task(options=options, labels=["0", "1"]).example(row).label == 1


@pytest.mark.parametrize(
    ("choices", "label", "number"),
    [(["7", "8"], 1, 1), (["7", "8"], "8", 1), (["0", "1"], 1, 1), (["1", "x"], "x", 1)],
)
def test_a_label_with_one_reading_needs_no_labels(choices, label, number):
    row = {"sentence": "x", "choices": choices, "label": label}
    assert reviews_task(options="choices").example(row).label == number


def test_the_version_is_a_hash_of_what_makes_the_texts():
    before = reviews_task().version
    assert reviews_task(hub="a/b", splits=["train"]).version == before
    for changed in ({"prompt": "{sentence} it was"}, {"labels": ["a", "b"]}, {"label": "y"}):
        assert reviews_task(**changed).version != before


# What is refused: the configuration


BAD_KEYS = {
    "task.prompt=null: task=custom needs a template": [],
    "task.options=null: task.prompt needs": [PROMPT, LABEL],
    "task.label=null: task.prompt needs": [PROMPT, OPTIONS],
    "task.label='label': with task.answer text is generated": [PROMPT, LABEL, "task.answer=a"],
    "task.labels=['a', 'b']: with task.answer": [PROMPT, "task.labels=[a,b]", "task.answer=a"],
    "allowed are a list of texts": [PROMPT, "task.options=[true,false]", LABEL],
    "task.labels=5: allowed are the label": [PROMPT, OPTIONS, LABEL, "task.labels=5"],
    "task.splits=['a', 'a']": [PROMPT, OPTIONS, LABEL, "task.splits=[a,a]"],
    "task.prompt='costs ${x}': allowed is text without": [
        "task.prompt=costs \\${x}", OPTIONS, LABEL,
    ],
    "data.source=pocket: it has no rows": [PROMPT, OPTIONS, LABEL, "data.source=pocket"],
    "task.hub=null: data=hub needs": [PROMPT, OPTIONS, LABEL, "data.source=hub"],
    "task.name='a/b'": [PROMPT, OPTIONS, LABEL, "task.name=a/b"],
    "task.label='label': allowed with task.prompt alone": ["task=sst2", LABEL],
}  # fmt: skip


@pytest.mark.parametrize("said", BAD_KEYS)
def test_keys_that_do_not_fit_are_refused_by_name(said):
    with pytest.raises(BadInput) as caught:
        composed("data", *BAD_KEYS[said])
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"prompt": "no field"}, "task.prompt='no field': allowed is a text with a {field}"),
        ({"prompt": "{sentence"}, "task.prompt='{sentence': expected '}' before end of string"),
        ({"prompt": "{}"}, "task.prompt='{}': a field without a name"),
        ({"prompt": "{sentence!r}"}, "a field without a name, or with a format"),
        ({"options": ["{a", "b"]}, "task.options='{a': expected '}'"),
        ({"options": ["great"]}, "task.options=['great']: allowed are two or more"),
        ({"options": ["great", "great"]}, "none of them twice"),
        ({"options": ["great", " "]}, "task.options=' ': it is empty"),
        ({"options": ["1", "2"]}, "task.options=['1', '2']: a number could be an option"),
        ({"labels": ["a"]}, "task.labels=['a']: allowed are as many as there are options, 2"),
        ({"labels": ["a", "a"]}, "none of them twice"),
        ({"labels": {"a": "fine"}}, "'fine' is no option; allowed are 0 to 1, or"),
        ({"labels": {"a": "2"}}, "'2' is no option; allowed are 0 to 1, or"),
    ],
)
def test_bad_templates_are_refused_by_name(keys, said):
    with pytest.raises(BadInput) as caught:
        reviews_task(**keys)
    assert said in str(caught.value)


def test_a_task_of_the_protocol_keeps_its_name():
    with pytest.raises(BadInput, match=r"task\.name=sst2: a task of the protocol"):
        task_of(TaskConfig(name="sst2", revision=None, prompt="{x}"))


def test_a_run_says_it_in_one_line_before_it_loads_anything(tmp_path, program):
    save(tmp_path / "all.csv", reviews(labels=("neg", "pos")))
    words = ["task=custom", PROMPT, OPTIONS, LABEL, f"data.root={tmp_path / 'all.csv'}"]
    end = program("method=mezo", *words, "model.attention=eager")
    assert end.code == 2
    assert end.said.count("\n") == 1
    where = f"task 'custom', {tmp_path / 'all.csv'} line 2: field 'label' is 'neg', allowed: 0 to 1"
    assert where in end.said


# What is refused: rows and files


BAD_ROWS = {
    "field 'sentence' is missing; found ['label']": {"label": 0},
    "field 'sentence' is None, allowed: text or a number": {"sentence": None, "label": 0},
    "field 'sentence' is ['a'], allowed: text": {"sentence": ["a"], "label": 0},
    "field 'sentence' is empty, allowed: text": {"sentence": " ", "label": 0},
    r"field 'sentence' holds '\ud83d' at character 1": {"sentence": "\ud83d", "label": 0},
    "field 'label' is missing": {"sentence": "x"},
    "field 'label' is 2, allowed: 0 to 1, or ['terrible', 'great']": {"sentence": "x", "label": 2},
    "field 'label' is -1, allowed: 0 to 1": {"sentence": "x", "label": -1},
    "field 'label' is 'Great', allowed": {"sentence": "x", "label": "Great"},
    "field 'label' is True, allowed: 0 to 1": {"sentence": "x", "label": True},
    "field 'label' is None, allowed": {"sentence": "x", "label": None},
}


@pytest.mark.parametrize("said", BAD_ROWS)
def test_a_bad_row_is_named_by_file_line_and_field(tmp_path, said):
    path = save(tmp_path / "all.jsonl", [*reviews(), BAD_ROWS[said]])
    with pytest.raises(DataError) as caught:
        load_splits(reviews_task(), "local", root=path)
    assert str(caught.value).startswith(f"task 'mine', {path} line 11: {said}")


@pytest.mark.parametrize(
    ("keys", "row", "said"),
    [
        ({"options": "choices"}, {"choices": ["a"], "label": 0}, "gives ('a',), allowed: two"),
        ({"options": "choices"}, {"choices": "a", "label": 0}, "'choices' is 'a', allowed: a list"),
        ({"options": "choices"}, {"choices": ["a", "a"], "label": 0}, "none of them twice"),
        ({"labels": ["n", "p"]}, {"label": "x"}, "'label' is 'x', allowed: ['n', 'p']"),
        ({"options": None, "label": None, "answer": "a"}, {"a": "x\ny"}, "allowed: one line"),
        ({"options": None, "label": None, "answer": "a"}, {"a": []}, "'a' is [], allowed: a list"),
    ],
)
def test_bad_options_labels_and_answers(keys, row, said):
    with pytest.raises(DataError) as caught:
        reviews_task(**keys).example({"sentence": "x", **row}, "here")
    assert said in str(caught.value)


BAD_FILES = {
    "no.csv": (b"", "0 rows in one file"),
    "short.csv": (b"sentence,label\nx,1\ny\n", "line 3: 1 values, ['y'], allowed: 2"),
    "open.csv": (b'sentence,label\nx,1\n"y,1\n', "line 3: no CSV (unexpected end of data)"),
    "twice.csv": (b"label,label\n1,1\n", "line 1: field 'label' is empty or there twice"),
    "latin.csv": ("sentence,label\ncaf\xe9,1\n".encode("latin-1"), "line 2: byte 0xe9 is no UTF-8"),
    "wide.csv": ("sentence,label\n".encode("utf-16"), ": it is UTF-16; needed: CSV"),
    "lines.csv": (b'sentence,label\n"a\nb",0\nx,3\n', "line 4: field 'label' is '3', allowed: 0"),
    "cut.json": (b'[{"sentence": "x", "label": 1}, ]', "no JSON array ("),
    "five.json": (b"[5]", "row 0: expected an object with fields of the template, got 5"),
    "no.parquet": (b"PAR2", ": no Parquet file ("),
    "a.txt": (b"x", "a file '.txt', allowed: .jsonl"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_named(tmp_path, name):
    content, said = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_splits(reviews_task(), "local", root=tmp_path / name)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_missing_and_doubtful_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"data\.root='.*nowhere' is not there"):
        load_splits(reviews_task(), "local", root=tmp_path / "nowhere")
    save(tmp_path / "train.csv", reviews())
    with pytest.raises(DataError, match=r"no file of split 'validation' \(there: \['train\.csv'\]"):
        load_splits(reviews_task(), "local", root=tmp_path)
    with pytest.raises(DataError, match=r"task\.splits=\['train'\] names splits"):
        load_splits(reviews_task(splits=["train"]), "local", root=tmp_path / "train.csv")
    save(tmp_path / "train.json", reviews())
    with pytest.raises(DataError, match=r"several files of split 'train' \(train\.csv, train\."):
        load_splits(reviews_task(), "local", root=tmp_path)


# The same rows, whatever they come in


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a.csv", "a.parquet"])
def test_every_format_holds_the_same_examples(tmp_path, name):
    path = save(tmp_path / name, reviews(15))
    loaded = load_splits(reviews_task(), "local", root=path, seed=3)
    made = [reviews_task().example(row) for row in [*loaded.train, *loaded.validation]]
    wanted = [reviews_task().example(row) for row in reviews(15)]
    assert sorted(made, key=lambda each: each.prompt) == sorted(
        wanted, key=lambda each: each.prompt
    )
    assert (len(loaded.train), len(loaded.validation)) == (12, 3)
    assert loaded.origin["divided_by_seed"] == 3
    assert load_splits(reviews_task(), "local", root=path, seed=3) == loaded
    assert load_splits(reviews_task(), "local", root=path, seed=4).train != loaded.train


def test_places_follow_their_rows_when_one_file_is_divided(tmp_path):
    loaded = load_splits(reviews_task(), "local", root=save(tmp_path / "a.jsonl", reviews()))
    for split in ("train", "validation"):
        for row, place in zip(getattr(loaded, split), loaded.places[split], strict=True):
            assert reviews()[int(place.rpartition(" ")[2]) - 1] == row


def test_folders_that_datasets_saved(tmp_path):
    import datasets

    table = datasets.Dataset.from_list(reviews())
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=table, dev=table.select(range(4))).save_to_disk(tmp_path / "two")
    one = load_splits(reviews_task(), "local", root=tmp_path / "one")
    two = load_splits(reviews_task(splits=["train", "dev"]), "local", root=tmp_path / "two")
    assert (len(one.train), len(one.validation)) == (8, 2)
    assert (two.train, len(two.validation)) == (reviews(), 4)
    assert two.origin["train_sha256"] != two.origin["validation_sha256"]
    with pytest.raises(DataError, match=r"no file of split 'validation' \(there: .*'dev'"):
        load_splits(reviews_task(), "local", root=tmp_path / "two")


def test_a_hub_data_set_by_the_names_of_its_splits(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    save(tmp_path / "set" / "train.jsonl", reviews())
    save(tmp_path / "set" / "test.jsonl", reviews(4))
    both = reviews_task(hub=str(tmp_path / "set"), splits=["train", "test"])
    loaded = load_splits(both, "hub")
    assert (loaded.train, loaded.validation) == (reviews(), reviews(4))
    assert loaded.origin["splits"] == ["train", "test"]
    one = load_splits(reviews_task(hub=str(tmp_path / "set"), splits=["train"]), "hub")
    assert (len(one.train), len(one.validation)) == (8, 2)
    with pytest.raises(DataError, match=r"no split \['validation'\]; found \['test', 'train'\]"):
        load_splits(reviews_task(hub=str(tmp_path / "set")), "hub")


# The file beside the data


def test_a_file_says_what_the_keys_would(tmp_path):
    path = tmp_path / "task.yaml"
    path.write_text("name: mine\nprompt: '{q}? '\noptions: [Yes, no]\nlabel: y\nlabels: [1, 0]\n")
    written = composed("d", f"task.file={path}")
    keys = ["task.name=mine", "task.prompt={q}? ", "task.options=['Yes','no']", "task.label=y"]
    assert written == composed("d", *keys, "task.labels=[1,0]")
    assert from_dict(written.as_dict()) == written


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("promt: x", "promt is no key of a task; allowed are name, revision, prompt"),
        ("[a]", "it holds ['a']; allowed are lines of key: value"),
        ("prompt: [a]", "prompt is ['a'], allowed: text"),
        ("splits: train", "splits is 'train', allowed: a list of names"),
        ("prompt: {", "cannot be read ("),
        ("label: y", "task.label='label': "),
    ],
)
def test_a_bad_file_of_a_task(tmp_path, content, said):
    path = tmp_path / "task.yaml"
    path.write_text(content)
    with pytest.raises(BadInput) as caught:
        composed("d", f"task.file={path}", LABEL)
    assert said in str(caught.value)
    assert "task.yaml" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_other_tasks_have_the_configuration_they_had(tmp_path):
    assert tiny_run.config(tmp_path).as_dict()["task"] == {"name": "sst2", "revision": None}


@settings(max_examples=40, deadline=None)
@given(st.text(min_size=1).filter(lambda text: "$" not in text and text != "null"))
def test_any_prompt_can_be_written_on_the_command_line(text):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    word = quoted(f"task.prompt={text}")
    if text[0] in "'\"" and text[0] == text[-1]:  # in quotes already
        return
    assert OverridesParser.create().parse_override(word).value() == text


def test_a_prompt_is_read_as_it_is_written():
    prompt = 'Is "{a}", or {b}: yes, or no?\nSo: \\'
    words = [f"task.prompt={prompt}", OPTIONS, LABEL]
    assert composed("d", *words).task.prompt == prompt
