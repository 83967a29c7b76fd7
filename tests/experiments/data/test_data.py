"""Sources of rows, and MeZO's sampling of them."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.data import RawData, load_splits, protocol
from experiments.tasks import TASKS, DataError, HubSource

SST2 = TASKS["sst2"]


def rows(count: int, word: str = "film") -> list[dict]:
    return [{"idx": i, "sentence": f"{word} {i}", "label": i % 2} for i in range(count)]


def write(path: Path, entries: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "sst2" / "train.jsonl", rows(30))
    write(tmp_path / "sst2" / "validation.jsonl", rows(10, "book"))
    return tmp_path


def raw(train: int, validation: int) -> RawData:
    return RawData(list(rows(train)), list(rows(validation, "book")), {})


# Local files


def test_local_rows_and_their_origin(root: Path):
    loaded = load_splits(SST2, "local", root=root)
    assert loaded.train == rows(30)
    assert loaded.validation == rows(10, "book")
    content = (root / "sst2" / "train.jsonl").read_bytes()
    assert loaded.origin == {
        "source": "local",
        "root": str(root),
        "train_sha256": hashlib.sha256(content).hexdigest(),
        "validation_sha256": loaded.origin["validation_sha256"],
        "train_rows": 30,
        "validation_rows": 10,
    }
    json.dumps(loaded.origin)


def test_text_with_unusual_line_separators_is_one_row(root: Path):
    odd = {"idx": 0, "sentence": "one\u2028two\x85three", "label": 1}
    path = root / "sst2" / "validation.jsonl"
    path.write_text(json.dumps(odd, ensure_ascii=False) + "\r\n", encoding="utf-8")
    assert load_splits(SST2, "local", root=root).validation == [odd]


def test_missing_root_file_and_setting(root: Path):
    with pytest.raises(DataError, match=r"data\.root is not set"):
        load_splits(SST2, "local")
    with pytest.raises(DataError, match=r"data\.root='.*nowhere' is no folder"):
        load_splits(SST2, "local", root=root / "nowhere")
    with pytest.raises(DataError, match=r"rte.train\.jsonl is missing \(there: no folder\)"):
        load_splits(TASKS["rte"], "local", root=root)
    (root / "sst2" / "validation.jsonl").rename(root / "sst2" / "dev.jsonl")
    with pytest.raises(DataError, match=r"validation\.jsonl is missing .*dev\.jsonl.*train\.jsonl"):
        load_splits(SST2, "local", root=root)
    with pytest.raises(
        DataError, match=r"'remote' is unknown, allowed: .*'pocket', 'local', 'hub'"
    ):
        load_splits(SST2, "remote")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"sentence": "x", "label": 1', "not a JSON object"),
        (b'{"sentence": "\xff", "label": 1}', "not a JSON object"),
        (b'{"label": 1}', "field 'sentence' is missing"),
        (b'{"sentence": "x", "label": 5}', "'label' is 5"),
        (b"[1, 2]", "expected an object"),
    ],
)
def test_a_bad_line_is_named_by_its_number(root: Path, line: bytes, said: str):
    path = root / "sst2" / "train.jsonl"
    path.write_bytes(path.read_bytes() + b"\n" + line + b"\n")  # behind 30 rows and a blank line
    with pytest.raises(DataError, match=said) as caught:
        load_splits(SST2, "local", root=root)
    assert f"{path} line 32" in str(caught.value)


def test_an_empty_file_is_an_empty_split(root: Path):
    (root / "sst2" / "validation.jsonl").write_text("\n")
    with pytest.raises(DataError, match="the validation split is empty"):
        load_splits(SST2, "local", root=root)


PROTOCOL = [name for name, task in TASKS.items() if task.hub is not None]  # none of one's own


@pytest.mark.parametrize("name", PROTOCOL)
def test_real_data(shared: Path, name: str):
    task = TASKS[name]
    loaded = load_splits(task, "local", root=shared / "data")
    asked = 500 if len(loaded.train) > 500 or task.max_dev else 20  # WSC and ReCoRD: excerpts
    splits = protocol(task, loaded, 1000, asked, 1000, seed=0)
    dev = min(asked, task.max_dev or asked)
    assert splits.sizes["used"] == {
        "train": min(1000, len(loaded.train) - dev),
        "dev": dev,
        "eval": min(1000, len(loaded.validation)),
    }


# Pocket


@pytest.mark.parametrize("name", PROTOCOL)
def test_pocket_rows_pass_the_same_checks(name: str):
    loaded = load_splits(TASKS[name], "pocket", seed=3, pocket_rows=(24, 12))
    assert (len(loaded.train), len(loaded.validation)) == (24, 12)
    assert loaded.origin["source"] == "pocket"
    assert load_splits(TASKS[name], "pocket", seed=3, pocket_rows=(24, 12)) == loaded


def test_the_pocket_world_has_no_rows_for_a_task_of_ones_own():
    mine = replace(SST2, name="mine", hub=None)
    with pytest.raises(DataError, match=r"task 'mine', data\.source='pocket': no rows .*'local'"):
        load_splits(mine, "pocket")


# Hub: a folder in the shape of a hub snapshot, and a builder that tells what it was asked


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "glue"
    write(folder / "sst2" / "train.jsonl", rows(6))
    write(folder / "sst2" / "validation.jsonl", rows(4, "book"))
    write(folder / "other" / "train.jsonl", [{"text": "no"}])
    (folder / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: sst2\n  data_files:\n"
        "  - {split: train, path: sst2/train.jsonl}\n"
        "  - {split: validation, path: sst2/validation.jsonl}\n"
        "- config_name: other\n  data_files:\n"
        "  - {split: train, path: other/train.jsonl}\n---\n"
    )
    return folder


def test_hub_snapshot(snapshot: Path):
    task = replace(SST2, hub=HubSource(str(snapshot), "sst2"))
    loaded = load_splits(task, "hub")
    assert loaded.train == rows(6)
    assert loaded.validation == rows(4, "book")
    assert loaded.origin["path"] == str(snapshot)
    assert loaded.origin["revision"] is None
    assert loaded.origin["commit"]


def test_hub_errors_name_id_and_cause(snapshot: Path):
    with pytest.raises(DataError, match=r"no split \['validation'\]; found \['train'\]"):
        load_splits(replace(SST2, hub=HubSource(str(snapshot), "other")), "hub")
    with pytest.raises(DataError, match=r"'absent', None.*cannot be loaded"):
        load_splits(replace(SST2, hub=HubSource(str(snapshot), "absent")), "hub")
    with pytest.raises(DataError, match=r"hub data set '.*nowhere'.*cannot be loaded"):
        load_splits(replace(SST2, hub=HubSource(str(snapshot / "nowhere"))), "hub")


def test_a_task_of_ones_own_has_local_rows_alone(tmp_path: Path):
    mine = replace(SST2, name="mine", hub=None)
    (tmp_path / "mine").mkdir()
    for split in ("train", "validation"):
        lines = "\n".join(map(json.dumps, rows(3, split)))
        (tmp_path / "mine" / f"{split}.jsonl").write_text(lines)
    assert load_splits(mine, "local", root=str(tmp_path)).train == rows(3, "train")
    with pytest.raises(DataError, match=r"'mine', data\.source='hub': .* allowed: 'local'"):
        load_splits(mine, "hub")


def test_hub_revision_is_asked_for_and_the_commit_recorded(monkeypatch: pytest.MonkeyPatch):
    import datasets

    commit, asked = "c0ffee" + "0" * 34, []

    def load_dataset_builder(path, name, revision):
        asked.append((path, name, revision))
        return SimpleNamespace(
            hash=commit,
            info=SimpleNamespace(splits={"train": None, "validation": None}),
            download_and_prepare=lambda: None,
            as_dataset=lambda split: rows(5),
        )

    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    unpinned = replace(SST2, hub=replace(SST2.hub, revision=None))
    assert load_splits(unpinned, "hub").origin["commit"] == commit
    pinned = replace(SST2, hub=replace(SST2.hub, revision=commit))
    assert load_splits(pinned, "hub").origin["revision"] == commit
    assert asked == [("nyu-mll/glue", "sst2", None), ("nyu-mll/glue", "sst2", commit)]
    other = replace(SST2, hub=replace(SST2.hub, revision="d" * 40))
    with pytest.raises(DataError, match=f"commit '{commit}' was found in its place"):
        load_splits(other, "hub")


def test_other_sources_do_not_import_datasets(root: Path):
    code = (
        "import sys; from experiments.data import load_splits; "
        "from experiments.tasks import TASKS; "
        f"load_splits(TASKS['sst2'], 'local', root={str(root)!r}); "
        "print('datasets' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


# MeZO's sampling


def test_the_protocol_is_mezos():
    data = raw(100, 40)
    splits = protocol(SST2, data, 20, 10, 15, seed=7)
    # MeZO's own words: seed the global generator, permute, slice.
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(7)  # noqa: NPY002
    pool = np.random.permutation(100).tolist()[:30]  # noqa: NPY002
    np.random.seed(7)  # noqa: NPY002
    chosen = np.random.permutation(40).tolist()[:15]  # noqa: NPY002
    np.random.set_state(before)  # noqa: NPY002
    prompts = [f"film {i} It was" for i in pool]
    assert [e.prompt for e in splits.train] == prompts[:20]
    assert [e.prompt for e in splits.dev] == prompts[20:]
    assert [e.prompt for e in splits.eval] == [f"book {i} It was" for i in chosen]


@given(
    sizes=st.tuples(st.integers(2, 60), st.integers(1, 40)),
    asked=st.tuples(st.integers(1, 50), st.integers(1, 30), st.integers(1, 50)),
    seed=st.integers(0, 2**32 - 1),
)
def test_splits_are_disjoint_and_only_training_shrinks(sizes, asked, seed):
    (n_train, n_validation), (num_train, num_dev, num_eval) = sizes, asked
    data = raw(n_train, n_validation)
    if num_dev >= n_train:
        with pytest.raises(DataError, match=f"num_dev={num_dev} leaves nothing"):
            protocol(SST2, data, num_train, num_dev, num_eval, seed)
        return
    splits = protocol(SST2, data, num_train, num_dev, num_eval, seed)
    train, dev, evaluation = (
        {e.prompt for e in split} for split in (splits.train, splits.dev, splits.eval)
    )
    assert not train & dev
    assert len(dev) == len(splits.dev) == num_dev
    assert len(train) == len(splits.train) == min(num_train, n_train - num_dev)
    assert len(evaluation) == min(num_eval, n_validation)
    assert splits == protocol(SST2, data, num_train, num_dev, num_eval, seed)
    assert splits.sizes["used"] == {
        "train": len(train),
        "dev": len(dev),
        "eval": len(evaluation),
    }


def test_a_small_training_split_shrinks_training_and_says_so():
    # CB: 250 rows, dev capped at 100, so training shrinks to 150.
    splits = protocol(replace(SST2, max_dev=100), raw(250, 56), 1000, 500, 1000)
    assert splits.sizes == {
        "requested": {"train": 1000, "dev": 500, "eval": 1000},
        "used": {"train": 150, "dev": 100, "eval": 56},
    }
    fewer = protocol(replace(SST2, max_dev=100), raw(250, 56), 1000, 20, 1000)
    assert fewer.sizes["used"]["dev"] == 20


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"num_train": 0}, "train.num_train=0"),
        ({"num_dev": 0}, "train.num_dev=0"),
        ({"num_eval": -1}, "train.num_eval=-1"),
        ({"seed": -1}, "seed=-1 is not allowed"),
        ({"num_dev": 100}, "num_dev=100 leaves nothing to train on"),
    ],
)
def test_impossible_requests(changed: dict, said: str):
    with pytest.raises(DataError, match=said):
        protocol(SST2, raw(100, 40), **{"num_dev": 10, **changed})


def test_a_bad_row_in_memory_is_named():
    data = RawData([{"sentence": "x"}] * 4, list(rows(2)), {})
    with pytest.raises(DataError, match=r"task 'sst2', train row \d: field 'label' is missing"):
        protocol(SST2, data, 2, 1, 1)
    with pytest.raises(DataError, match="validation split is empty"):
        protocol(SST2, RawData(list(rows(4)), [], {}), 2, 1, 1)
