"""ZOTrainer: the step is by forwards alone, and all else is transformers' Trainer's own."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

from agzo import AGZO
from agzo.distributed.pieces import Piece
from agzo.integrations.transformers import ZOTrainer, ZOTrainerMixin
from baselines import (
    AIMZO,
    FZOO,
    GRZO,
    LOZO,
    LOZOM,
    SGD,
    ConMeZO,
    DeepZero,
    DominantLayer,
    HiZOO,
    MeZO,
    SubZero,
    ZOAct,
    ZOMuon,
)
from tests.outlier_models import plant, random_model

METHODS = [
    pytest.param("agzo", id="agzo"),
    pytest.param(MeZO, id="mezo"),
    pytest.param(LOZO, id="lozo"),
]
ONE_FAST = [
    METHODS[0],
    *(pytest.param(*each.values, id=str(each.id), marks=pytest.mark.slow) for each in METHODS[1:]),
]
EPS = {"eps": 1e-3}


def model(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=16,
            pad_token_id=1, attention_dropout=dropout,
        )
    )  # fmt: skip


def planted() -> nn.Module:
    return plant(random_model("llama"), layer=3, token=4)


def rows(count: int = 24, width: int = 7) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    found = []
    for index in range(count):
        ids = torch.randint(4, 40, (width,), generator=generator)
        mask = torch.ones(width, dtype=torch.int64)
        mask[: index % 3] = 0  # left padding
        labels = ids.masked_fill(mask == 0, -100)
        labels[:3] = -100
        found.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return found


ROWS = rows()


def arguments(folder: Path, steps: int = 4, **named: Any) -> TrainingArguments:
    given = {
        "output_dir": str(folder), "max_steps": steps, "per_device_train_batch_size": 4,
        "learning_rate": 1e-2, "lr_scheduler_type": "linear", "logging_steps": 1, "report_to": [],
        "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "seed": 3, "max_grad_norm": 0,
    }  # fmt: skip
    return TrainingArguments(**given | named)


def trainer(folder: Path, method: Any = "agzo", net: nn.Module | None = None, **named: Any) -> Any:
    own = {"eps": 1e-3} | named.pop("method_args", {})
    made = net or model()
    cls = named.pop("cls", ZOTrainer)
    return cls(
        made, arguments(folder, **named), train_dataset=ROWS, eval_dataset=ROWS[:8], method=method,
        method_args=own,
    )  # fmt: skip


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    return [name for name in one if not one[name].equal(other[name])]


SLOW, LARGE = pytest.mark.slow, {"large_state": True}
ACT = {"rank": 2, "calibration_batches": 2, **LARGE}
FOUND = {"params": DominantLayer(scan_batches=2)}  # the layer that `planted` has an outlier in
RESUMED = [
    *(pytest.param(each.values[0], {}, id=str(each.id), marks=each.marks) for each in ONE_FAST),
    pytest.param("agzo", {"update": "adam", **LARGE}, id="agzo-adam", marks=SLOW),
    pytest.param("agzo", {"embeddings": "seen"}, id="agzo-seen", marks=SLOW),
    pytest.param(MeZO, {"update": "momentum", **LARGE}, id="mezo-momentum", marks=SLOW),
    pytest.param(LOZOM, LARGE, id="lozo-m", marks=SLOW),
    pytest.param(
        MeZO, {"params": DominantLayer(layer=1, scan_batches=0)}, id="dominant", marks=SLOW
    ),
    pytest.param(LOZO, FOUND, id="dominant-found", marks=SLOW),
    pytest.param(ZOAct, ACT, id="zo_act"),
    pytest.param(FZOO, {"queries": 2}, id="fzoo", marks=SLOW),
    pytest.param(HiZOO, LARGE, id="hizoo", marks=SLOW),
    pytest.param(ConMeZO, LARGE, id="conmezo", marks=SLOW),
    pytest.param(SubZero, {"rank": 2, "refresh_every": 2, "queries": 2}, id="subzero", marks=SLOW),
    pytest.param(ZOMuon, {"rank": 2, "refresh_every": 2}, id="zo_muon", marks=SLOW),
    pytest.param(
        AIMZO, {"rank": 4, "active": 2, "leading": 1, "queries": 2}, id="aim_zo", marks=SLOW
    ),
    pytest.param(GRZO, {}, id="grzo", marks=SLOW),
    pytest.param(DeepZero, {"queries": 3, "score_queries": 2}, id="deepzero", marks=SLOW),
]


@pytest.mark.parametrize(("method", "own"), RESUMED)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(method, own, tmp_path):
    options = {"steps": 6, "save_strategy": "steps", "save_steps": 3, "weight_decay": 0.1}
    if method is GRZO:  # a direction for each micro-batch
        options["gradient_accumulation_steps"] = 2
    made = planted if own is FOUND else model
    start = weights(made())
    whole = trainer(tmp_path, method, made(), method_args=own, **options)
    whole.train()
    resumed = trainer(tmp_path, method, made(), method_args=own, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    ended, tuned = weights(whole.model), {each.name for each in whole.method.tuned}
    moved = {key for key in ended if not ended[key].equal(start.get(key, torch.zeros(())))}
    assert moved == tuned or (method is DeepZero and moved < tuned)  # a few coordinates
    assert differing(ended, weights(resumed.model)) == []
    taken = whole.method.forwards_once + 6 * whole.method.forwards_per_step
    assert whole.method.forwards == resumed.method.forwards == taken
    assert whole.state.log_history[-2] == resumed.state.log_history[-2]


@pytest.mark.parametrize("method", METHODS)
def test_it_steps_as_the_optimizer_alone_does_with_the_schedules_lr(method, tmp_path):
    run = trainer(tmp_path, method, warmup_steps=2)
    batches: list[Any] = []
    rates: list[float] = []
    plain = run.compute_loss

    def compute_loss(net: Any, inputs: Any, **named: Any) -> Any:
        if not batches or batches[-1]["input_ids"] is not inputs["input_ids"]:
            batches.append(dict(inputs))
            rates.append(run.optimizer.param_groups[0]["lr"])
        return plain(net, inputs, **named)

    run.compute_loss = compute_loss
    run.train()
    net = model().eval()
    cls = AGZO if method == "agzo" else method
    optimizer = cls(net, lr=1.0, eps=1e-3, seed=3)
    for batch, lr in zip(batches, rates, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step(
            lambda batch=batch: net(**batch, use_cache=False).loss, batch["attention_mask"].bool()
        )
    assert len(set(rates)) == 3  # 0, half, all of it, half
    assert rates[0] == 0.0
    assert [f"{lr:.3g}" for lr in rates[1:]] == ["0.005", "0.01", "0.005"]
    for name, value in weights(net).items():
        torch.testing.assert_close(weights(run.model)[name], value, rtol=0, atol=1e-7)


@pytest.mark.parametrize("method", ONE_FAST)
def test_accumulated_micro_batches_move_as_one_large_batch(method, tmp_path):
    ends = []
    for size, steps in ((8, 1), (4, 2), (2, 4)):
        run = trainer(
            tmp_path, method, steps=3,
            per_device_train_batch_size=size, gradient_accumulation_steps=steps,
        )  # fmt: skip
        run.train()
        ends.append((weights(run.model), run.state.log_history[0]["loss"], run.method.forwards))
    (whole, loss, forwards), *others = ends
    start = weights(model())
    moved = torch.cat([(whole[name] - start[name]).flatten() for name in whole])
    for other, its_loss, its_forwards in others:
        apart = torch.cat([(other[name] - whole[name]).flatten() for name in whole])
        assert apart.norm() < 5e-3 * moved.norm()  # a slope has the round-off of two losses in it
        assert its_loss == pytest.approx(loss, rel=1e-6)
        assert its_forwards == forwards


def test_the_last_step_of_an_epoch_may_have_fewer_micro_batches(tmp_path):
    run = trainer(  # 24 rows: 6 micro-batches, 4 and then 2 of them a step
        tmp_path, steps=-1, num_train_epochs=2, gradient_accumulation_steps=4
    )
    run.train()
    assert run.state.global_step == run.method.state_dict()["state"]["zo"]["step"] == 4


class Means(ZOTrainer):
    """A trainer whose loss is a mean over each micro-batch, without regard to its items."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        found = model(**inputs)
        return (found.loss, found) if return_outputs else found.loss


@pytest.mark.parametrize(
    ("accumulation", "steps", "refused"),
    [(5, 2, True), (5, 1, False), (5, -1, True), (4, 2, False), (1, 1, True)],
)
def test_a_last_step_too_short_for_the_method_is_refused_at_once(
    accumulation, steps, refused, tmp_path
):
    made = trainer(
        tmp_path, GRZO, steps=steps, num_train_epochs=1, gradient_accumulation_steps=accumulation
    )  # of 6 micro-batches
    if not refused:
        made.train()
        assert made.method.forwards == made.method.forwards_once + 2 * steps
        return
    with pytest.raises(ValueError, match=rf"gradient_accumulation_steps={accumulation}: .* 6 "):
        made.train()
    assert made.method.forwards == 0


def test_a_loss_that_is_a_mean_of_each_micro_batch_is_averaged(tmp_path):
    run = trainer(tmp_path, cls=Means, steps=1, gradient_accumulation_steps=2)
    run.loss_is_scaled_for_ga = False
    seen: list[float] = []
    plain = run.compute_loss

    def compute_loss(*given: Any, **named: Any) -> Any:
        loss = plain(*given, **named)
        seen.append(loss.item())
        return loss

    run.compute_loss = compute_loss
    run.train()
    assert run.state.log_history[0]["loss"] == pytest.approx((seen[0] + seen[1]) / 2, rel=1e-6)


def test_evaluation_schedule_and_the_best_checkpoint_are_trainers_own(tmp_path):
    run = trainer(
        tmp_path, steps=6, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2,
        load_best_model_at_end=True, learning_rate=0.3, lr_scheduler_type="constant",
    )  # fmt: skip
    run.train()
    losses = {e["step"]: e["eval_loss"] for e in run.state.log_history if "eval_loss" in e}
    best = min(losses, key=lambda step: losses[step])
    assert run.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    assert run.evaluate()["eval_loss"] == pytest.approx(losses[best], rel=1e-6)
    assert len(set(losses.values())) == 3


def test_the_log_has_what_the_steps_measured(tmp_path):
    run = trainer(tmp_path, steps=4, logging_steps=2)
    run.train()
    lines = [each for each in run.state.log_history if "loss" in each]
    assert [each["forwards"] for each in lines] == [2 + 2 * 2, 2 + 4 * 2]
    assert lines[-1]["projected_grad"] == run.method.projected_grad.item()
    assert all(each["projected_grad_rms"] > 0 and "grad_norm" not in each for each in lines)
    json.dumps(lines)


def test_a_second_training_logs_its_own_steps_alone(tmp_path):
    run = trainer(tmp_path, steps=3, logging_steps=2)
    run.train()
    run.method.register_measure_hook(lambda found: slopes.append(found.projected_grad.item()))
    slopes: list[float] = []
    run.train()
    lines = [each for each in run.state.log_history if "projected_grad_rms" in each]
    first = (slopes[0] ** 2 + slopes[1] ** 2) / 2
    assert lines[0]["projected_grad_rms"] == pytest.approx(first**0.5, rel=1e-6)


def test_dropout_is_off_in_the_step_and_modes_come_back(tmp_path):
    run = trainer(tmp_path, net=model(dropout=0.5), steps=2)
    modes: list[bool] = []
    run.model.model.layers[0].register_forward_hook(lambda m, *_: modes.append(m.training))
    run.train()
    assert modes
    assert not any(modes)
    assert all(module.training for module in run.model.modules())


def test_max_grad_norm_is_set_to_0_and_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        run = trainer(tmp_path, max_grad_norm=1.0)
    assert run.args.max_grad_norm == 0
    assert "max_grad_norm=1 is set to 0" in caplog.text


def test_mixed_precision_and_compile_stay_trainers(tmp_path):
    run = trainer(tmp_path, steps=2, bf16=True, torch_compile=True, torch_compile_backend="eager")
    run.train()
    assert run.method.finite
    assert differing(weights(run.model), weights(model()))


@pytest.mark.slow
def test_a_gradient_scaler_is_switched_off(tmp_path, monkeypatch):
    """As Trainer has one under fp16 on a GPU, where it asks for gradients three times a step."""
    ends = []
    for scaled in (False, True):
        options = {"steps": 4, "save_strategy": "steps", "save_steps": 2}
        run = trainer(tmp_path / str(scaled), **options)
        again = trainer(tmp_path / str(scaled), **options)
        for each in (run, again) if scaled else ():
            each.accelerator.scaler = torch.amp.GradScaler("cpu")
            monkeypatch.setattr(each.accelerator, "native_amp", True)
            monkeypatch.setattr(each.accelerator.state, "_mixed_precision", "fp16")
        run.train()
        again.train(resume_from_checkpoint=str(tmp_path / str(scaled) / "checkpoint-2"))
        assert differing(weights(run.model), weights(again.model)) == []
        assert not run.accelerator.optimizer_step_was_skipped
        ends.append(run)
    assert differing(weights(ends[0].model), weights(model()))
    assert ends[1].state.global_step == 4


def test_a_lora_adapter_alone_moves_and_a_model_may_be_made_for_each_run(tmp_path):
    peft = pytest.importorskip("peft")

    def adapted() -> nn.Module:
        return peft.get_peft_model(model(), peft.LoraConfig(r=2, target_modules=["q_proj"]))

    run = ZOTrainer(
        args=arguments(tmp_path), model_init=adapted, train_dataset=ROWS, method_args=EPS
    )
    for _ in range(2):
        run.train()
        moved = differing(weights(run.model), weights(adapted()))
        assert moved
        assert all("lora" in name for name in moved)


WAYS = {
    "filter": lambda net: lambda name, _: "layers.0" in name,
    "list": lambda net: [p for name, p in net.named_parameters() if "layers.0" in name],
    "names": lambda net: [each for each in net.named_parameters() if "layers.0" in each[0]],
    "groups": lambda net: [{"params": list(net.model.layers[0].parameters()), "lr": 1e-3}],
    "scope": lambda net: DominantLayer(layer=0, params=lambda name, _: "layers.0" in name),
}


@pytest.mark.parametrize("way", WAYS)
def test_however_parameters_are_chosen_biases_and_norms_do_not_decay(way, tmp_path):
    net = model()
    method_args = {"params": WAYS[way](net)}
    run = trainer(tmp_path, net=net, weight_decay=0.1, method_args=method_args)
    groups = run.create_optimizer().param_groups
    assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(7, 0.1), (2, 0.0)]
    assert all(p.dim() == 1 for p in groups[1]["params"])
    assert all(group["lr"] == (1e-3 if way == "groups" else 1e-2) for group in groups)


def test_a_group_with_a_decay_of_its_own_keeps_it(tmp_path):
    net = model()
    own = {"params": list(net.model.layers[0].parameters()), "weight_decay": 0.3}
    run = trainer(tmp_path, net=net, weight_decay=0.1, method_args={"params": [own]})
    groups = run.create_optimizer().param_groups
    assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(9, 0.3)]


@pytest.mark.parametrize("width", [7, 5])
def test_the_encoders_mask_is_not_taken_for_the_decoders(width, tmp_path, caplog):
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, pad_token_id=1,
        decoder_start_token_id=1, dropout_rate=0.0,
    )  # fmt: skip
    net = T5ForConditionalGeneration(config)
    data = [{**row, "labels": row["labels"][-width:]} for row in ROWS]
    run = ZOTrainer(
        net, arguments(tmp_path), train_dataset=data, method="agzo", method_args={"eps": 1e-3}
    )
    masks: list[Any] = []
    optimizer = run.create_optimizer()
    assert "an encoder and a decoder: bases are of all tokens" in caplog.text
    stage = optimizer.stage
    optimizer.stage = lambda pieces: (masks.extend(p.token_mask for p in pieces), stage(pieces))[1]
    run.train()
    assert masks == [None] * 4


def test_biases_and_norms_do_not_decay(tmp_path):
    run = trainer(tmp_path, weight_decay=0.1)
    groups = run.create_optimizer().param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    names = {id(p): name for name, p in run.model.named_parameters()}
    assert {names[id(p)].split(".")[-2] for p in groups[1]["params"]} == {
        "input_layernorm", "post_attention_layernorm", "norm",
    }  # fmt: skip


REFUSED = {
    "fsdp": ({"fsdp": "full_shard", "fsdp_config": {}}, {}, "fsdp=.*FSDP splits the weights"),
    "deepspeed": ({"deepspeed": "zero.json"}, {}, "deepspeed='zero.json': DeepSpeed splits"),
    "neftune": ({"neftune_noise_alpha": 5.0}, {}, "neftune_noise_alpha=5.0: noise"),
    "optim": ({"optim": "adafactor"}, {}, "optim='.*adafactor.*': the optimizer is the method's"),
    "n_gpu": ({"_n_gpu": 2}, {}, "n_gpu=2: DataParallel copies"),
    "lr": ({}, {"method_args": {"lr": 1e-3}}, "method_args: lr=0.001 is Trainer's learning_rate"),
    "no eps": ({}, {"method_args": {"eps": None}}, "eps"),
    "name": ({}, {"method": "mezo"}, "method='mezo': allowed are 'agzo', or a class"),
    "first order": ({}, {"method": SGD}, "method=.*SGD.*a subclass of"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_in_one_line(case, tmp_path):
    changed, named, message = REFUSED[case]
    given = arguments(tmp_path)
    for key, value in changed.items():
        object.__setattr__(given, key, value)
    own = {"method_args": EPS} | named
    if own["method_args"] == {"eps": None}:
        own["method_args"] = {}
    with pytest.raises(ValueError, match=message) as error:
        ZOTrainer(model(), given, train_dataset=ROWS, **own)
    assert "\n" not in str(error.value)


def test_an_optimizer_beside_the_method_is_refused(tmp_path):
    net = model()
    with pytest.raises(ValueError, match="optimizers: the optimizer is made of method="):
        ZOTrainer(
            net, arguments(tmp_path), train_dataset=ROWS, method_args=EPS,
            optimizers=(torch.optim.SGD(net.parameters(), 0.1), None),
        )  # fmt: skip


def test_a_calibration_leaves_the_batches_of_training_as_they_are(tmp_path, monkeypatch):
    """The method is shown the first ones, and training goes through the same ones from there."""
    trained: dict[Any, list[Tensor]] = {}
    shown: list[Tensor] = []
    step, calibrate = ZOTrainer.training_step, ZOAct.calibrate

    def training_step(self: Any, net: Any, inputs: Any, *given: Any) -> Tensor:
        trained.setdefault(type(self.method), []).append(inputs["input_ids"])
        return step(self, net, inputs, *given)

    def watched(self: Any, batches: Any) -> None:
        embedding = self.model.get_input_embeddings()
        hook = embedding.register_forward_pre_hook(lambda _, args: shown.append(args[0]))
        calibrate(self, batches)
        hook.remove()

    monkeypatch.setattr(ZOTrainer, "training_step", training_step)
    monkeypatch.setattr(ZOAct, "calibrate", watched)
    own = {"calibration_batches": 3, "calibration_passes": 1, **LARGE}
    draws = []
    for method in (MeZO, ZOAct):
        run = trainer(
            tmp_path, method, method_args=own if method is ZOAct else {},
            steps=5, gradient_accumulation_steps=2,
        )  # fmt: skip
        run.train()
        draws.append(torch.rand(()))
    assert torch.equal(torch.stack(trained[MeZO]), torch.stack(trained[ZOAct]))
    assert torch.equal(torch.stack(shown), torch.stack(trained[ZOAct][:6]))
    assert draws[0] == draws[1]


@pytest.mark.slow
def test_a_layer_in_float32_is_gone_back_to_without_rounding(tmp_path):
    """Its checkpoint is loaded into float32 weights, also where the model has bfloat16."""
    options = {"steps": 4, "save_strategy": "steps", "save_steps": 2, "bf16": True}
    runs = []
    for folder in (None, str(tmp_path / "checkpoint-2")):
        own = {"params": DominantLayer(layer=1, scan_batches=0)}
        run = trainer(tmp_path, MeZO, model().bfloat16(), method_args=own, **options)
        run.train(resume_from_checkpoint=folder)
        runs.append(weights(run.model))
    assert differing(*runs) == []


def test_norms_of_a_dominant_layer_do_not_decay(tmp_path):
    own = {"params": DominantLayer(layer=1)}
    run = trainer(tmp_path, MeZO, method_args=own, weight_decay=0.1)
    groups = run.create_optimizer().param_groups
    assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(7, 0.1), (2, 0.0)]


def test_data_that_can_be_read_once_are_not_looked_at_first(tmp_path):
    class Once(torch.utils.data.IterableDataset):
        rows = iter(ROWS)

        def __iter__(self) -> Any:
            return self.rows

    run = trainer(tmp_path, ZOAct)
    run.train_dataset = Once()
    with pytest.raises(ValueError, match="train_dataset: this Once can be read only once"):
        run.train()


def test_a_method_of_ones_own_and_the_mixin_on_another_trainer(tmp_path):
    class Mine(MeZO):
        pass

    class Counting(Trainer):
        """Counts in its loss, as TRL's trainers do."""

        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            self._total_train_tokens = 0

        def compute_loss(self, model: Any, inputs: Any, *given: Any, **named: Any) -> Any:
            if self.model.training:
                self._total_train_tokens += inputs["attention_mask"].sum().item()
            return super().compute_loss(model, inputs, *given, **named)

    class ZOCounting(ZOTrainerMixin, Counting):
        pass

    run = trainer(tmp_path, Mine, cls=ZOCounting, steps=6)
    run.train()
    assert run._total_train_tokens == sum(row["attention_mask"].sum().item() for row in ROWS)


def test_a_staged_step_moves_once_with_the_lr_of_then():
    nets = []
    for staged in (False, True):
        net = model().eval()
        batch = {key: torch.stack([row[key] for row in ROWS[:4]]) for key in ROWS[0]}
        optimizer = AGZO(net, lr=1e-2, eps=1e-3)

        def closure(net: nn.Module = net, batch: Any = batch) -> Tensor:
            return net(**batch, use_cache=False).loss

        for lr in (1e-2, 5e-3):
            if staged:
                optimizer.param_groups[0]["lr"] = 7.0
                before = weights(net)
                optimizer.stage([Piece(closure, batch["attention_mask"].bool())])
                assert differing(before, weights(net)) == []
                optimizer.param_groups[0]["lr"] = lr
                optimizer.step()
            else:
                optimizer.param_groups[0]["lr"] = lr
                optimizer.step(closure, batch["attention_mask"].bool())
        nets.append(weights(net))
        with pytest.raises(ValueError, match="closure=None"):
            optimizer.step()
    assert differing(*nets) == []
    optimizer.stage(closure)
    with pytest.raises(ValueError, match="a step is staged"):
        optimizer.stage(closure)
    with pytest.raises(ValueError, match="a step is staged"):
        optimizer.step(closure)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step(closure)


README = Path(__file__).resolve().parents[2] / "agzo/integrations/README.md"


def example(heading: str) -> str:
    """The code below a heading of the page."""
    section = README.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return section.split("```python\n")[1].split("```")[0]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder as the repository's root is, to run an example in."""
    (tmp_path / "experiments").symlink_to(README.parents[2] / "experiments")
    monkeypatch.chdir(tmp_path)


def run(heading: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(example(heading), heading, "exec"), names)
    return names


def test_the_pages_example_of_zo_trainer(here):
    history = run("transformers: ZOTrainer")["trainer"].state.log_history
    losses = [line["loss"] for line in history if "loss" in line]
    assert len(losses) == 4
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("heading", "package"),
    [
        ("TRL: SFTTrainer", "trl"),
        ("Accelerate", "accelerate"),
        ("Lightning", "lightning"),
    ],
)
def test_the_pages_other_examples(heading, package, here):
    pytest.importorskip(package)
    torch.manual_seed(0)
    names = run(heading)
    if package == "trl":
        trainer = names["trainer"]
        lines = [line for line in trainer.state.log_history if "loss" in line]
        assert lines[-1]["loss"] < lines[0]["loss"]
        assert lines[-1]["forwards"] == 2 + 20 * 2
        tokens = sum(len(row["input_ids"]) for row in trainer.train_dataset) / 64 * 8 * 20
        assert lines[-1]["num_tokens"] == pytest.approx(tokens, rel=0.05)
    elif package == "accelerate":
        assert names["losses"][-1] < 0.8 * names["losses"][0]
        assert names["optimizer"].param_groups[0]["lr"] == pytest.approx(0.0081)
    else:
        for each in names["trainers"]:
            assert each.callback_metrics["loss"] < 0.8 * names["x"].sum(1).square().mean()
            assert each.optimizers[0].param_groups[0]["lr"] < 0.9e-2


ON_TWO = """
import sys, torch
from pathlib import Path
from agzo import AGZO
from baselines import MeZO, ZOAct
from tests.agzo import test_integrations as t
folder = Path(sys.argv[1])
for name, method, own in (("agzo", AGZO, {}), ("mezo", MeZO, {}), ("zo_act", ZOAct, t.ACT)):
    sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    run = t.trainer(folder, method, steps=4, method_args=own, **sizes)
    run.train()
    losses = [line["loss"] for line in run.state.log_history if "loss" in line]
    torch.save((t.weights(run.model), losses), folder / f"{name}-{run.args.process_index}.pt")
"""


@pytest.mark.slow
def test_two_processes_follow_one(tmp_path):
    (tmp_path / "on_two.py").write_text(ON_TWO)
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--master-port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    subprocess.run(
        [*command, str(tmp_path / "on_two.py"), str(tmp_path)], check=True, cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root}:{root / 'tests'}", "OMP_NUM_THREADS": "1"},
        timeout=300,
    )  # fmt: skip
    for name, method, own in (("agzo", AGZO, {}), ("mezo", MeZO, {}), ("zo_act", ZOAct, ACT)):
        alone = trainer(tmp_path, method, method_args=own, gradient_accumulation_steps=2)
        alone.train()
        lines = [line["loss"] for line in alone.state.log_history if "loss" in line]
        (first, losses), (second, _) = (torch.load(tmp_path / f"{name}-{i}.pt") for i in (0, 1))
        assert differing(first, second) == []
        assert losses == pytest.approx(lines, rel=1e-5)
        start, end = weights(model()), weights(alone.model)
        moved = torch.cat([(end[key] - start.get(key, 0)).flatten() for key in end])
        apart = torch.cat([(first[key] - end[key]).flatten() for key in end])
        assert apart.norm() < 1e-2 * moved.norm()
