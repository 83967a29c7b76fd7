"""Ordinary clients of an optimizer: Lightning, Accelerate; where they are installed.

TRL and transformers' Trainer: `test_integrations`.
"""

import logging
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agzo import AGZO
from agzo.distributed.pieces import Piece
from agzo.integrations.lightning import ZOModuleMixin
from baselines import LOZOM, MeZO

pytestmark = pytest.mark.slow

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)
METHODS = [pytest.param(AGZO, 1e-2, id="agzo"), pytest.param(MeZO, 3e-3, id="mezo")]


@pytest.fixture
def lightning():
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    yield pytest.importorskip("lightning")
    logging.disable(logging.NOTSET)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))


def loss_of(model: nn.Module, x: Tensor = X, y: Tensor = Y) -> Tensor:
    return (model(x) - y).square().mean()


def trainer(lightning: Any, epochs: int, **options: Any) -> Any:
    return lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, **options,
    )  # fmt: skip


def batches() -> Any:
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=16)


def module(lightning: Any, method: Any, lr: float, automatic: bool) -> Any:
    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.automatic_optimization = network(), automatic

        def training_step(self, batch: Any, index: int) -> Tensor | None:
            if automatic:
                loss = loss_of(self.net, *batch)
                self.log("loss", loss, on_step=False, on_epoch=True)
                return loss
            self.net.eval()
            self.optimizers().step(lambda: loss_of(self.net, *batch))
            return None

        def configure_optimizers(self) -> Any:
            return method(self.net, lr=lr, eps=1e-3)

    return Module()


@pytest.mark.parametrize(("method", "lr"), METHODS)
def test_lightnings_automatic_mode_is_one_clear_error(lightning, method, lr):
    model = module(lightning, method, lr, automatic=True)
    with pytest.raises(ValueError, match=r"backward pass.*automatic_optimization=False"):
        trainer(lightning, 2).fit(model, batches())


def automatic(lightning: Any, method: Any, lr: float, **options: Any) -> Any:
    """A module in automatic mode; `seen` has loss, gradients, training of each evaluation."""
    plain = type(module(lightning, method, lr, automatic=True))

    class Module(ZOModuleMixin, plain):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Any] = []
            self.net.append(nn.Dropout(0.5))

        def training_step(self, batch: Any, index: int) -> Any:
            loss = super().training_step(batch, index)
            self.seen.append((loss.item(), loss.requires_grad, self.net.training))
            return loss

        def configure_optimizers(self) -> Any:
            made = method(self.net, lr=lr, **options)
            return [made], [torch.optim.lr_scheduler.ExponentialLR(made, 0.99)]

    return Module()


@pytest.mark.parametrize(("method", "lr"), METHODS)
def test_lightnings_automatic_mode_steps_as_the_optimizer_alone(lightning, method, lr):
    model = automatic(lightning, method, lr, eps=1e-3)
    run = trainer(lightning, 3)
    run.fit(model, batches())
    net = network().eval()
    optimizer = method(net, lr=lr, eps=1e-3)
    for epoch in range(3):
        optimizer.param_groups[0]["lr"] = lr * 0.99**epoch
        for x, y in batches():
            optimizer.step(lambda x=x, y=y: loss_of(net, x, y))
    assert all(p.equal(q) for p, q in zip(model.net.parameters(), net.parameters(), strict=True))
    assert run.global_step == 12
    assert model.net.training
    assert not any(gradients or training for _, gradients, training in model.seen)


def test_lightnings_automatic_mode_resumes_bit_for_bit(lightning, tmp_path):
    ends = []
    for epochs, given in ((4, None), (2, None), (4, tmp_path / "half.ckpt")):
        model = automatic(lightning, LOZOM, 1e-2, eps=1e-3, large_state=True)
        run = trainer(lightning, epochs)
        run.fit(model, batches(), ckpt_path=given)
        run.save_checkpoint(tmp_path / "half.ckpt")
        ends.append(list(model.net.parameters()))
    assert all(p.equal(q) for p, q in zip(ends[0], ends[2], strict=True))
    assert not ends[0][0].equal(ends[1][0])


def test_lightnings_automatic_mode_hands_on_mask_and_first_log(lightning):
    masks = []

    class Spied(MeZO):
        def step(self, closure: Any = None, token_mask: Any = None) -> Tensor:
            masks.append(token_mask)
            return super().step(closure, token_mask)

    class Module(type(automatic(lightning, Spied, 1e-3, eps=1e-3))):
        def training_step(self, batch: Any, index: int) -> Any:
            return super().training_step((batch["x"], batch["y"]), index)

    made = Module()
    rows: Any = [
        {"x": x, "y": y, "attention_mask": torch.ones(2)} for x, y in zip(X, Y, strict=True)
    ]
    run = trainer(lightning, 1)
    run.fit(made, torch.utils.data.DataLoader(rows, batch_size=16))
    assert [mask.dtype for mask in masks] == [torch.bool] * 4
    assert len(made.seen) == 2 + 4 * 2  # two are the check of the first step
    first = [made.seen[index][0] for index in (0, 4, 6, 8)]
    assert run.callback_metrics["loss"].item() == pytest.approx(sum(first) / 4, rel=1e-6)


@pytest.mark.parametrize("shape", ["below the mixin", "in the class itself", "after super()"])
def test_wherever_training_step_is_it_records_nothing_and_logs_its_first_loss(lightning, shape):
    seen: list[tuple[float, bool]] = []

    class Plain(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def training_step(self, batch: Any, index: int) -> Tensor:
            loss = loss_of(self.net, *batch)
            seen.append((loss.item(), loss.requires_grad))
            self.log("loss", loss, on_step=False, on_epoch=True)
            return loss

        def configure_optimizers(self) -> Any:
            return MeZO(self.net, lr=1e-2, eps=0.3)

    class Below(ZOModuleMixin, Plain): ...

    class Itself(ZOModuleMixin, lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        training_step = Plain.training_step
        configure_optimizers = Plain.configure_optimizers

    class After(ZOModuleMixin, Plain):
        def training_step(self, batch: Any, index: int) -> Tensor:
            loss = super().training_step(batch, index)
            self.log("again", loss, on_step=False, on_epoch=True)
            return loss

    kind = {"below the mixin": Below, "in the class itself": Itself, "after super()": After}[shape]
    run = trainer(lightning, 1)
    run.fit(kind(), batches())
    assert len(seen) == 2 + 4 * 2  # two are the check of the first step
    assert not any(recorded for _, recorded in seen)
    first = sum(seen[index][0] for index in (0, 4, 6, 8)) / 4
    logged = dict(run.callback_metrics)
    assert logged.pop("loss").item() == pytest.approx(first, rel=1e-6)
    assert [value.item() for value in logged.values()] == pytest.approx(
        [first] * (shape == "after super()"), rel=1e-6
    )


def test_a_lightning_module_that_steps_itself_logs_in_every_step():
    class Plain:
        def __init__(self) -> None:
            self.logged: list[int] = []

        def log(self, name: str, value: int) -> None:
            self.logged.append(value)

        def on_train_batch_start(self, batch: Any, index: int) -> None: ...

        def training_step(self, batch: Any, index: int) -> None:
            self.log("index", index)  # pyright: ignore

    class Module(ZOModuleMixin, Plain): ...

    made = Module()
    for index in range(3):  # as Lightning calls it with automatic_optimization=False
        made.on_train_batch_start(None, index)
        made.training_step(None, index)
    assert made.logged == [0, 1, 2]


def test_a_hook_that_hides_the_mixins_is_refused(lightning):
    class Hiding(type(automatic(lightning, MeZO, 1e-3, eps=1e-3))):
        def on_train_batch_start(self, batch: Any, index: int) -> None: ...

    with pytest.raises(ValueError, match=r"on_train_batch_start: that of Hiding hides"):
        trainer(lightning, 1).fit(Hiding(), batches())


REFUSED = {
    "accumulation": (AGZO, {"eps": 1e-3}, {"accumulate_grad_batches": 2}, "accumulate_grad_batc"),
    "scaler": (AGZO, {"eps": 1e-3}, {}, "precision='16-mixed': its gradient scaler"),
    "first order": (torch.optim.SGD, {}, {}, "it returns SGD, which needs gradients"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_lightnings_automatic_mode_refuses(case, lightning, monkeypatch):
    if case == "scaler":
        monkeypatch.setattr(lightning.Trainer, "precision", "16-mixed")  # it wants a GPU
    method, own, options, message = REFUSED[case]
    made = automatic(lightning, method, 1e-2, **own)
    if method is torch.optim.SGD:
        made.configure_optimizers = lambda: method(made.net.parameters(), 1e-2)
    with pytest.raises(ValueError, match=message):
        trainer(lightning, 1, **options).fit(made, batches())


@pytest.mark.parametrize(("method", "lr"), METHODS)
def test_lightning_trains_in_manual_mode(lightning, method, lr):
    model = module(lightning, method, lr, automatic=False)
    before = loss_of(model.net).item()
    trainer(lightning, 20).fit(model, batches())
    assert loss_of(model.net) < 0.8 * before


@pytest.mark.parametrize(("method", "lr"), METHODS)
def test_fabric_steps_saves_and_goes_on(lightning, method, lr, tmp_path):
    fabric = lightning.Fabric(accelerator="cpu")
    plain = network()
    model, optimizer = fabric.setup(plain, method(plain, lr=lr, eps=1e-3))
    model.eval()
    before = loss_of(model).item()
    for _ in range(40):
        optimizer.step(lambda: loss_of(model))
    fabric.save(tmp_path / "file", {"model": model, "optimizer": optimizer})
    ends = []
    for _ in range(2):
        fabric.load(tmp_path / "file", {"model": model, "optimizer": optimizer})
        for _ in range(10):
            optimizer.step(lambda: loss_of(model))
        ends.append(loss_of(model).item())
    assert ends[0] == ends[1] < 0.9 * before


@pytest.mark.parametrize(("method", "lr"), METHODS)
def test_accelerate_prepares_it(method, lr):
    accelerate = pytest.importorskip("accelerate")
    ends = []
    for prepared in (False, True):
        model = network().eval()
        optimizer: Any = method(model, lr=lr, eps=1e-3)
        if prepared:
            model, optimizer = accelerate.Accelerator(cpu=True).prepare(model, optimizer)
        for _ in range(3):
            optimizer.step(lambda model=model: loss_of(model))
        ends.append([p.detach().clone() for p in model.parameters()])
    assert all(p.equal(q) for p, q in zip(*ends, strict=True))


@pytest.mark.parametrize("way", ["stage", "piece"])
def test_mask_and_loss_come_through_accelerate(way):
    """As the page says: by `stage` before the prepared step, or the mask alone in a Piece."""
    accelerate = pytest.importorskip("accelerate")
    x = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(6) >= torch.tensor([0, 3, 5, 1])[:, None]
    x[~mask] = 9.0
    ends = []
    for given, prepared in ((mask, False), (mask, True), (None, False)):
        net = network().eval()
        optimizer: Any = AGZO(net, lr=1e-2, eps=1e-3)

        def closure(net: nn.Module = net) -> Tensor:
            return net(x)[mask].square().mean()

        if not prepared:
            losses = [optimizer.step(closure, given) for _ in range(3)]
        else:
            net, optimizer = accelerate.Accelerator(cpu=True).prepare(net, optimizer)
            losses = []
            for _ in range(3):
                if way == "stage":
                    losses.append(optimizer.optimizer.stage(closure, given))
                    optimizer.step()
                else:
                    optimizer.step([Piece(closure, given)])
        ends.append(([p.detach().clone() for p in net.parameters()], losses))
    (alone, losses), (through, its), (without, _) = ends
    assert all(p.equal(q) for p, q in zip(alone, through, strict=True))
    assert not alone[0].equal(without[0])
    assert its == (losses if way == "stage" else [])
