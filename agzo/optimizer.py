"""ZeroOrderOptimizer: sampler x estimator x update behind the face of torch.optim.

    optimizer = AGZO(model, lr=1e-6, eps=1e-3)
    loss = optimizer.step(closure)          # closure() returns the loss of one batch

Nothing in `step` waits for the device. Everything a resumed run needs is in `state_dict()`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from agzo.about import About
from agzo.check import (
    check_choice,
    check_count,
    check_group,
    check_number,
    check_rates,
    check_seed,
)
from agzo.directions.sampler import NOISES
from agzo.distributed.group import UNSAID, Group
from agzo.distributed.pieces import Batch, joint
from agzo.estimator import ESTIMATORS, EXECUTIONS, Measurement
from agzo.execution.perturb import Execution
from agzo.execution.weights import Resident, Weights, check_streamed
from agzo.guard import Guard
from agzo.looking import Looking
from agzo.moments import MOMENTS
from agzo.moving import Moving
from agzo.observed import Observed
from agzo.per_piece import PER_PIECE, check_per_piece
from agzo.preparing import Preparing
from agzo.saved_state import SETTINGS, SavedState, Staged
from agzo.scaling import SCALINGS, check_scaling
from agzo.torch_calls.surroundings import apart
from agzo.tuned.scope import Scope
from agzo.tuned.select import Params, select
from agzo.update import ROUNDINGS

UPDATES = ("sgd", *MOMENTS, *SCALINGS)


class ZeroOrderOptimizer(Preparing, Looking, Moving, Observed, SavedState):
    """A zeroth-order method: look with a sampler, measure by finite differences, move.

    Subclasses override `_make_sampler` and name their own hyperparameters.

    Args:
        model: the module whose weights the closure's loss depends on, in eval() mode.
        lr: learning rate, >= 0; schedulers of torch.optim.lr_scheduler apply.
        eps: the perturbation size mu of the paper, > 0.
        estimator: "one_sided", "two_sided", or of some methods "per_piece", see `agzo.per_piece`.
        queries: directions measured and averaged per step, >= 1.
        noise: "gaussian" or "rademacher" (-1 and 1: of the same covariance, and on a CPU made in a
            third of the time), of dense directions and of the dense parts of others.
        embeddings: "tuned", "frozen" (a head tied to the embedding included), or "seen": of each
            table the rows of the batch's tokens alone, see `agzo.directions.seen`.
        update: "sgd", "momentum" or "adam", see `agzo.moments`; "scalar", "spread" or "centred",
            see `agzo.scaling`.
        momentum, beta2: decay rates of the first and second moment, in [0, 1); beta2 of "scalar"
            too.
        large_state: allow moments of more than 64 MiB and a tenth of the model's size.
        weight_decay: as in torch.optim.SGD, W <- W - lr * (g Delta + weight_decay * W).
        execution: "side_branch" (weights never written while measuring), "batched" (the two
            evaluations of a two-sided step in one pass, see `agzo.execution.batched`) or "in_place"
            (reference).
        rounding: "nearest", "stochastic" or "master", see `agzo.update`.
        seed: of all noise; the global generator is not used.
        params: None (every parameter that requires grad), a filter ``(name, parameter) -> bool``,
            parameters, parameter groups with their own "lr" and "weight_decay", or a
            `agzo.tuned.scope.Scope`, such as `baselines.DominantLayer`.
        stream: where the weights are, if not all on their device, see `agzo.execution.stream`.
        group: processes that share each batch and apply the same updates, see `agzo.distributed`.
        accumulation: micro-batches of this process in a step at most (the last step of an epoch may
            have fewer), see `agzo.distributed.pieces`.

    With rounding="master" load weights before constructing: the copy is taken then.

    Raises:
        ValueError: a hyperparameter out of range; the message names key, value and what is allowed.
    """

    about: ClassVar[About] = About()

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float,
        eps: float,
        estimator: str,
        queries: int = 1,
        noise: str = "gaussian",
        embeddings: str = "tuned",
        update: str = "sgd",
        momentum: float = 0.9,
        beta2: float = 0.999,
        large_state: bool = False,
        weight_decay: float = 0.0,
        execution: str = "side_branch",
        rounding: str = "nearest",
        seed: int = 0,
        params: Params | Scope = None,
        stream: Weights | None = None,
        group: Group | None = None,
        accumulation: int = 1,
    ) -> None:
        rates = check_rates(lr=lr, weight_decay=weight_decay)
        self.eps = check_number("eps", eps, above=0.0)
        self.queries = check_count("queries", queries)
        check_choice("estimator", estimator, self.about.estimators or ESTIMATORS)
        check_choice("noise", noise, tuple(NOISES))
        check_choice("update", update, self.about.updates or UPDATES)
        if estimator == PER_PIECE:
            check_per_piece(self.queries, group, stream)
        else:
            check_scaling(update, self.queries)
        self.momentum = check_number("momentum", momentum, minimum=0.0, below=1.0)
        self.beta2 = check_number("beta2", beta2, minimum=0.0, below=1.0)
        check_choice("execution", execution, tuple(EXECUTIONS))
        check_choice("rounding", rounding, ROUNDINGS)
        if stream is not None:
            check_streamed(execution, rounding)
        self._weights: Weights = stream or Resident()
        self.group = UNSAID if group is None else group
        self.accumulation = check_count("accumulation", accumulation)
        scope = params if isinstance(params, Scope) else Scope(params)
        self.scope = scope.of(model, streamed=stream is not None)
        self.tuned, groups = select(model, self.scope.params, embeddings, self._weights.device)
        super().__init__([check_group(each) for each in groups], rates)
        self.model = model
        self.estimator = estimator
        self.noise = noise
        self.embeddings = embeddings
        if embeddings == "seen" and update in MOMENTS:
            raise ValueError(
                f"update={update!r}: with embeddings='seen' allowed are "
                f"{', '.join(each for each in UPDATES if each not in MOMENTS)}; each step has "
                "other rows, and moments of the whole table would be as large as the table"
            )
        self.update = update
        self.large_state = large_state
        self.rounding = rounding
        self.seed = check_seed("seed", seed)
        self.projected_grad: Tensor | None = None
        self._execution: Execution = EXECUTIONS[execution]()
        device = self.tuned[0].device
        self.stream_version = NOISES[noise].stream
        self._guard = Guard(model, self.tuned)
        self.forwards_once = 2 + self.scope.forwards  # the check that the loss is a function
        own = {key: getattr(self, key) for key in (*SETTINGS, *self.about.settings)}
        settings = {"method": type(self).__name__, **own, **self.scope.settings}
        self._begin_progress(device, seed=self.seed, stream=self.stream_version, settings=settings)
        if self.scope.missing is None:
            self._ready()

    def _captures(self, step: int) -> bool:
        """Tell whether step number `step` must look at activations before it perturbs."""
        return False

    def _refreshes(self, step: int) -> bool:
        """Tell whether the right factors of step `step` are others than those of the one before."""
        return self._captures(step)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group while constructing; later it is an error: directions are keyed by name."""
        if hasattr(self, "stream_version"):
            raise ValueError("add_param_group: allowed is params= of a new optimizer")
        super().add_param_group(param_group)

    @apart
    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, closure: Batch | None = None, token_mask: Tensor | None = None
    ) -> Tensor:
        """Measure, move, and return the loss (0-dim, at least float32, on its device).

        Args:
            closure: returns the loss of one batch as a 0-dim tensor; it is called several times
                and must be a function of the weights alone. Or the pieces of a batch, each with its
                own mask: `accumulation` micro-batches at most, or a process's share. None moves as
                `stage` has measured.
            token_mask: boolean (batch, sequence), True for real tokens; used by methods that look
                at activations.

        A parameter that does not require grad when a step begins takes no part in it. From the
        first loss that is not finite on, weights no longer change; when a caller is told says
        `refuse_not_finite`, and `finite` tells whoever asks.

        Raises:
            ValueError: what the loss or the model is that no finite difference can be taken of.
            FloatingPointError: an earlier step measured what is not finite.
        """
        staged = self._staged if closure is None else None
        if staged is not None:
            staged.check(self.eps)
        measurement, finite, *_ = staged or self._measured(closure, token_mask)
        self._staged = None
        self._take(measurement, finite)
        return measurement.loss

    @apart
    def stage(self, closure: Batch, token_mask: Tensor | None = None) -> Tensor:
        """Measure a step and return its loss; `step()` without a closure moves, once.

        For training loops that call `step()` themselves: the lr is that of then. A state that is
        saved, copied or loaded in between has nothing of it. Arguments and errors are `step`'s.
        """
        self._staged = self._measured(closure, token_mask)
        return self._staged[0].loss

    def _measured(self, closure: Batch | None, mask: Tensor | None) -> Staged:
        """Return what a step measures on a batch, checked."""
        if self._staged is not None:
            raise ValueError(
                "closure: a step is staged that has not moved yet; allowed is step() without a "
                "closure, or load_state_dict, before the next one is measured"
            )
        self.refuse_not_finite()
        self._enter()
        self._guard.reached.clear()  # by what did not become a step
        batch = joint(closure, mask, self.accumulation, self.group)
        before = self._zo["forwards"]
        if self._guard.switched() or self._zo["step"] == 0:
            self._check(batch)
            self._check_scope(batch)
            self._guard.checked()
        return Staged(*self._measure(batch, self._zo["step"]), before, self.eps)

    def _take(self, measurement: Measurement, finite: Tensor) -> None:
        """Move as was measured, and end the step."""
        zo = self._zo
        self.projected_grad = torch.stack([g for _, g in measurement.queries])
        for each in (finite, torch.isfinite(self.projected_grad).all()):
            zo["alive"] &= each.to(zo["alive"].device)
        zo["alive"] &= torch.isfinite(measurement.loss).to(zo["alive"].device)
        self._end(measurement.queries, measurement)
        self._guard.moved(zo)
        if self._measure_hooks:
            self._tell(measurement)
