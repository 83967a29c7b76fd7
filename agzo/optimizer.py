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

from agzo.activations.capture import ActivationCapture
from agzo.check import (
    check_choice,
    check_count,
    check_group,
    check_number,
    check_rates,
    check_seed,
)
from agzo.directions.direction import Direction
from agzo.directions.sampler import DirectionSampler, Gaussian, Sampled
from agzo.directions.seen import OnSeenRows, SeenTokens
from agzo.distributed.group import ALONE, UNSAID, Group
from agzo.distributed.pieces import Batch, Joint, joint
from agzo.estimator import ESTIMATORS, EXECUTIONS, Measurement, forwards_per_step, measure
from agzo.execution.loss_check import Uses, check_loss, dropouts, refuse_dropout
from agzo.execution.perturb import Directions, Execution, SideBranch
from agzo.execution.steady import Steady, backward_refused
from agzo.execution.weights import Resident, Weights, check_streamed
from agzo.moments import KEPT, UPDATES, Moments, refuse_large_state
from agzo.progress import ENTRY, Progress, saved_entry
from agzo.rng import STREAM, Noise
from agzo.torch_calls.inputs import is_low_precision
from agzo.torch_calls.surroundings import Closure, Watch, apart, watched
from agzo.tuned.coordinates import Moved
from agzo.tuned.places import Places
from agzo.tuned.select import Params, Tuned, select
from agzo.update import ROUNDINGS, move

CHANGEABLE = ("eps", "momentum", "beta2")
"""Settings that may be changed between steps, as attributes; a state has those of its time."""


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
            table the rows of the batch's tokens alone, see `agzo.directions.seen`.
        update: "sgd", "momentum" or "adam", see `agzo.moments`.
        momentum, beta2: decay rates of the first and second moment, in [0, 1).
        large_state: allow moments of more than 64 MiB and a tenth of the model's size.
        weight_decay: as in torch.optim.SGD, W <- W - lr * (g Delta + weight_decay * W).
        execution: "side_branch" (weights never written while measuring), "batched" (the two
            evaluations of a two-sided step in one pass, see `agzo.execution.batched`) or "in_place"
            (reference).
        rounding: "nearest", "stochastic" or "master", see `agzo.update`.
        seed: of all noise; the global generator is not used.
        params: None (every parameter that requires grad), a filter ``(name, parameter) -> bool``,
            parameters, or parameter groups with their own "lr" and "weight_decay".
        stream: where the weights are, if not all on their device, see `agzo.execution.stream`.
        group: processes that share each batch and apply the same updates, see `agzo.distributed`.
        accumulation: micro-batches of this process in a step, see `agzo.distributed.pieces`.

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
        rates = check_rates(lr=lr, weight_decay=weight_decay)
        self.eps = check_number("eps", eps, above=0.0)
        self.queries = check_count("queries", queries)
        check_choice("estimator", estimator, ESTIMATORS)
        check_choice("update", update, UPDATES)
        self.momentum = check_number("momentum", momentum, minimum=0.0, below=1.0)
        self.beta2 = check_number("beta2", beta2, minimum=0.0, below=1.0)
        check_choice("execution", execution, tuple(EXECUTIONS))
        check_choice("rounding", rounding, ROUNDINGS)
        if stream is not None:
            check_streamed(execution, rounding)
        self._weights: Weights = stream or Resident()
        self.group = UNSAID if group is None else group
        self.accumulation = check_count("accumulation", accumulation)
        self.tuned, groups = select(model, params, embeddings, self._weights.device)
        super().__init__([check_group(each) for each in groups], rates)
        self.model = model
        self.estimator = estimator
        self.embeddings = embeddings
        if embeddings == "seen":
            if update != "sgd":
                raise ValueError(
                    f"update={update!r}: with embeddings='seen' allowed is 'sgd'; each step has "
                    "other rows, and moments of the whole table would be as large as the table"
                )
            self.needs_data = self.needs_data or "its directions lie on rows of each batch's tokens"
        self.update = update
        self.large_state = large_state
        self.rounding = rounding
        self.seed = check_seed("seed", seed)
        self.projected_grad: Tensor | None = None
        self._execution: Execution = EXECUTIONS[execution]()
        device = self.tuned[0].device
        self.stream_version = STREAM
        self._dropouts = dropouts(model)
        self._steady = Steady(model, list({each.device for each in self.tuned}))
        self._reached: set[str] = set()  # of the parameters that wait, in this step
        settings = {
            "method": type(self).__name__,
            **{key: getattr(self, key) for key in self.settings},
        }
        self._begin_progress(device, seed=self.seed, stream=self.stream_version, settings=settings)
        self._ready()

    def _ready(self) -> None:
        """Make what depends on which parameters are tuned: sampler and float32 copies."""
        self._places = Places(self.model, self.tuned)
        self._names = {each.parameter: each.name for each in self.tuned}
        self._aim()
        if self.rounding == "master":
            for each in self.tuned:
                if is_low_precision(each.parameter.dtype):
                    self.state[each.parameter]["master"] = each.parameter.detach().float()

    def _aim(self) -> None:
        """Make the sampler of what is tuned, and refuse moments that are too large for it."""
        self._look: DirectionSampler = self._sampler()
        tables = [each for each in self.tuned if each.role == "embedding"]
        self._seen = (
            SeenTokens(tables, self.group) if self.embeddings == "seen" and tables else None
        )
        if self._seen is not None:
            self._look = OnSeenRows(self._look, self._seen)
        if self._moments is not None and not self.large_state:
            whole = sum(parameter.numel() for parameter in self.model.parameters())
            sizes = {each.name: self._look.sizes(each) for each in self.tuned}
            if self.tuned[0].device.type != "meta":  # a rehearsal says nothing of memory
                refuse_large_state(self._moments, sizes, whole)

    def _sampler(self) -> DirectionSampler:
        return Gaussian()

    def moved(self) -> list[Moved]:
        """List the tensors of the model that move, see `agzo.tuned.coordinates`."""
        return [self._look.moved(each) for each in self.tuned]

    @property
    def _moments(self) -> Moments | None:
        return None if self.update == "sgd" else Moments(self.update, self.momentum, self.beta2)

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
        self, closure: Batch | None = None, token_mask: Tensor | None = None
    ) -> Tensor:
        """Measure, move, and return the loss (0-dim, at least float32, on its device).

        Args:
            closure: returns the loss of one batch as a 0-dim tensor; it is called several times
                and must be a function of the weights alone. Or the pieces of a batch, each with its
                own mask: `accumulation` micro-batches, or a process's share.
            token_mask: boolean (batch, sequence), True for real tokens; used by methods that look
                at activations.

        A parameter that does not require grad when a step begins takes no part in it. From the
        first loss that is not finite on, weights no longer change; when a caller is told says
        `refuse_not_finite`, and `finite` tells whoever asks.

        Raises:
            ValueError: what the loss or the model is that no finite difference can be taken of.
            FloatingPointError: an earlier step measured what is not finite.
        """
        self.refuse_not_finite()
        zo = self._zo
        self._enter()
        batch = joint(closure, token_mask, self.accumulation, self.group)
        if self._steady.switched() or zo["step"] == 0:
            self._check(batch)
        measurement, finite = self._measure(batch, zo["step"])
        self.projected_grad = torch.stack([g for _, g in measurement.queries])
        for each in (finite, torch.isfinite(self.projected_grad).all()):
            zo["alive"] &= each.to(zo["alive"].device)
        zo["alive"] &= torch.isfinite(measurement.loss).to(zo["alive"].device)
        self._move(measurement.queries, Noise(self.seed, zo["step"]))
        if self._reached:
            zo["waiting"] = [name for name in zo["waiting"] if name not in self._reached]
            self._reached.clear()
        zo["step"] += 1
        self._look_later()
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
        self._enter()
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
        self._enter()
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

    def _enter(self) -> None:
        """Refuse a step or an estimate that the model or the optimizer is not ready for."""
        self._places.check()
        refuse_dropout(self._dropouts)
        if not self._active:
            raise ValueError(
                "params: no tuned parameter requires grad any more; allowed is a model with one"
            )

    def _measure(self, batch: Joint, step: int) -> tuple[Measurement, Tensor]:
        """Return what a step measures, and whether its bases are finite (0-dim bool)."""
        capture, watch = self._looking(batch, step)
        if self._seen is not None and capture is None and self.estimator == "two_sided":
            with self.around.entered():
                self._seen.peek(batch, self._zo["lookups"])  # no forward at W would show the rows
            watch = None
        self._steady.begin()
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
        self._steady.check(batch)
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
        waiting = self._zo.get("waiting")
        if waiting:
            with Uses([each for each in self.tuned if each.name in waiting]) as watch:
                loss = self._run(closure)
            self._reached |= {watch.tuned[key] for key in watch.seen}
        else:
            loss = self._run(closure)
        if not isinstance(loss, Tensor) or loss.dim() != 0 or not loss.is_floating_point():
            found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"closure returned {found}; allowed is a 0-dim floating-point tensor")
        self._steady.evaluated()
        return loss

    def _run(self, closure: Closure) -> Tensor:
        """Evaluate a closure: every evaluation of a method comes by here."""
        with self.around.entered(), watched():
            return closure()

    def _directions(self, noise: Noise) -> Directions:
        return Sampled(self._active, lambda each: self._look.sample(each, noise))

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
                mine = [(d[parameter], g) for d, g in applied if parameter in d]
                if not mine:
                    continue
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

    def _check(self, closure: Joint) -> None:
        """Refuse, before the first step, a loss that no finite difference can be taken of."""
        must_see, seen = isinstance(self._execution, SideBranch), self._seen
        self._steady.begin(checking=True)

        def forward() -> Tensor:
            learn = self._look.learn(closure.pieces[0].token_mask)
            with backward_refused(self._active), learn:
                return self._forward(closure)

        explain = partial(self._steady.refuse_noise, closure)
        if seen is None:
            waiting = check_loss(forward, self._active, must_see, self.model, explain)
        else:
            seen.begin(None)
            watched = partial(seen.watch, forward)
            waiting = check_loss(watched, self._active, must_see, self.model, explain)
            self._zo["lookups"] = -(-seen.lookups // self.accumulation)  # of a piece
        self._steady.check(closure)
        if waiting and self._zo["step"] == 0:
            self._wait_for(waiting)

    def _wait_for(self, names: list[str]) -> None:
        """Leave parameters out that the first batch passes by, until a batch reaches them."""
        if self.group.size > 1:
            raise ValueError(
                f"no token of this process's share reaches {', '.join(names[:5])}; with "
                f"{self.group.size} processes allowed are layers that every share reaches: use "
                "one process, or leave them out with params="
            )
        self._zo["waiting"] = names

    @property
    def joined_late(self) -> bool:
        """Whether there is a parameter that did not take part from the first step on."""
        return "waiting" in self._zo

    @property
    def _active(self) -> list[Tuned]:
        """The parameters that take part now."""
        waiting = self._zo.get("waiting", ())
        return [e for e in self.tuned if e.parameter.requires_grad and e.name not in waiting]

    def __getstate__(self) -> dict[str, Any]:
        if not isinstance(self._weights, Resident):
            raise TypeError(
                "stream: an optimizer of streamed layers cannot be copied or pickled; allowed is "
                "its state_dict()"
            )
        return super().__getstate__()

    def live_state(self) -> dict[str, Any]:
        """Return torch's state dict, of weights and moments that are up to date, to write at once.

        The settings are those of now; where one was changed after construction, "made_with" has
        what it was.
        """
        self._weights.flush()
        state = super().live_state()
        entry = state["state"][ENTRY]
        now = {key: getattr(self, key) for key in CHANGEABLE}
        made = {key: entry["settings"][key] for key in now if now[key] != entry["settings"][key]}
        entry = {**entry, "settings": {**entry["settings"], **now}}
        state["state"][ENTRY] = {**entry, "made_with": made} if made else entry
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned; eps, momentum and beta2 are those of then.

        Raises:
            ValueError: another noise stream, or an optimizer that was made with other settings.
        """
        zo = saved_entry(state_dict)
        if zo["stream"] != self.stream_version:
            raise ValueError(
                f"stream={zo['stream']!r}: allowed is {self.stream_version!r}; noise of another "
                "stream version would continue a different run"
            )
        mine = self._zo["settings"]
        made_with = {**zo["settings"], **zo.get("made_with", {})}
        for key, value in made_with.items():
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
        self._zo["settings"] = made_with
        self._zo.pop("made_with", None)
        self.seed = zo["seed"]
        for key in CHANGEABLE:
            setattr(self, key, zo["settings"][key])
        # torch casts floating-point state to the parameter's dtype; ours is float32 and stays so.
        ordered = [p for group in self.param_groups for p in group["params"]]
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        devices = {each.parameter: each.device for each in self.tuned}
        for saved_as, parameter in zip(keys, ordered, strict=True):
            saved = state_dict["state"].get(saved_as, {})
            for key in ("master", *KEPT):
                if key in saved:
                    self.state[parameter][key] = saved[key].clone().to(devices[parameter])
