"""A run with streamed layers: the result of a resident one, resumed, adapted, saved; or refused."""

import pytest
import tiny_run
import torch
from safetensors.torch import load_file

from experiments.config.errors import BadInput
from experiments.models.offload import check_offload
from experiments.probe import scene
from experiments.training import parts as parts_of_a_run
from experiments.training import runner
from experiments.training.session import run
from tests.experiments.training.test_resume import run_and_die
from tests.quick import quick

STREAMED = "model.offload=layers"
ZO_ACT = ("method=zo_act", "method.large_state=true")
DOMINANT = ("method=dominant_layer", "method.reuse_prefix=false")
peft_warns = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")


def both(tmp_path, *overrides):
    """Run the same with resident and with streamed layers; return (config, result) of each."""
    configs = [
        tiny_run.config(tmp_path / "resident", *overrides),
        tiny_run.config(tmp_path / "streamed", *overrides, STREAMED),
    ]
    return [(config, run(config)) for config in configs]


def assert_same(resident, streamed):
    about = streamed[1].pop("offload")
    assert about["layers"] == 2
    assert about["uploads"] > 2 * streamed[1]["steps"]
    assert resident[1].pop("offload") is None
    assert resident[1]["config"]["model"].pop("offload") == "none"
    assert streamed[1]["config"]["model"].pop("offload") == "layers"
    tiny_run.assert_same(*streamed, *resident)


@peft_warns
@pytest.mark.parametrize(
    "overrides",
    quick(
        [
            ("method=agzo", "precision=bf16_stochastic"),
            ("method=agzo", "method.estimator=two_sided", "train.packing=always"),
            ("method=mezo", "train.objective=metric"),
            ("method=lozo_m",),
            ("method=agzo", "adapter=lora"),
            ("method=mezo", "adapter=prefix", "adapter.init=random"),
            ZO_ACT,
            DOMINANT,
        ],
        "method=agzo precision=bf16_stochastic",
        "method=lozo_m",
        name=" ".join,
    ),
)
def test_a_streamed_run_has_the_result_of_a_resident_one(tmp_path, overrides):
    assert_same(*both(tmp_path, *overrides))


@pytest.mark.parametrize(
    "where", [(parts_of_a_run, "sample_batch", 7), (runner, "evaluate", 4)], ids=str
)
def test_a_run_that_dies_goes_on_streamed_or_not(tmp_path, where):
    begun = tiny_run.config(tmp_path / "two", "method=agzo", STREAMED)
    run_and_die(begun, *where)
    rest = tiny_run.config(tmp_path / "two", "method=agzo")
    other = tiny_run.config(tmp_path / "one", "method=agzo")
    tiny_run.assert_same(rest, run(rest), other, run(other))


def test_the_saved_model_is_that_of_the_best_checkpoint(tmp_path):
    (_, _), (config, result) = both(tmp_path, "method=mezo", "train.save_model=true")
    saved = load_file(config.folder / "model" / "model.safetensors")
    best = tiny_run.best_weights(config, result)
    assert all(torch.equal(saved[name], best[name]) for name in saved)


def test_a_method_that_trains_nothing_is_evaluated(tmp_path):
    (_, resident), (_, streamed) = both(tmp_path, "method=zero_shot")
    timeless = [{**each["eval"], "seconds": 0} for each in (resident, streamed)]
    assert timeless[0] == timeless[1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("method=sgd",), "model.offload=layers: method=sgd needs all weights at once; allowed"),
        (("method=mezo", "model.quantize=int8"), "model.quantize=int8: with model.offload=layers"),
        (("method=mezo", "adapter=prefix"), "adapter.init=activations: it runs the model before"),
        (("method=mezo", "method.execution=in_place"), "method.execution='in_place': with"),
        (("method=mezo", "method.execution=batched"), "method.execution='batched': with streamed"),
        (("method=mezo", "precision=bf16_master"), "method.rounding='master': with streamed"),
        (("method=dominant_layer",), "method.reuse_prefix=True: the evaluations of streamed"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_cannot_be_streamed_is_refused_before_anything_is_loaded(tmp_path, overrides, message):
    with pytest.raises(BadInput) as refused:
        check_offload(tiny_run.config(tmp_path, *overrides, STREAMED))
    assert str(refused.value).startswith(message)


def test_a_probe_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"model\.offload=layers: a probe needs gradients"):
        scene.load(tiny_run.arguments(tmp_path, "method=agzo", STREAMED))


def test_a_word_that_is_no_way_to_offload(tmp_path):
    with pytest.raises(BadInput, match=r"model\.offload=disk: allowed are none, layers"):
        tiny_run.config(tmp_path, "method=agzo", "model.offload=disk")
