"""How many steps a run takes, how many forward passes they cost, and where it looks at dev."""

from torch.optim import Optimizer

from agzo.progress import Progress
from experiments.config.errors import BadInput
from experiments.config.schema import TrainConfig


def steps(train: TrainConfig, optimizer: Optimizer) -> int:
    """Return the steps of a run: those asked for, or what its forward passes pay for."""
    if train.steps is not None:
        return train.steps
    assert train.forwards is not None
    assert isinstance(optimizer, Progress)
    affordable = optimizer.steps_within(train.forwards)
    if affordable == 0:
        least = optimizer.forwards_once + optimizer.forwards_of_step(0)
        raise BadInput(
            f"train.forwards={train.forwards}: allowed are {least} or more, what one step of "
            f"{type(optimizer).__name__} takes"
        )
    return affordable


def forwards(optimizer: Optimizer, steps: int) -> int:
    """Return the forward passes that so many steps take."""
    assert isinstance(optimizer, Progress)
    return optimizer.forwards_once + sum(map(optimizer.forwards_of_step, range(steps)))


def eval_steps(train: TrainConfig, steps: int) -> set[int]:
    """Return the steps after which dev is evaluated; the last one always is."""
    start = {0} if train.eval_at_start or steps == 0 else set()
    if train.evals is not None:
        return start | {-(-steps * i // train.evals) for i in range(1, train.evals + 1)}
    assert train.eval_every is not None
    return start | {steps} | set(range(train.eval_every, steps, train.eval_every))
