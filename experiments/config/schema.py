"""The typed configuration of a run: what Hydra composes from conf/, and what is allowed in it.

The values and a comment for each key stand in conf/; the dataclasses here hold the types and, as
metadata, the bounds. The keys of a method are not listed here: they come from its constructor
(`methods.registry`). Everything wrong is one `BadInput` that names key, value and what is allowed.
"""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf

from experiments.config.paths import home

MAX_INT, MAX_SEED = 2**63 - 1, 2**32 - 1


def key(**bounds: Any) -> Any:
    """Declare a key: choices=(...), above=x, at_least=x, at_most=x; the value comes from conf/."""
    return field(default=MISSING, metadata=bounds)


def own() -> Any:
    """Declare a key of a task that is written in the configuration; others leave it null."""
    return field(default=None, metadata={"own": True})


def only(*adapters: str, **bounds: Any) -> Any:
    """Declare a key that these adapters have and others have not; without it the value is null."""
    return field(default=None, metadata={"of": adapters, **bounds})


@dataclass
class TaskConfig:
    """Which task (experiments/tasks), or what makes up one of the user's own (`prompt` is set)."""

    name: str = key()
    revision: str | None = key()
    file: str | None = own()
    prompt: str | None = own()
    options: Any = own()  # noqa: RUF009
    label: str | None = own()
    labels: Any = own()  # noqa: RUF009
    answer: str | None = own()
    hub: str | None = own()
    hub_config: str | None = own()
    splits: list[str] | None = own()  # noqa: RUF009


@dataclass
class ModelConfig:
    """Which language model, and from where."""

    name: str | None = key()
    source: str = key(choices=("pocket", "local", "hub", "wheel"))
    path: str | None = key()
    revision: str | None = key()
    trust_remote_code: bool = key()
    prompt: str = key(choices=("plain", "chat"))
    attention: str = key(choices=("sdpa", "eager", "flash_attention_2"))
    quantize: str = key(choices=("none", "int8", "int4"))
    offload: str = key(choices=("none", "layers"))
    device_map: str = key(choices=("none", "auto"))


@dataclass
class AdapterConfig:
    """What is tuned in place of the model's own weights, and how it starts."""

    name: str = key(choices=("none", "lora", "prefix"))
    rank: int | None = only("lora", at_least=1)
    alpha: float | None = only("lora", above=0)
    targets: list[str] | None = only("lora", optional=True)  # noqa: RUF009
    tokens: int | None = only("prefix", at_least=1)
    init: str | None = only("prefix", choices=("activations", "random", "projected"))
    dtype: str | None = only("lora", "prefix", choices=("fp32", "model"))


@dataclass
class DataConfig:
    """Where the rows come from."""

    source: str = key(choices=("pocket", "local", "hub"))
    root: str | None = key()
    pocket_train: int = key(at_least=1)
    pocket_validation: int = key(at_least=1)


@dataclass
class PrecisionConfig:
    """Dtype of the weights, and how updates are rounded into it."""

    dtype: str = key(choices=("fp32", "bf16", "fp16"))
    rounding: str = key(choices=("nearest", "stochastic", "master"))


@dataclass
class TrainConfig:
    """How long, on how much data, how often it is looked at, and which checkpoint is reported."""

    steps: int | None = key(at_least=1)
    forwards: int | None = key(at_least=1)
    batch_size: int = key(at_least=1)
    accumulation: int = key(at_least=1)
    packing: str = key(choices=("auto", "always", "never"))
    compile: str = key(choices=("never", "auto", "layers", "graphs"))
    schedule: str = key(choices=("constant", "linear"))
    eval_every: int | None = key(at_least=1)
    evals: int | None = key(at_least=1)
    eval_at_start: bool = key()
    select_by: str = key(choices=("dev_loss", "dev_metric"))
    log_every: int = key(at_least=1)
    checkpoint_every: int | None = key(at_least=1)
    num_train: int = key(at_least=1)
    num_dev: int = key(at_least=1)
    num_eval: int = key(at_least=1)
    train_seed: int = key(at_least=0, at_most=MAX_SEED)
    objective: str = key(choices=("loss", "metric"))
    max_length: int = key(at_least=2)
    eval_batch_size: int = key(at_least=1)
    max_new_tokens: int = key(at_least=1)
    keep_checkpoint: bool = key()
    save_model: bool = key()
    forgetting: str | None = key()


@dataclass
class TrackingConfig:
    """The W&B mirror."""

    mode: str = key(choices=("auto", "offline", "online", "disabled"))
    project: str = key()
    entity: str | None = key()


@dataclass
class RunConfig:
    """Everything one run needs; `method` holds its name and its constructor's keys."""

    method: dict[str, Any] = MISSING
    task: TaskConfig = field(default_factory=TaskConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    data: DataConfig = field(default_factory=DataConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    seed: int = key(at_least=0, at_most=MAX_SEED)
    suite: str = key()
    tuned: str | None = key()
    variant: str | None = key()
    out: str = key()
    device: str = key(choices=("auto", "cpu", "cuda"))
    threads: int | None = key(at_least=1, at_most=1024)
    peer_timeout: int = key(at_least=1, at_most=31_536_000)
    traceback: bool = key()
    plan: dict[str, Any] | None = field(default=MISSING)

    def as_dict(self) -> dict[str, Any]:
        """Return the resolved configuration as plain nested dicts, without the suite's plan.

        Of the task without keys that only one of the user's own has, so that a run of a task of
        the protocol is the same run as before there were such keys.
        """
        tree = {name: value for name, value in asdict(self).items() if name != "plan"}
        unset = {each.name for each in fields(self.task) if "own" in each.metadata}
        unset &= {name for name, value in tree["task"].items() if value is None}
        tree["task"] = {name: value for name, value in tree["task"].items() if name not in unset}
        return tree

    @property
    def model_label(self) -> str:
        """The model's name, with its adapter behind a plus: what folders and tables call it."""
        adapter = "" if self.adapter.name == "none" else f"+{self.adapter.name}"
        return f"{self.model.name}{adapter}"

    @property
    def folder(self) -> Path:
        """The run's own folder: the same for the same suite, model, task, method and seed."""
        method = self.method["name"] + (f"+{self.variant}" if self.variant else "")
        parts = (self.suite, self.model_label, self.task.name, method, f"seed{self.seed}")
        return Path(self.out, *parts)


OmegaConf.register_new_resolver("home", home, replace=True)
