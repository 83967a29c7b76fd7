"""The metric as the objective: what an evaluation reports; zeroth-order methods can climb it."""

from dataclasses import replace

import pytest
import tiny_run
import torch

from agzo import AGZO
from baselines import LOZO, SGD, MeZO
from experiments.config.composed import compose
from experiments.config.errors import BadInput
from experiments.data.encode import Encoder
from experiments.evaluation.evaluate import evaluate, questions
from experiments.evaluation.metrics import best_f1
from experiments.probe import scene
from experiments.suites.estimate import _step_seconds
from experiments.tasks import TASKS, Example
from experiments.training import parts as parts_of_a_run
from experiments.training import prepare
from experiments.training.objective import metric_objective
from experiments.training.session import run
from tests.experiments.data.test_batches import EXAMPLES, ONE_TOKEN, TWO_OPTIONS
from tests.text_models import FAMILIES, byte_tokenizer, random_model

ENCODER = Encoder(byte_tokenizer(), 64)
SST2, COPA, RECORD, SQUAD = (TASKS[name] for name in ("sst2", "copa", "record", "squad"))
SEVERAL = [  # of these options two are right, as in ReCoRD
    Example("The one is", (" here", " it", " there", " not"), 1, correct=(1, 2)),
    Example("The other is", (" here", " there", " that"), 0, correct=(0, 2)),
]
LETTERS = [Example(f"{word} {i}:", ("x", "y"), int(word == "good"))
           for i in range(8) for word in ("good", "bad")]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("task", "examples"),
    [
        (SST2, [*TWO_OPTIONS, *LETTERS[:5]]),
        (SST2, ONE_TOKEN),
        (COPA, [Example("It was so", (" he left", " she came home"), n % 2) for n in range(3)]),
        (SST2, [*EXAMPLES, *ONE_TOKEN]),
        (RECORD, [*SEVERAL, *EXAMPLES, *TWO_OPTIONS]),
    ],
    ids=["two", "three", "sentences", "varying", "several right"],
)
def test_accuracy_is_that_of_an_evaluation(family: str, task, examples: list[Example]):
    for seed in range(3):
        model, asked = random_model(family, seed), questions(ENCODER, task, examples)
        for chosen in (range(len(examples)), [len(examples) - 1, 0]):
            closure, mask = metric_objective(model, ENCODER, task, asked, chosen, "cpu")
            some = replace(asked, encoded=[asked.encoded[i] for i in chosen])
            wanted = evaluate(model, ENCODER, task, some, 64, "cpu")
            with torch.no_grad():
                value = closure()
            assert value.shape == ()
            assert value.dtype == torch.float32
            assert value.item() == pytest.approx(-wanted["accuracy"], abs=1e-6)
            assert mask is not None
            assert mask.dtype == torch.bool


def answered(model, texts: list[str], length: int) -> list[Example]:
    """Questions whose golds are near to what the model says, so that no F1 is 0 or 1 throughout."""
    from experiments.evaluation.generate import generate

    said = generate(model, ENCODER, [ENCODER.tokenizer(t)["input_ids"] for t in texts], length)
    return [
        Example(text, (f" {own}\n",), None, (own[: 4 + n] + " end", "else"))
        for n, (text, own) in enumerate(zip(texts, said, strict=True))
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_f1_is_that_of_an_evaluation(family: str):
    class Words(Encoder):
        """Reads every token as a word, so that texts of a random model share some."""

        def decode(self, ids):
            return " ".join(f"w{i % 7}" for i in ids)

    model, encoder = random_model(family), Words(byte_tokenizer(), 64)
    golds = [("w1 w2", "w3"), ("w0 w4 w5 w6",), ("w2 w2 w3",)]
    examples = [
        Example("Question: " + "so " * n, (f" {own[0]}\n",), None, own)
        for n, own in enumerate(golds)
    ]
    asked = questions(encoder, SQUAD, examples, max_new_tokens=6)
    for chosen in ([0, 1, 2], [2, 0]):
        closure, mask = metric_objective(model, encoder, SQUAD, asked, chosen, "cpu")
        assert mask is not None
        assert mask.sum(1).tolist() == [len(asked.prompts[i]) for i in chosen]
        some = replace(
            asked,
            encoded=[asked.encoded[i] for i in chosen],
            prompts=[asked.prompts[i] for i in chosen],
            answers=[asked.answers[i] for i in chosen],
        )
        wanted = evaluate(model, encoder, SQUAD, some, 1, "cpu")["f1"]
        assert 0 < wanted < 1
        assert closure().item() == pytest.approx(-wanted, abs=1e-6)
    assert best_f1("w1", golds[0]) > 0


@pytest.mark.parametrize(
    ("method", "lr", "eps"),
    [
        pytest.param(AGZO, 3e-2, 1e-1, id="agzo"),
        pytest.param(MeZO, 1e-3, 1e-2, id="mezo", marks=pytest.mark.slow),
        pytest.param(LOZO, 3e-3, 3e-2, id="lozo", marks=pytest.mark.slow),
    ],
)
def test_a_zeroth_order_method_learns_from_accuracy_alone(method, lr: float, eps: float):
    model, asked = random_model("qwen3", scale=0.5), questions(ENCODER, SST2, LETTERS)
    closure, mask = metric_objective(model, ENCODER, SST2, asked, range(16), "cpu")
    before = evaluate(model, ENCODER, SST2, asked, 32, "cpu")["accuracy"]
    optimizer = method(model, lr=lr, eps=eps, queries=4)
    for _ in range(40):
        optimizer.step(closure, token_mask=mask)
    after = evaluate(model, ENCODER, SST2, asked, 32, "cpu")["accuracy"]
    assert before <= 0.75
    assert after >= 0.9


@pytest.mark.parametrize("method", [AGZO, MeZO, LOZO])
def test_generation_passes_the_checks_of_the_first_step(method):
    """The same text twice, and every tuned weight seen; a call of the closure is one forward."""
    model = random_model("qwen3")
    examples = answered(model, ["one?", "a longer one?"], 5)
    asked = questions(ENCODER, SQUAD, examples, max_new_tokens=5)
    closure, mask = metric_objective(model, ENCODER, SQUAD, asked, [0, 1], "cpu")
    before = closure()
    optimizer = method(model, lr=1e-3, eps=0.3)
    loss = optimizer.step(closure, token_mask=mask)
    assert -1 <= loss <= 0
    assert optimizer.forwards == 2 + optimizer.forwards_of_step(0)
    assert optimizer.projected_grad.isfinite().all()
    if method is AGZO:
        assert loss == before


def test_scores_that_are_no_numbers_are_noticed():
    model, asked = random_model("qwen3"), questions(ENCODER, SST2, EXAMPLES)
    closure, _ = metric_objective(model, ENCODER, SST2, asked, [0, 1, 2], "cpu")
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
        assert closure().isnan()


METRIC = ("method=mezo", "train.objective=metric", "train.max_length=64")


def test_a_run_on_the_metric_is_complete_and_goes_on_exactly(tmp_path, monkeypatch):
    words = (*METRIC, "method.eps=3e-2")
    whole = tiny_run.config(tmp_path / "whole", *words)
    result = run(whole)
    assert result["objective"] == "metric"
    assert result["forwards"] == 2 + 12 * 2
    rows = result["metrics"]
    assert rows[0]["zero_grads"] is None
    for row in rows[1:]:
        assert -1 <= row["loss"] <= 0
        assert 0 <= row["zero_grads"] <= 1
        assert "accuracy" in row["dev"] if row["dev"] else True
    assert result["dev"]["loss"] > 0  # dev and evaluation report the task's own loss as ever

    real, calls = parts_of_a_run.sample_batch, []

    class Stopped(Exception):
        pass

    def stop(*arguments):
        calls.append(1)
        if len(calls) == 8:
            raise Stopped
        return real(*arguments)

    config = tiny_run.config(tmp_path / "parts", *words, "train.checkpoint_every=5")
    monkeypatch.setattr(parts_of_a_run, "sample_batch", stop)
    with pytest.raises(Stopped):
        run(config)
    monkeypatch.undo()
    again = run(config)
    assert again["resumed_at"] == [5]  # between two rows: shares of zero gradients are kept too
    again["config"]["train"]["checkpoint_every"] = None
    tiny_run.assert_same(config, again, whole, result)


def test_a_small_eps_changes_no_answer_and_the_rows_say_so(tmp_path):
    result = run(tiny_run.config(tmp_path, *METRIC, "method.eps=1e-7"))
    assert {row["zero_grads"] for row in result["metrics"][1:]} == {1.0}
    assert {row["projected_grad"] for row in result["metrics"][1:]} == {0.0}


def test_runs_on_the_loss_have_no_share_of_zero_gradients(tmp_path):
    result = run(tiny_run.config(tmp_path, "method=mezo", "train.max_length=64"))
    assert result["objective"] == "loss"
    assert all("zero_grads" not in row for row in result["metrics"])


@pytest.mark.parametrize("method", ["sgd", "adamw"])
def test_backpropagation_refuses_the_metric(tmp_path, method):
    config = tiny_run.config(tmp_path, f"method={method}", "train.objective=metric")
    with pytest.raises(BadInput, match=f"train.objective=metric: .*no derivative.*method={method}"):
        run(config)
    assert not config.folder.exists()


def test_an_unknown_objective_and_a_probe_of_the_metric_are_refused(tmp_path):
    with pytest.raises(BadInput, match=r"train\.objective=f1: allowed are loss, metric"):
        compose(["train.objective=f1"])
    with pytest.raises(BadInput, match=r"train\.objective=metric: a probe looks at loss alone"):
        scene.load(tiny_run.arguments(tmp_path, *METRIC))


def test_the_metric_has_no_gradient_to_follow():
    model, asked = random_model("qwen3"), questions(ENCODER, SST2, EXAMPLES)
    closure, _ = metric_objective(model, ENCODER, SST2, asked, [0, 1, 2], "cpu")
    with pytest.raises(RuntimeError, match="does not require grad"):
        SGD(model, lr=1e-3).step(closure)


def test_a_suites_estimate_times_the_objective_of_the_run(tmp_path, monkeypatch):
    parts = prepare.prepare(tiny_run.config(tmp_path, *METRIC))
    assert parts.questions is not None
    seen = []
    real = parts_of_a_run.metric_objective
    monkeypatch.setattr(
        parts_of_a_run, "metric_objective", lambda *given: seen.append(given[4]) or real(*given)
    )
    assert _step_seconds(parts, parts.optimizer, 4, 0) > 0
    assert len(seen) == 4
