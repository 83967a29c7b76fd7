"""What a probe looks at: the model, the batches and the optimizer of a run, as the runner has them.

Composes the run's configuration, and so needs hydra and datasets, as `alignment` and
`estimates` do.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experiments.config.composed import compose
from experiments.config.errors import BadInput
from experiments.config.schema import RunConfig
from experiments.data.batches import Batch, collate
from experiments.data.encode import Encoded
from experiments.methods import registry
from experiments.models.loss import loss
from experiments.training.parts import Parts
from experiments.training.prepare import prepare
from experiments.training.schedule import Schedule


@dataclass
class Scene:
    """A run that can be looked at along its way."""

    config: RunConfig
    parts: Parts

    @property
    def model(self) -> nn.Module:
        """The model as it is now."""
        return self.parts.model

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.parts.device

    def batch(self, step: int) -> Batch:
        """Return the training batch of a step of the run."""
        return self.parts.batch(self.config.train.batch_size, self.config.seed, step)

    def closure(self, batch: Batch) -> Callable[[], Tensor]:
        """Return the loss of a batch as a function of the weights."""
        return lambda: loss(self.model, batch)

    def others(self, count: int) -> list[Encoded]:
        """Return the first dev examples, which no step sees."""
        encoded = self.parts.dev.encoded
        if count > len(encoded):
            raise BadInput(f"--others={count}: allowed are up to {len(encoded)}, the dev examples")
        return encoded[:count]

    def dev(self, count: int) -> Callable[[], Tensor]:
        """Return the loss of the first dev examples as one batch."""
        some, pad = self.others(count), self.parts.encoder.pad_id
        batch = collate(some, self.parts.task, pad, self.device, pack_from=self.parts.pack_from)
        return self.closure(batch)

    def walk(self, steps: Sequence[int]) -> Iterator[int]:
        """Train along the run, its method and its schedule; yield before each of `steps`."""
        here, train, parts = 0, self.config.train, self.parts
        schedule = Schedule(parts.optimizer, train.schedule, parts.steps)
        if train.schedule != "constant" and steps[-1] > parts.steps:
            raise BadInput(
                f"--steps={steps[-1]}: allowed are up to {parts.steps}, the run's (train.steps), "
                f"where the lr of train.schedule={train.schedule} is 0"
            )
        for step in steps:
            while here < step:
                schedule.set(here)
                batch = self.batch(here)
                parts.optimizer.step(self.closure(batch), token_mask=batch.token_mask)
                here += 1
            if not bool(parts.optimizer.finite):
                raise ValueError(
                    f"the run diverged before step {step} (method={self.config.method}); "
                    "a smaller method.lr is the usual cure"
                )
            yield step

    def about(self) -> dict[str, Any]:
        """Return model, data and configuration for the record of a probe."""
        return {
            "model": self.parts.origin["model"],
            "data": self.parts.origin["data"],
            "task": self.config.task.name,
            "seed": self.config.seed,
            "stream_version": self.parts.origin["stream_version"],
            "config": self.config.as_dict(),
        }


def load(overrides: list[str]) -> Scene:
    """Compose a run's configuration as `experiments.run` does, and build it."""
    config = compose(overrides)
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.train.objective != "loss":
        raise BadInput(f"train.objective={config.train.objective}: a probe looks at loss alone")
    if config.model.offload != "none":
        raise BadInput(
            f"model.offload={config.model.offload}: a probe needs gradients and all weights at "
            "once; allowed is none"
        )
    registry.check_fit(config)
    parts = prepare(config)
    if not parts.optimizer.about.trains:
        raise BadInput(f"method={config.method['name']}: allowed is a method that trains")
    return Scene(config, parts)
