"""Files that are no JSON lines, rows that are no rows: one short line with file, line, field."""

import codecs
import gzip
import json
from pathlib import Path

import pytest
import tiny_run
from hypothesis import given, settings
from hypothesis import strategies as st
from text_models import byte_tokenizer

from experiments.config.errors import BadInput
from experiments.data import load_splits, protocol
from experiments.data.encode import EncodeError, Encoder
from experiments.data.jsonl import objects
from experiments.evaluation import forgetting
from experiments.tasks import TASKS, DataError
from experiments.training.prepare import _fingerprint
from experiments.training.session import run

SST2, COPA = TASKS["sst2"], TASKS["copa"]
ROWS = [{"sentence": f"a fine film {i}", "label": i % 2} for i in range(8)]
LINES = "\n".join(map(json.dumps, ROWS))
CHOICES = {"choice1": "The grass was wet.", "choice2": "The sun was hot."}
COPA_ROW = {"premise": "It rained.", **CHOICES, "question": "effect", "label": 0}
SQUAD_ROW = {"title": "T", "context": "A b.", "question": "What?", "answers": {"text": ["b"]}}
HALF = "\ud83d"  # of an emoji


def write(root: Path, content: str | bytes, task: str = "sst2") -> Path:
    (root / task).mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation"):
        raw = content if isinstance(content, bytes) else content.encode()
        (root / task / f"{split}.jsonl").write_bytes(raw)
    return root


def refused(root: Path, content: str | bytes, task: str = "sst2") -> str:
    """Return what is said of a file, which must be short and name the file."""
    write(root, content, task)
    with pytest.raises(DataError) as caught:
        load_splits(TASKS[task], "local", root=root)
    said = str(caught.value)
    assert len(said) < 800
    assert len(said.splitlines()) == 1
    assert f"task {task!r}, {root / task / 'train.jsonl'}" in said
    return said


@pytest.mark.parametrize(
    "content",
    [
        codecs.BOM_UTF8 + LINES.encode(),
        LINES.replace("\n", "\r\n"),
        LINES.replace("\n", "\r"),
        LINES.replace("\n", "\n \t\n\n") + "\n\n",
        LINES.encode().replace(b"\n", b"\n" + codecs.BOM_UTF8),  # files that were joined
    ],
)
def test_line_ends_marks_and_blank_lines_change_nothing(tmp_path, content):
    assert load_splits(SST2, "local", root=write(tmp_path, content)).train == ROWS


OTHER_KINDS = {
    "UTF-16": LINES.encode("utf-16"),
    "no UTF-8 (it begins with b'{\\x00": LINES.encode("utf-16-le"),
    "no UTF-8 (it begins with b'\\x00{": LINES.encode("utf-16-be"),
    "UTF-32": LINES.encode("utf-32"),
    "no UTF-8 (it begins with b'\\x00\\x00\\x00{'": LINES.encode("utf-32-be"),
    "no UTF-8 (it begins with b'\\x00\\x00\\x00\\x00'": b"\0" * 4096,  # after a crash
    "one JSON array": json.dumps(ROWS * 2000).encode(),
    "is one JSON array": json.dumps(ROWS, indent=1).encode(),
    "compressed by gzip": gzip.compress(LINES.encode()),
    "a zip archive": b"PK\x03\x04" + bytes(range(256)),
    "a Parquet file": b"PAR1" + bytes(range(256)),
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
}


@pytest.mark.parametrize("said", OTHER_KINDS)
def test_a_file_of_another_kind_is_said_to_be_one(tmp_path, said):
    found = refused(tmp_path, OTHER_KINDS[said])
    assert said in found
    assert "needed: JSON lines in UTF-8, one object a line" in found
    assert "train.jsonl: " in found, "it is not a matter of one line"


def row(**changed: object) -> str:
    return json.dumps({"sentence": "a b", "label": 0, **changed})


BAD_LINES = {
    "csv": ("sentence,label", "Expecting value, column 1"),
    "python": (str(ROWS[0]), "in double quotes, column 2"),
    "comma behind": (row() + ",", "Extra data, column 32"),
    "two objects": (row() + row(), "Extra data, column 32"),
    "cut": (row()[:-9], "Unterminated string"),
    "latin-1": ('{"sentence": "café", "label": 0}'.encode("latin-1"), "byte 0xe9 at column 18"),
    "raw tab": ('{"sentence": "a\tb", "label": 0}', "Invalid control character, column 16"),
    "NUL bytes": (b"\0" * 9, "Expecting value, column 1"),
    "twice": ('{"label": 1, "sentence": "a", "label": 0}', "field 'label' is there 2 times"),
    "twice inside": ('{"sentence": "a", "label": 0, "x": {"y": 1, "y": 2}}', "field 'y' is there"),
    "deep": ('{"sentence": "a", "label": 0, "x": ' + "[" * 10**5, "nested too deeply"),
    "digits": ('{"sentence": "a", "label": ' + "1" * 5000 + "}", "not a JSON object (Exceeds"),
    "number": ("5", "expected an object with fields ['sentence', 'label'], got 5"),
    "null": ("null", "got None"),
    "array": (json.dumps([ROWS[0]] * 999), "got [{'label': 0, 'sentence': 'a fine film 0'}"),
    "nested": (json.dumps({"data": ROWS[0]}), "field 'sentence' is missing; found ['data']"),
    "many fields": (json.dumps({str(i): i for i in range(9999)}), "'sentence' is missing; found"),
    "number for text": (row(sentence=5), "field 'sentence' is 5, allowed: a value of type str"),
    "list for text": (row(sentence=["a"] * 10**5), "field 'sentence' is ['a', 'a'"),
    "null for text": (row(sentence=None), "field 'sentence' is None"),
    "nothing to see": (row(sentence="\u200b\ufeff\u00a0"), "field 'sentence' is empty"),
    "text for number": (row(label="x" * 10**6), "field 'label' is 'xxxx"),
    "large number": (row(label=10**4000), "field 'label' is 1000"),
    "deep number": (row(label=json.loads("[" * 400 + "]" * 400)), "field 'label' is [[[[...]]]]"),
    "NaN": ('{"sentence": "a", "label": NaN}', "field 'label' is nan"),
    "half": (row(sentence=f"good {HALF}"), r"field 'sentence' holds '\ud83d' at character 6"),
    "other half": (row(sentence="\ude00 good"), r"holds '\ude00' at character 1, half of a"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_named_by_file_and_line(tmp_path, name):
    line, said = BAD_LINES[name]
    raw = line if isinstance(line, bytes) else line.encode()
    found = refused(tmp_path, f"{LINES}\n\n".encode() + raw + b"\n")
    assert "train.jsonl line 10: " in found
    assert said in found


def test_an_empty_file_is_named(tmp_path):
    for content in ("", "\n \n", codecs.BOM_UTF8):
        assert "train.jsonl: the train split is empty" in refused(tmp_path, content)


def test_an_emoji_written_in_two_halves_is_whole(tmp_path):
    line = '{"sentence": "good \\ud83d\\ude00", "label": 0}'
    found = load_splits(SST2, "local", root=write(tmp_path, f"{LINES}\n{line}"))
    assert found.train[-1]["sentence"] == "good \U0001f600"


@pytest.mark.parametrize(
    ("task", "changed", "field"),
    [
        ("copa", {"premise": f"It {HALF}rained."}, "premise"),
        ("copa", {"choice2": f"The sun {HALF}"}, "choice2"),
        ("squad", {"context": HALF + "A b."}, "context"),
        ("squad", {"answers": {"text": ["b", f"c{HALF}"]}}, "answers"),
    ],
)
def test_half_a_character_in_any_field(tmp_path, task, changed, field):
    whole = {"copa": COPA_ROW, "squad": SQUAD_ROW}[task]
    found = refused(tmp_path, "\n".join(map(json.dumps, [whole, {**whole, **changed}])), task)
    assert f"line 2: field {field!r} holds '\\ud83d'" in found


@settings(max_examples=60, deadline=None)
@given(
    content=st.one_of(
        st.binary(max_size=200),
        st.tuples(st.integers(0, len(LINES)), st.binary(max_size=6), st.integers(0, 6)).map(
            lambda at: LINES.encode()[: at[0]] + at[1] + LINES.encode()[at[0] + at[2] :]
        ),
    )
)
def test_any_file_is_read_or_refused_in_one_line(content):
    """Each line that is read is an object of JSON; nothing but a ValueError comes out."""
    found, said = [], None
    try:
        for number, _ in objects(content):
            found.append(number)
    except ValueError as error:
        said = str(error)
    lines = enumerate(content.splitlines(), 1)
    wanted = [at for at, line in lines if line.removeprefix(codecs.BOM_UTF8).strip()]
    if said is None:
        assert found == wanted
    else:
        assert found == wanted[: len(found)]
        assert len(said) < 600
        assert len(said.splitlines()) == 1


# Rows that a tokenizer cannot use: located as well


def test_choices_that_are_the_same_text_are_located(tmp_path):
    bad = {**COPA_ROW, "choice2": "the grass was wet."}
    found = refused(tmp_path, "\n".join(map(json.dumps, [COPA_ROW, COPA_ROW, bad])), "copa")
    assert "line 3: field 'choice2' is 'the grass was wet.', the same" in found


def test_a_row_that_cannot_be_encoded_is_located(tmp_path):
    long = {**COPA_ROW, "choice2": "word " * 100}
    rows = [json.dumps(COPA_ROW)] * 6 + ["", json.dumps(long)]
    raw = load_splits(COPA, "local", root=write(tmp_path, "\n".join(rows), "copa"))
    splits = protocol(COPA, raw, 4, 2, 4, seed=0)
    encoder = Encoder(byte_tokenizer(), 64)
    with pytest.raises(EncodeError) as caught:
        encoder.encode_all([*splits.train, *splits.dev, *splits.eval])
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'copa' / 'train.jsonl'} line 8: train.max_length=64")
    assert len(said) < 500


def test_where_a_row_is_from_is_no_part_of_what_it_is(tmp_path):
    spaced = write(tmp_path / "b", LINES.replace("\n", "\n\n"))
    one, two = (
        protocol(SST2, load_splits(SST2, "local", root=root), 4, 2, 4, seed=0)
        for root in (write(tmp_path / "a", LINES), spaced)
    )
    assert one.train == two.train
    assert one.train[0].where != two.train[0].where
    assert _fingerprint(one) == _fingerprint(two)


def test_a_run_says_it_in_one_line(tmp_path, program):
    tiny_run.write_data(tmp_path / "data")
    path = tmp_path / "data" / "sst2" / "train.jsonl"
    path.write_text(path.read_text() + row(sentence=f"good {HALF}"))
    end = program("method=mezo", f"data.root={tmp_path / 'data'}", "model.attention=eager")
    assert end.code == 2
    assert end.said.count("\n") == 1
    assert f"{path} line 41: field 'sentence' holds" in end.said


# Text that a run is looked at with, beside its task


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"text": "one two"}\n{"text": 5}', " line 2: it is {'text': 5}, allowed is"),
        ("a.jsonl", b"[1]\n", ": it is one JSON array"),
        ("a.jsonl", b'{"text": "one"}\n[1]', " line 2: it is [1], allowed is an object"),
        ("a.jsonl", b'{"context": "one \\ud83d"}', " line 1: field 'context' holds"),
        ("a.jsonl", b'{"text": ', " line 1: not a JSON object"),
        ("a.txt", "one two".encode("utf-16"), ": it is UTF-16; needed: text in UTF-8"),
        ("a.txt", b"caf\xe9", ": cannot be read ('utf-8' codec"),
        ("a.txt", b"version https://git-lfs.github.com/spec/v1\n", ": it is a Git LFS pointer"),
        ("a.txt", b" \n\n", ": no passage in it"),
    ],
)
def test_unrelated_text_that_cannot_be_read(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        forgetting.read(str(path), byte_tokenizer())
    assert f"train.forgetting={path}{said}" in str(caught.value)


def test_unrelated_text_is_found_at_home_and_split_at_blank_lines(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    odd = "one\u2028two"  # a line separator inside a passage is none
    (tmp_path / "a.txt").write_bytes(f"\ufeff{odd}\r\n\r\nthree four".encode())
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": odd}, ensure_ascii=False))
    tokenizer = byte_tokenizer()
    both = [tokenizer(text)["input_ids"] for text in (odd, "three four")]
    assert forgetting.read("~/a.txt", tokenizer).ids == both
    assert forgetting.read("~/a.jsonl", tokenizer).ids == both[:1]


def test_a_run_of_rows_as_one_array_says_little(tmp_path):
    write(tmp_path / "data", json.dumps(ROWS * 5000))
    config = tiny_run.config(tmp_path, "method=mezo", f"data.root={tmp_path / 'data'}")
    with pytest.raises(DataError, match="it is one JSON array") as caught:
        run(config)
    assert len(str(caught.value)) < 300
