"""A world small enough for a run in a tenth of a second: model, data, and a stand-in method."""

import atexit
import copy
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file
from text_models import byte_tokenizer, random_model
from torch import Tensor, nn

from agzo.about import About
from experiments.config.composed import compose
from experiments.config.schema import RunConfig
from experiments.records import checkpoint, record


@functools.cache
def world() -> Path:
    """A folder with model/ (a random Qwen3 of two layers) and data/sst2/*.jsonl."""
    folder = Path(tempfile.mkdtemp(prefix="tiny-run-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    random_model("qwen3").save_pretrained(folder / "model")  # pyright: ignore
    byte_tokenizer().save_pretrained(folder / "model")
    write_data(folder / "data")
    return folder


def write_data(root: Path, salt: str = "") -> None:
    """SST-2 rows in the hub's field names."""
    (root / "sst2").mkdir(parents=True)
    for split, count in (("train", 40), ("validation", 12)):
        rows = [
            {"sentence": f"a {'good' if i % 2 else 'bad'} film {split} {i}{salt}", "label": i % 2}
            for i in range(count)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (root / "sst2" / f"{split}.jsonl").write_text(text)


def arguments(out: Path, *overrides: str) -> list[str]:
    """Command-line arguments of a run of 12 steps in the tiny world."""
    return [
        "model=local", f"model.path={world() / 'model'}", "data=local",
        f"data.root={world() / 'data'}", f"out={out}", "tracking=disabled", "device=cpu",
        "train.steps=12", "train.evals=null", "train.eval_every=4", "train.log_every=3",
        "train.batch_size=4", "train.num_train=16", "train.num_dev=8", "train.num_eval=8",
        "train.max_length=128", "method.lr=1e-3", *overrides,
    ]  # fmt: skip


SMALL = {  # for a model this small, and for time
    "subzero": ("method.queries=3",),
    "zo_muon": ("method.rank=8",),
    "deepzero": ("method.queries=3", "method.score_queries=2"),
    "grzo": ("train.accumulation=4",),
    "aim_zo": ("method.rank=8", "method.active=4", "method.leading=2", "method.queries=3"),
}


def config(out: Path, *overrides: str) -> RunConfig:
    """The composed configuration of such a run."""
    config = copy.deepcopy(_composed(overrides))
    config.out = str(out)
    return config


@functools.cache
def _composed(overrides: tuple[str, ...]) -> RunConfig:
    given = arguments(Path("out"), *overrides)
    if "method=dominant_layer" in overrides and not any("method.layer" in o for o in overrides):
        given += ["method.layer=1", "method.scan_batches=0"]  # a random model has no outliers
    for name, options in SMALL.items():
        if f"method={name}" in overrides:
            own = [each.partition("=")[0] for each in overrides]
            given += [each for each in options if each.partition("=")[0] not in own]
    if "method=lozo_m" in overrides:
        given.append("method.large_state=true")  # of a model this small it is large
    if {"method=zero_shot", "method=icl"} & set(overrides):
        given.remove("method.lr=1e-3")
    return compose(given)


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    """A result without what differs between two equal runs."""
    varying = ("seconds", "peak_", "resumed_at", "git_", "out", "tracking")

    def clean(node: Any) -> Any:
        if isinstance(node, dict):
            return {
                key: clean(value)
                for key, value in node.items()
                if not any(word in str(key) for word in varying)
            }
        return [clean(item) for item in node] if isinstance(node, list) else node

    return clean(result)


class Tuned:
    """What a method says of a tuned parameter."""

    def __init__(self, name: str, parameter: nn.Parameter) -> None:
        self.name, self.parameter = name, parameter


class StandIn(torch.optim.Optimizer):
    """A method of the shared interface and no more: it shrinks all weights by the loss."""

    about: ClassVar[About] = About()
    forwards_per_step: ClassVar[int] = 1
    stream_version: ClassVar[str] = "stand-in"
    rounding: ClassVar[str] = "nearest"
    embeddings: ClassVar[str] = "tuned"

    def __init__(
        self, model: nn.Module, lr: float, strength: int = 1, poison_at: int | None = None
    ) -> None:
        if strength < 1:
            raise ValueError(f"strength={strength}: allowed are 1 or more")
        super().__init__(model.parameters(), {"lr": lr})
        self.tuned = [Tuned(name, p) for name, p in model.named_parameters()]
        self.strength, self.poison_at = strength, poison_at
        self.forwards = 0
        self.finite = torch.tensor(True)
        self.projected_grad: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Any, token_mask: Any = None) -> Tensor:  # pyright: ignore
        """Scale the weights down a little, the more the higher the loss."""
        loss = closure()
        self.forwards += 1
        if self.forwards == self.poison_at:
            return loss * float("nan")
        self.projected_grad = loss.reshape(1)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.mul_(1.0 - group["lr"] * self.strength * loss)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The count is all there is."""
        return {**super().state_dict(), "forwards": self.forwards}

    def load_state_dict(self, state_dict: Any) -> None:
        """Put the count back."""
        self.forwards = state_dict["forwards"]
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "forwards"})


def rows(folder):
    return [json.loads(line) for line in (folder / record.METRICS).read_text().splitlines()]


def best_weights(config, result):
    at = checkpoint.name(result["best_step"])
    return load_file(config.folder / "checkpoints" / at / checkpoint.WEIGHTS)


def assert_same(config, result, other_config, other):
    wanted, got = without_times(other), without_times(result)
    assert got == wanted
    one, two = best_weights(config, result), best_weights(other_config, other)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert without_times({"r": rows(config.folder)}) == without_times(
        {"r": rows(other_config.folder)}
    )
