"""ZeroOrderOptimizer: sampler x estimator x update behind the face of torch.optim.

    optimizer = AGZO(model, lr=1e-6, eps=1e-3)
    loss = optimizer.step(closure)          # closure() returns the loss of one batch

Nothing in `step` waits for the device. Everything a resumed run needs is in `state_dict()`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from agzo.activations import ActivationCapture
from agzo.check import check_choice, check_count, check_group, check_number
from agzo.direction import Direction
from agzo.estimator import ESTIMATORS, EXECUTIONS, Measurement, Watch, forwards_per_step, measure
from agzo.group import ALONE, Group
from agzo.loss_check import check_loss, dropouts, refuse_dropout
from agzo.moments import KEPT, UPDATES, Moments, refuse_large_state
from agzo.perturb import Closure, Directions, Execution, SideBranch
from agzo.pieces import Batch, Joint, joint
from agzo.progress import Progress
from agzo.rng import STREAM, Noise
from agzo.sampler import DirectionSampler, Gaussian, Sampled
from agzo.seen import OnSeenRows, SeenTokens
from agzo.select import Params, select
from agzo.surroundings import apart, watched
from agzo.update import ROUNDINGS, is_low_precision, move
from agzo.weights import Resident, Weights, check_streamed


class ZeroOrderOptimizer(Progress):
    """A zeroth-order method: look with a sampler, measure by finite differences, move.

    Subclasses override `_sampler` and name their own hyperparameters.

    Args:
        model: the module whose weights the closure's loss depends on, in eval() mode.
        lr: learning rate, >= 0; schedulers of torch.optim.lr_scheduler apply.
        eps: the perturbation size mu of the paper, > 0.
        estimator: "one_sided" or "two_sided".
        queries: directions measured and averaged per step, >= 1.
        embeddings: "tuned", "frozen" (a head tied to the embedding included), or "seen": of each
            table the rows of the batch's tokens alone, see `agzo.seen`.
        update: "sgd", "momentum" or "adam", see `agzo.moments`.
        momentum, beta2: decay rates of the first and second moment, in [0, 1).
        large_state: allow moments of more than a tenth of the model's size.
        weight_decay: as in torch.optim.SGD, W <- W - lr * (g Delta + weight_decay * W).
        execution: "side_branch" (weights never written while measuring), "batched" (the two
            evaluations of a two-sided step in one pass, see `agzo.batched`) or "in_place"
            (reference).
        rounding: "nearest", "stochastic" or "master", see `agzo.update`.
        seed: of all noise; the global generator is not used.
        params: None (every parameter that requires grad), a filter ``(name, parameter) -> bool``,
            parameters, or parameter groups with their own "lr" and "weight_decay".
        stream: where the weights are, if not all on their device: `agzo.stream.StreamedLayers`.
        group: processes that share each batch and apply the same updates, see `agzo.group`.
        accumulation: micro-batches of this process in a step, see `agzo.pieces`.

    With rounding="master" load weights before constructing: the copy is taken then.

    Raises:
        ValueError: a hyperparameter out of range; the message names key, value and what is allowed.
    """

    trains: ClassVar[bool] = True
    alters: ClassVar[bool] = False  # whether it adds to the model or holds part in another dtype
    studies: int = 0  # training batches that `study` wants to see before the first step
    studied: dict[str, Any] | None = None  # what `study` found, for the record of a run
    forwards_once: int = 2  # the check that the loss is a function
    needs_data: str | None = None  # why directions cannot be made without the batches
    fixed: ClassVar[tuple[str, ...]] = ()  # arguments a subclass sets itself or has no use for
    _seen: SeenTokens | None = None  # the rows of tables that a batch looks up
    settings: ClassVar[tuple[str, ...]] = (
        *("eps", "estimator", "queries", "rounding", "embeddings"),
        *("update", "momentum", "beta2"),
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float,
        eps: float,
        estimator: str,
        queries: int = 1,
        embeddings: str = "tuned",
        update: str = "sgd",
        momentum: float = 0.9,
        beta2: float = 0.999,
        large_state: bool = False,
        weight_decay: float = 0.0,
        execution: str = "side_branch",
        rounding: str = "nearest",
        seed: int = 0,
        params: Params = None,
        stream: Weights | None = None,
        group: Group | None = None,
        accumulation: int = 1,
    ) -> None:
        check_number("lr", lr, minimum=0.0)
        check_count("accumulation", accumulation)
        check_number("eps", eps, above=0.0)
        check_number("weight_decay", weight_decay, minimum=0.0)
        check_count("queries", queries)
        check_choice("estimator", estimator, ESTIMATORS)
        check_choice("update", update, UPDATES)
        check_number("momentum", momentum, minimum=0.0, below=1.0)
        check_number("beta2", beta2, minimum=0.0, below=1.0)
        check_choice("execution", execution, tuple(EXECUTIONS))
        check_choice("rounding", rounding, ROUNDINGS)
        if stream is not None:
            check_streamed(execution, rounding)
        self._weights: Weights = stream or Resident()
        self.group, self.accumulation = group or ALONE, accumulation
        self.tuned, groups = select(model, params, embeddings, self._weights.device)
        for each in groups:
            check_group(each)
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
        self.model = model
        self.eps = eps
        self.estimator = estimator
        self.queries = queries
        self.embeddings = embeddings
        self._seen: SeenTokens | None = None
        if embeddings == "seen":
            if update != "sgd":
                raise ValueError(
                    f"update={update!r}: with embeddings='seen' allowed is 'sgd'; each step has "
                    "other rows, and moments of the whole table would be as large as the table"
                )
            self.needs_data = self.needs_data or "its directions lie on rows of each batch's tokens"
        self.update, self.momentum, self.beta2 = update, momentum, beta2
        self.large_state = large_state
        self.rounding = rounding
        self.seed = seed
        self.projected_grad: Tensor | None = None
        self._execution: Execution = EXECUTIONS[execution]()
        self._moments = None if update == "sgd" else Moments(update, momentum, beta2)
        device = self.tuned[0].device
        self.stream_version = STREAM
        self._dropouts = dropouts(model)
        settings = {
            "method": type(self).__name__,
            **{key: getattr(self, key) for key in self.settings},
        }
        self._begin_progress(device, seed=seed, stream=self.stream_version, settings=settings)
        self._ready()

    def _ready(self) -> None:
        """Make what depends on which parameters are tuned: sampler and float32 copies."""
        self._look: DirectionSampler = self._sampler()
        tables = [each for each in self.tuned if each.role == "embedding"]
        self._seen = (
            SeenTokens(tables, self.group) if self.embeddings == "seen" and tables else None
        )
        if self._seen is not None:
            self._look = OnSeenRows(self._look, self._seen)
        self._names = {each.parameter: each.name for each in self.tuned}
        if self._moments is not None and not self.large_state:
            whole = sum(parameter.numel() for parameter in self.model.parameters())
            sizes = {each.name: self._look.sizes(each) for each in self.tuned}
            if self.tuned[0].device.type != "meta":  # a rehearsal says nothing of memory
                refuse_large_state(self._moments, sizes, whole)
        if self.rounding == "master":
            for each in self.tuned:
                if is_low_precision(each.parameter.dtype):
                    self.state[each.parameter]["master"] = each.parameter.detach().float()

    def _sampler(self) -> DirectionSampler:
        return Gaussian()

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

    @property
    def forwards_per_step(self) -> int:
        """Forward passes of a step that refreshes its bases (the check of the first step apart)."""
        return self.forwards_of_step(0)

    def forwards_of_step(self, step: int) -> int:
        """Count the forward passes of step number `step`."""
        return forwards_per_step(self.estimator, self.queries, self._captures(step))

    @apart
    def study(self, batches: Sequence[tuple[Closure, Tensor | None]]) -> None:
        """Look at `studies` batches, (closure, token mask) each, before the first step.

        For methods that choose once what to tune or where to look; most have no need.
        """

    @apart
    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, closure: Batch, token_mask: Tensor | None = None
    ) -> Tensor:
        """Measure, move, and return the loss (0-dim, at least float32, on its device).

        Args:
            closure: returns the loss of one batch as a 0-dim tensor; it is called several times
                and must be a function of the weights alone. Or the pieces of a batch, each with its
                own mask: `accumulation` micro-batches, or a process's share.
            token_mask: boolean (batch, sequence), True for real tokens; used by methods that look
                at activations.

        From the first loss that is not finite on, weights no longer change (`finite` tells); the
        caller decides when to look.
        """
        zo = self._zo
        refuse_dropout(self._dropouts)
        batch = joint(closure, token_mask, self.accumulation, self.group)
        if zo["step"] == 0:
            self._check(batch)
        measurement, finite = self._measure(batch, zo["step"])
        self.projected_grad = torch.stack([g for _, g in measurement.queries])
        for each in (finite, torch.isfinite(self.projected_grad).all()):
            zo["alive"] &= each.to(zo["alive"].device)
        zo["alive"] &= torch.isfinite(measurement.loss).to(zo["alive"].device)
        self._move(measurement.queries, Noise(self.seed, zo["step"]))
        zo["step"] += 1
        return measurement.loss

    @apart
    def retrace(self, projected_grad: Tensor) -> None:
        """Move as the step did that measured `projected_grad`, (queries,), without a forward.

        Needs the weights, the state and the lr of that step; `needs_data` methods cannot.
        """
        if self.needs_data is not None:
            raise RuntimeError(f"{type(self).__name__}: {self.needs_data}")
        step = self._zo["step"]
        measured = enumerate(projected_grad.unbind())
        self._move(
            [(self._directions(Noise(self.seed, step, query)), g) for query, g in measured],
            Noise(self.seed, step),
        )
        self._zo["step"] += 1

    @apart
    def estimate(
        self, closure: Batch, token_mask: Tensor | None = None, step: int | None = None
    ) -> Measurement:
        """Measure as step number `step` (default: the next one) would, and move nothing.

        For looking at a method: the directions and projected gradients are those of `step`. Weights
        and the counts of steps and forwards stay; a method's bases are those taken here.
        """
        refuse_dropout(self._dropouts)
        batch = joint(closure, token_mask, self.accumulation, self.group)
        forwards = self._zo["forwards"]
        try:
            return self._measure(batch, self._zo["step"] if step is None else step)[0]
        finally:
            self._zo["forwards"] = forwards

    @apart
    def directions(
        self, closure: Closure, token_mask: Tensor | None = None, step: int = 0, queries: int = 1
    ) -> tuple[list[Directions], Tensor]:
        """Return the directions that step number `step` would measure on a batch, and its loss.

        Takes one forward, in which bases are captured; it is not counted. `losses` evaluates them.
        """
        refuse_dropout(self._dropouts)
        batch = joint(closure, token_mask, 1, ALONE)
        capture, watch = self._looking(batch, step)
        run = partial(self._run, batch)
        loss = run() if watch is None else watch(run)
        if capture is not None:
            capture.finite()  # checks the mask's use
        found = [self._directions(Noise(self.seed, step, query)) for query in range(queries)]
        for each in found:
            list(each.values())  # sampled now: the next batch has other bases
        return found, loss

    @apart
    def losses(self, closure: Closure, directions: Directions, scales: Sequence[float]) -> Tensor:
        """Return the losses at W + scale * direction, (scales,); they are not counted.

        The closure may be of another batch than that of the directions. Weights stay as they are.
        """
        run = partial(self._run, closure)
        found = [self._execution.evaluate(run, directions, scale) for scale in scales]
        return torch.stack(found)

    def _measure(self, batch: Joint, step: int) -> tuple[Measurement, Tensor]:
        """Return what a step measures, and whether its bases are finite (0-dim bool)."""
        capture, watch = self._looking(batch, step)
        if self._seen is not None and capture is None and self.estimator == "two_sided":
            with self.around.entered():
                self._seen.peek(batch, self._zo["lookups"])  # no forward at W would show the rows
            watch = None
        measurement = measure(
            self.estimator,
            lambda: self._forward(batch),
            lambda query: self._directions(Noise(self.seed, step, query)),
            self.queries,
            self.eps,
            self._execution,
            watch,
            together=self._weights.together,
            mean=lambda losses: self.group.mean(losses, batch.weight),
        )
        finite = torch.ones((), dtype=torch.bool, device=measurement.loss.device)
        return measurement, finite if capture is None else capture.finite()

    def _looking(self, batch: Joint, step: int) -> tuple[ActivationCapture | None, Watch | None]:
        """Return the capture of bases that is due, and what watches a forward at W for the step."""
        mask = batch.pieces[0].token_mask
        capture = self._look.capture(Noise(self.seed, step), mask)
        watch = None if capture is None else capture.watch
        return capture, watch if self._seen is None else self._seen.beside(watch, mask)

    def _forward(self, closure: Closure) -> Tensor:
        self._zo["forwards"] += self._execution.points
        loss = self._run(closure)
        if not isinstance(loss, Tensor) or loss.dim() != 0 or not loss.is_floating_point():
            found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"closure returned {found}; allowed is a 0-dim floating-point tensor")
        return loss

    def _run(self, closure: Closure) -> Tensor:
        """Evaluate a closure: every evaluation of a method comes by here."""
        with self.around.entered(), watched():
            return closure()

    def _directions(self, noise: Noise) -> Directions:
        return Sampled(self.tuned, lambda each: self._look.sample(each, noise))

    def _applied(self, query: int, evaluated: Directions) -> Directions:
        """Return what the update applies: the evaluated directions themselves."""
        return evaluated

    def _move(self, queries: list[tuple[Directions, Tensor]], noise: Noise) -> None:
        applied = [(self._applied(i, directions), g) for i, (directions, g) in enumerate(queries)]
        alive = self.finite.clone()  # streamed weights change later, by what held in this step
        for group in self.param_groups:
            decay = group["lr"] * group["weight_decay"]
            keep = 1.0 - alive.double() * decay if decay else None
            for parameter in group["params"]:
                mine = [(directions[parameter], g) for directions, g in applied]
                name, lr = self._names[parameter], group["lr"]
                change = partial(self._change, parameter, name, mine, lr, keep, alive, noise)
                self._weights.change(parameter, change)

    def _change(
        self,
        parameter: nn.Parameter,
        name: str,
        queries: list[tuple[Direction, Tensor]],
        lr: float,
        keep: Tensor | None,
        alive: Tensor,
        noise: Noise,
    ) -> None:
        """Move one parameter, where it is now."""
        device = parameter.device
        queries = [(direction, g.to(device)) for direction, g in queries]
        steps = self._steps(parameter, queries, lr, alive.to(device), noise.step)
        keep = keep if keep is None else keep.to(device)
        move(parameter, steps, keep, self.rounding, self._master(parameter), noise, name)

    def _master(self, parameter: nn.Parameter) -> Tensor | None:
        return self.state[parameter].get("master") if parameter in self.state else None

    def _steps(
        self,
        parameter: nn.Parameter,
        queries: list[tuple[Direction, Tensor]],
        lr: float,
        alive: Tensor,
        step: int,
    ) -> list[tuple[Direction, Tensor]]:
        """Return (direction, factor) pairs to add; factors are 0 once a loss was not finite."""
        if self._moments is None:
            share = -lr / len(queries)
            return [(d, torch.where(alive, g * share, 0.0)) for d, g in queries]
        refreshed = self._refreshes(step)
        moved = self._moments.direction(queries, self.state[parameter], step, refreshed, alive)
        return [(moved, alive.double() * -lr)]

    def _check(self, closure: Closure) -> None:
        """Refuse, before the first step, a loss that no finite difference can be taken of."""
        must_see = isinstance(self._execution, SideBranch)
        if self._seen is None:
            check_loss(lambda: self._forward(closure), self.tuned, must_see)
            return
        seen = self._seen
        seen.begin(None)
        check_loss(lambda: seen.watch(lambda: self._forward(closure)), self.tuned, must_see)
        self._zo["lookups"] = -(-seen.lookups // self.accumulation)  # of a piece

    def state_dict(self) -> dict[str, Any]:
        """Return torch's state dict, of weights and moments that are up to date."""
        self._weights.flush()
        return super().state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned; raises ValueError for another noise stream."""
        zo = state_dict["state"]["zo"]
        if zo["stream"] != self.stream_version:
            raise ValueError(
                f"stream={zo['stream']!r}: allowed is {self.stream_version!r}; noise of another "
                "stream version would continue a different run"
            )
        mine = self._zo["settings"]
        for key, value in zo["settings"].items():
            if key not in mine:
                raise ValueError(
                    f"{key}={value!r}: the loaded state was made with it, and "
                    f"{type(self).__name__} of this version has no {key}; allowed are states of "
                    "this version"
                )
            if value != mine[key]:
                raise ValueError(
                    f"{key}={mine[key]!r}: allowed is {value!r}, as when the loaded state was made"
                )
        self._weights.flush()
        super().load_state_dict(state_dict)
        self.seed = zo["seed"]
        # torch casts floating-point state to the parameter's dtype; ours is float32 and stays so.
        ordered = [p for group in self.param_groups for p in group["params"]]
        devices = {each.parameter: each.device for each in self.tuned}
        for index, parameter in enumerate(ordered):
            saved = state_dict["state"].get(index, {})
            for key in ("master", *KEPT):
                if key in saved:
                    self.state[parameter][key] = saved[key].clone().to(devices[parameter])
