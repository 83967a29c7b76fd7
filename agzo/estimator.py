"""How to measure: the projected gradient g along a direction Delta, by finite differences.

    one-sided    g = (f(W + eps Delta) - f(W)) / eps                    1 + q forwards a step
    two-sided    g = (f(W + eps Delta) - f(W - eps Delta)) / (2 eps)    2 q forwards a step

A method that needs activations captures them in the base forward f(W): free when one-sided (AGZO,
Algorithm 2), one forward more when two-sided, as it is for a method that needs f(W) itself. The
differences stay on the device.

The evaluations of a step are listed first and then run, one after another or side by side.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agzo.directions.sampler import sample_rest
from agzo.execution.batched import Batched
from agzo.execution.perturb import Directions, Execution, InPlace, SideBranch
from agzo.execution.weights import in_turn
from agzo.torch_calls.surroundings import Closure, Watch

ESTIMATORS = ("one_sided", "two_sided")
EXECUTIONS: dict[str, type[Execution]] = {
    "side_branch": SideBranch,
    "batched": Batched,
    "in_place": InPlace,
}


@dataclass(frozen=True)
class Measurement:
    """The loss of a step and, for each query, its directions and its projected gradient (0-dim).

    `loss` is f(W) where the step evaluated it, else the mean of the evaluations. `losses` are those
    at the perturbed weights, (queries, 1) at W + eps Delta, or (queries, 2) with W - eps Delta.
    """

    loss: Tensor
    queries: list[tuple[Directions, Tensor]]
    losses: Tensor


Together = Callable[[Sequence[Closure]], list[Tensor]]


def measure(
    estimator: str,
    closure: Closure,
    sample: Callable[[int], Directions],
    queries: int,
    eps: float,
    execution: Execution,
    watch: Watch | None,
    at_w: bool = False,
    together: Together = in_turn,
    mean: Callable[[Tensor], Tensor] = lambda losses: losses,
) -> Measurement:
    """Measure `queries` directions; one is sampled after the capture has seen its parameter's use.

    `watch` runs the closure at W and captures what it sees. `at_w` asks for f(W) where no slope
    needs it. `together` runs the evaluations; the capture's own is the first of them. `mean` turns
    their losses, (evaluations,), into those of the whole batch, where other processes have a share
    of it.
    """

    def watched() -> Tensor:
        return closure() if watch is None else watch(closure)

    signs = (1.0,) if estimator == "one_sided" else (1.0, -1.0)
    based = estimator == "one_sided" or watch is not None or at_w
    drawn = functools.cache(sample)

    def at(query: int, scale: float) -> Tensor:
        return execution.evaluate(closure, drawn(query), scale)

    def both(query: int) -> Tensor:
        assert isinstance(execution, Batched)
        return execution.evaluate_all(closure, drawn(query), [sign * eps for sign in signs])

    evaluations = [functools.partial(execution.unperturbed, watched)] if based else []
    for query in range(queries):
        if isinstance(execution, Batched) and len(signs) > 1:
            evaluations.append(functools.partial(both, query))
            continue
        for sign in signs:
            evaluations.append(functools.partial(at, query, sign * eps))
    found = [_full_precision(loss).reshape(-1) for loss in together(evaluations)]
    own = torch.cat(found)
    losses = list(mean(own).unbind())
    base = losses.pop(0) if based else None
    measured: list[tuple[Directions, Tensor]] = []
    for query in range(queries):
        directions = drawn(query)
        sample_rest(directions)
        if estimator == "one_sided":
            assert base is not None
            slope = (losses[query] - base) / eps
        else:
            plus, minus = losses[2 * query : 2 * query + 2]
            slope = (plus - minus) / (2.0 * eps)
        measured.append((directions, slope.to(own.dtype)))
    loss = torch.stack(losses).mean() if base is None else base
    perturbed = torch.stack(losses).reshape(queries, len(signs))
    return Measurement(loss.to(own.dtype), measured, perturbed.to(own.dtype))


def _full_precision(loss: Tensor) -> Tensor:
    """Return the loss in at least float32; a float64 loss stays float64."""
    return loss.detach() if loss.dtype == torch.float64 else loss.detach().float()


def forwards_per_step(estimator: str, queries: int, at_w: bool) -> int:
    """Count the forwards of a step; `at_w` if it needs one at W for bases, or for its loss."""
    if estimator == "one_sided":
        return 1 + queries
    queries = queries if estimator == "two_sided" else 1  # `agzo.per_piece`
    return 2 * queries + int(at_w)
