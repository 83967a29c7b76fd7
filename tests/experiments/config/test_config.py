"""Configs: every file composes, every key is commented and typed, bounds and changes are said."""

import re
from pathlib import Path
from typing import Any, Literal

import pytest
from omegaconf import OmegaConf
from tiny_run import StandIn

from experiments.config.composed import CONF, changes, compose, flatten, read_yaml, to_yaml
from experiments.config.errors import BadInput
from experiments.methods import registry
from experiments.methods.registry import METHODS, cast, method_keys, settings

FILES = sorted(CONF.rglob("*.yaml"))
OPTIONS = [
    f"{path.parent.relative_to(CONF)}={path.stem}"
    for path in FILES
    if path.parent != CONF and "tuned" not in path.parts
]


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_into_a_valid_run(option):
    own = ["task.prompt='{x} y'", "task.answer=z", "data=local", "data.root=/data"]
    extra = {"data=local": ["data.root=/data"], "model=local": ["model.path=/models/x"]}
    extra["task=custom"] = own
    prefix = "+" if option.startswith(("experiment", "debug")) else ""
    config = compose([prefix.replace("+", "") + option, *extra.get(option, [])])
    assert settings(config.method, config.precision.rounding).keys() >= set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONF)))
def test_every_key_has_a_comment_and_no_line_is_too_long(path):
    text = path.read_text()
    assert text.startswith("#"), "a file starts with what it is"
    body = re.sub(r"(?m)^(defaults|hydra):\n(?: .*\n|\n)*", "", text)
    for line in body.splitlines():
        key = re.match(r"\s*([\w]+):(.*)", line)
        if key and key[2].strip():
            assert "#" in line, f"{path.name}: {line!r} has no comment"
    assert all(len(line) <= 118 for line in text.splitlines())


@pytest.mark.parametrize("path", sorted((CONF / "experiment").glob("*.yaml")), ids=lambda p: p.stem)
def test_presets_start_with_the_command_that_runs_them(path):
    text = path.read_text()
    lines = text.splitlines()
    assert lines[0] == "# @package _global_"
    target = path.stem if "_" in path.stem else f"reproduce-{path.stem}"
    make = f"# make {target.replace('_', '-')} "
    assert lines[1].startswith(("# python -m experiments.run", make))
    if lines[1].startswith(make):
        makefile = (CONF.parent / "Makefile").read_text()
        assert f"\n{make.removeprefix('# make ').strip()}: ##" in makefile
    assert f"experiment={path.stem}" in lines[1] or f"experiments.suite {path.stem}" in text


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_file_lists_exactly_its_constructors_keys(name):
    file = OmegaConf.load(CONF / "method" / f"{name}.yaml")
    assert set(file) - {"name"} == set(method_keys(METHODS[name]))
    assert file["name"] == name


TUNED = sorted((CONF / "method" / "tuned").glob("*/*.yaml"))


@pytest.mark.parametrize("path", TUNED, ids=[path.stem for path in TUNED])
def test_tuned_settings_are_picked_by_adapter_model_and_method_and_yield_to_the_command_line(path):
    model, task, method = path.stem.split("_", 2)
    words = [f"adapter={path.parent.name}", f"model={model}", f"task={task}", f"method={method}"]
    wanted = OmegaConf.load(path).method
    got = compose(words)
    assert {key: got.method[key] for key in wanted} == dict(wanted)
    assert got.as_dict()["tuned"] == f"{path.parent.name}/{path.stem}"
    assert compose([*words, "method.lr=0.5"]).method["lr"] == 0.5


@pytest.mark.parametrize("adapter", ["lora", "prefix"])
def test_settings_tuned_for_all_weights_are_not_those_of_an_adapter(adapter):
    plain = OmegaConf.load(CONF / "method" / "mezo.yaml")
    got = compose(["model=pocket", "task=sst2", "method=mezo", f"adapter={adapter}"])
    assert (got.method["lr"], got.method["eps"], got.tuned) == (plain.lr, plain.eps, None)


def test_where_settings_are_from_is_no_change_of_a_run():
    config = compose(["model=pocket", "task=sst2", "method=mezo"])
    assert config.tuned == "none/pocket_sst2_mezo"
    older = {name: value for name, value in config.as_dict().items() if name != "tuned"}
    assert changes(older, config.as_dict()) == []


def test_folder_is_deterministic_and_holds_the_variant():
    config = compose(["method=lozo", "task=rte", "seed=3", "suite=s", "variant=r4", "out=o"])
    assert config.folder == Path("o/s/pocket/rte/lozo+r4/seed3")
    named = compose(["model=local", "model.path=/models/mine/"])
    assert named.model.name == "mine"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("tuned=mine", ["tuned=mine", "allowed is null"]),
        ("train.select_by=best", ["train.select_by=best", "dev_loss, dev_metric"]),
        ("train.batch_size=0", ["train.batch_size=0", "1 or more"]),
        ("train.steps=null", ["train.steps", "train.forwards"]),
        ("train.eval_every=5", ["train.eval_every=5", "train.evals=10"]),
        ("suite=a/b", ["suite", "names a folder"]),
        ("seed=-1", ["seed=-1", "0 or more"]),
        ("data=local", ["data.root"]),
        ("model=local", ["model.path"]),
        ("precision.dtype=int8", ["precision.dtype=int8", "fp32, bf16, fp16"]),
    ],
)
def test_bounds_name_key_value_and_what_is_allowed(override, words):
    with pytest.raises(BadInput) as error:
        compose([override])
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (["method=lozo", "method.rank=0"], ["method.rank=0", ">= 1"]),
        (["method.eps=0"], ["method.eps=0.0", "> 0"]),
        (["method.eps=nan"], ["method.eps=nan", "finite"]),
        (["method.lr=0"], ["method.lr=0", "above 0"]),
        (["method.rank=1.5"], ["method.rank=1.5", "whole number"]),
        (["method.embeddings=some"], ["method.embeddings", "tuned", "frozen"]),
        (["+method.rnk=1"], ["method.rnk=1", "rank, power_steps"]),
        (["method=sgd", "precision=bf16_master"], ["precision.rounding=master", "nearest"]),
    ],
)
def test_method_settings_are_judged_before_any_model_is_loaded(override, words):
    config = compose(override)
    with pytest.raises(BadInput) as error:
        settings(config.method, config.precision.rounding)
    assert all(word in str(error.value) for word in words)


def test_a_method_is_one_line_in_the_registry(monkeypatch):
    monkeypatch.setitem(registry.METHODS, "stand_in", StandIn)
    values = settings({"name": "stand_in", "lr": 1, "poison_at": None}, "nearest")
    assert values == {"lr": 1.0, "poison_at": None}
    with pytest.raises(BadInput, match=r"method\.strength=0: allowed are 1"):
        settings({"name": "stand_in", "lr": 0.1, "strength": 0}, "nearest")
    with pytest.raises(BadInput, match="method=nothing: unknown; allowed are agzo"):
        settings({"name": "nothing"}, "nearest")


@pytest.mark.parametrize(
    ("value", "kind", "wanted"),
    [
        (1, float, 1.0),
        ([0.9, 0.99], tuple[float, float], (0.9, 0.99)),
        (None, int | None, None),
        ("a", Literal["a", "b"], "a"),
    ],
)
def test_cast(value: Any, kind: Any, wanted: Any):
    assert cast("k", value, kind) == wanted


@pytest.mark.parametrize(
    ("value", "kind"),
    [(True, int), ("1", float), ([1], tuple[float, float]), ("c", Literal["a", "b"]), (1, bool)],
)
def test_cast_refuses(value: Any, kind: Any):
    with pytest.raises(BadInput, match=r"^k="):
        cast("k", value, kind)


def test_changes_lists_old_and_new_and_leaves_out_what_is_free(tmp_path):
    old, new = compose([]), compose(["method.lr=1", "tracking=disabled", "out=x", "seed=1"])
    assert changes(old.as_dict(), new.as_dict()) == [
        f"method.lr: {old.method['lr']} -> 1",
        "seed: 0 -> 1",
    ]
    (tmp_path / "config.yaml").write_text(to_yaml(old))
    assert changes(read_yaml(tmp_path / "config.yaml"), old.as_dict()) == []
    assert flatten({"a": {"b": 1}}) == {"a.b": 1}


OWN = ["data=local", "data.root=a", "model=local", "model.path=a/m", "train.forgetting=a.txt"]


@pytest.mark.parametrize("place", ["data.root=b", "model.path=b/m", "train.forgetting=b.txt"])
def test_own_files_may_lie_elsewhere_but_may_not_be_taken_away(place):
    here = compose(OWN).as_dict()
    assert changes(here, compose([*OWN, place]).as_dict()) == []
    name = place.partition("=")[0]
    section, _, key = name.partition(".")
    gone = here | {section: here[section] | {key: None}}
    assert [line.partition(":")[0] for line in changes(here, gone)] == [name]
    assert [line.partition(":")[0] for line in changes(gone, here)] == [name]


def test_a_path_on_the_hub_is_a_name_and_may_not_change():
    first, other = (
        compose(["model=smollm2-135m", f"model.path={path}"]).as_dict() for path in ("a/m", "b/m")
    )
    assert changes(first, other) == ["model.path: a/m -> b/m"]
