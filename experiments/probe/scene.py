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
from experiments.methods import registry
from experiments.models.loss import loss
from experiments.training.parts import Parts
from experiments.training.prepare import prepare


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

    def dev(self, count: int) -> Callable[[], Tensor]:
        """Return the loss of the first dev examples, which no step sees."""
        encoded = self.parts.dev.encoded
        if count > len(encoded):
            raise BadInput(f"--others={count}: allowed are up to {len(encoded)}, the dev examples")
        some, pad = encoded[:count], self.parts.encoder.pad_id
        batch = collate(some, self.parts.task, pad, self.device, pack_from=self.parts.pack_from)
        return self.closure(batch)

    def walk(self, steps: Sequence[int]) -> Iterator[int]:
        """Train along the run with its own method; yield before each of `steps`, ascending."""
        here = 0
        for step in steps:
            while here < step:
                batch = self.batch(here)
                self.parts.optimizer.step(self.closure(batch), token_mask=batch.token_mask)
                here += 1
            if not bool(self.parts.optimizer.finite):
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
