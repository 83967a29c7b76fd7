"""Configurations drawn at random: each one starts, or is refused in one line that names a key.

The legal values of a key are those its declaration allows (experiments/config/schema.py) or, of a
method, a few for each argument. Combinations may contradict each other; then they are refused as
well as any illegal value: exit code 2, at once, with the key, and never with a traceback.
"""

import contextlib
import io
import re
import sys
import time
from unittest import mock

import pytest
import tiny_run
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from experiments import run as program
from experiments.config import composed as configuration
from experiments.config.composed import compose
from experiments.methods.registry import METHODS, method_class, method_keys

REFUSED_WITHIN = 10.0  # seconds

METHOD_VALUES = {
    "lr": ["1e-3", "1e-30", "10"], "eps": ["1e-3", "1e-8", "10"],
    "estimator": ["one_sided", "two_sided", "per_piece"], "queries": ["1", "2"],
    "noise": ["gaussian", "rademacher"],
    "embeddings": ["tuned", "frozen", "seen"],
    "update": ["sgd", "momentum", "adam", "scalar", "spread", "centred"],
    "momentum": ["0", "0.9"], "beta2": ["0.5"], "large_state": ["true", "false"],
    "weight_decay": ["0", "0.1"], "execution": ["side_branch", "batched", "in_place"],
    "rank": ["1", "3", "16", "17"], "refresh_every": ["1", "5", "null", "one_shot"],
    "power_steps": ["0", "2"], "basis": ["power", "exact"], "include_padding": ["true"],
    "warm_start": ["true"], "published_refresh": ["true"],
    "accumulated_basis": ["gram", "first"],
    "layer": ["0", "1", "7", "null"], "scan_batches": ["0", "1"], "reuse_prefix": ["true", "false"],
    "base": ["mezo", "lozo", "lozo_m", "agzo"], "calibration_batches": ["1"],
    "calibration_passes": ["1", "2"], "betas": ["[0.5,0.9]"], "adam_eps": ["1e-8"],
    "curvature_rate": ["0", "0.1", "1"], "theta": ["0", "1.3"], "beta": ["0.9", "1"],
    "vector_rate": ["0", "-1"], "active": ["0", "2"], "leading": ["0", "9"], "rate": ["0", "1"],
    "density": ["0", "0.5"], "score_queries": ["0", "1"],
    "eps_steps": ["null", "5", "0"],
    "demonstrations": ["1", "40"], "detector": ["massive_activations"],
}  # fmt: skip

RUN_VALUES = {
    "adapter": ["none", "lora", "prefix"], "precision": ["fp32", "bf16", "fp16", "bf16_master",
    "bf16_stochastic", "fp16_master"], "train.packing": ["auto", "always", "never"],
    "train.schedule": ["constant", "linear"], "train.select_by": ["dev_loss", "dev_metric"],
    "train.objective": ["loss", "metric"], "train.batch_size": ["1", "4", "16", "17"],
    "train.log_every": ["1", "5"], "train.checkpoint_every": ["null", "1"],
    "train.eval_every": ["1", "5", "null"], "train.evals": ["null", "1", "9"],
    "train.steps": ["1", "2", "null"], "train.forwards": ["null", "1", "9"],
    "train.num_train": ["16", "39", "40"], "train.max_length": ["2", "64", "128", "4096"],
    "train.eval_batch_size": ["1", "1000000"], "train.save_model": ["true", "false"],
    "train.keep_checkpoint": ["true", "false"], "train.eval_at_start": ["true", "false"],
    "seed": ["0", "4294967295"], "train.train_seed": ["0", "4294967295"],
    "model.offload": ["none", "layers"], "model.quantize": ["none"],
    "model.attention": ["sdpa", "eager"], "model.prompt": ["plain", "chat"], "threads": ["1"],
}  # fmt: skip

# Of every declared key at least one of these is wrong; which are, its declaration says.
JUNK = ["-1", "0", "nan", "1e400", "-inf", "2.5", "word", "null", "[1,2]", "{a:1}", "''", "true",
        "100000000000000000000000", "../x", "\u00e9 \u00fc"]  # fmt: skip
PLACES = {"method", "plan", "out", "tracking.project", "tracking.entity", "model.trust_remote_code"}


def call(out, overrides):
    """Run the program in this process; return its exit code, what it said, and the seconds."""
    said, begin = io.StringIO(), time.perf_counter()
    arguments = ["run", *tiny_run.arguments(out, *overrides)]
    with (
        mock.patch.object(sys, "argv", arguments),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        code = program.main()
    return code, said.getvalue(), time.perf_counter() - begin


def assert_starts_or_is_refused(out, overrides, must_refuse=None):
    try:
        code, said, seconds = call(out, overrides)
    except Exception as error:
        raise AssertionError(f"{overrides}: a traceback") from error
    assert "Traceback" not in said, (overrides, said)
    if must_refuse is not None:
        assert code == 2, (overrides, said)
    if code == 0:
        return
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert errors, (overrides, said)
    if code == 1:
        assert "allowed are finite losses" in errors[0], (overrides, said)
        return
    assert code == 2, (overrides, said)
    assert seconds < REFUSED_WITHIN, overrides
    names = [must_refuse] if must_refuse else [each.partition("=")[0] for each in overrides]
    words = {name.lstrip("+").split(".")[-1] for name in names}
    words |= {"task"} if must_refuse == "task.name" else set()
    assert any(re.search(rf"\b{word}\b", said) for word in words), (overrides, said)


@st.composite
def combinations(draw):
    """Overrides of a run with a method, some of its arguments, and some of the run's keys."""
    method = draw(st.sampled_from(sorted(METHODS)))
    keys = sorted(method_keys(method_class(method)))
    given = {f"method.{key}": METHOD_VALUES[key] for key in keys} | RUN_VALUES
    chosen = draw(st.lists(st.sampled_from(sorted(given)), unique=True, max_size=8))
    overrides = {"train.steps": "2", "train.eval_every": "1"}
    overrides |= {key: draw(st.sampled_from(given[key])) for key in chosen}
    return [f"method={method}", *(f"{key}={value}" for key, value in overrides.items())]


@st.composite
def wrong(draw):
    """One override of a declared key, and whether its declaration makes it illegal for sure."""
    base = compose(["method=mezo"])
    entries = {n: (v, b) for n, v, b in configuration._entries(base) if n not in PLACES}
    name = draw(st.sampled_from(sorted(entries)))
    value = draw(st.sampled_from(JUNK))
    current, bounds = entries[name]
    certain = "choices" in bounds and value not in bounds["choices"] and value != "null"
    if isinstance(current, int) and not isinstance(current, bool):
        certain |= value in ("nan", "1e400", "-inf", "2.5", "word", "[1,2]", "{a:1}", "''", "../x")
        certain |= value == "-1" or len(value) > 20
    return name, value, certain


def try_combination(tmp_path_factory, overrides):
    out = tmp_path_factory.mktemp("fuzz")
    trains = method_class(overrides[0].partition("=")[2]).about.trains  # pyright: ignore
    arguments = tiny_run.arguments if trains else without_lr(tiny_run.arguments)
    with mock.patch.object(tiny_run, "arguments", arguments):
        assert_starts_or_is_refused(out, overrides)


def without_lr(arguments):
    """Leave out the lr that the tiny world gives, for methods without one."""
    return lambda out, *overrides: [
        each for each in arguments(out, *overrides) if not each.startswith("method.lr=")
    ]


def try_wrong(tmp_path_factory, drawn):
    name, value, certain = drawn
    given = ["method=mezo", "train.steps=2", f"{name}={value}"]
    fast = mock.patch.object(program, "run", return_value=None)  # composing and checking alone
    with fast if not certain else contextlib.nullcontext():
        assert_starts_or_is_refused(
            tmp_path_factory.mktemp("wrong"), given, must_refuse=name if certain else None
        )


quick = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(autouse=True)
def _same_threads():
    before = torch.get_num_threads()
    tiny_run.world()
    yield
    torch.set_num_threads(before)


@example(["method=mezo", "adapter=lora", "seed=4294967295"])
@example(["method=agzo", "adapter=prefix", "precision=fp16"])
@settings(quick, max_examples=8)
@given(combinations())
@pytest.mark.slow
def test_a_combination_starts_or_is_refused(tmp_path_factory, overrides):
    try_combination(tmp_path_factory, overrides)


@pytest.mark.slow
@settings(quick, max_examples=400, derandomize=False, print_blob=True)
@given(combinations())
def test_many_combinations_start_or_are_refused(tmp_path_factory, overrides):
    try_combination(tmp_path_factory, overrides)


@example(("model.path", "-1", False))
@example(("seed", "100000000000000000000000", True))
@example(("threads", "2000000000", True))
@example(("data.root", "''", True))
@settings(quick, max_examples=8)
@given(wrong())
def test_a_wrong_value_is_refused_by_name(tmp_path_factory, drawn):
    try_wrong(tmp_path_factory, drawn)


@pytest.mark.slow
@settings(quick, max_examples=600, derandomize=False, print_blob=True)
@given(wrong())
def test_many_wrong_values_are_refused_by_name(tmp_path_factory, drawn):
    try_wrong(tmp_path_factory, drawn)


def test_every_argument_of_every_method_has_values_here():
    known = {key for name in METHODS for key in method_keys(method_class(name))}
    assert known <= METHOD_VALUES.keys()
