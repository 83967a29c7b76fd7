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
from baselines import MeZO

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
                return loss_of(self.net, *batch)
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
