"""The run: train, look at dev, keep the best, report it on the evaluation split; resumable exactly.

There is no method here, only the interface they share (see registry.py). A step's batch is a pure
function of (seed, step) and the optimizer's state holds the rest, so a run that was killed and
resumed gives the numbers of one that was not. Losses stay on the device until a log point.
"""

import math
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agzo.tuned.scope import Scope
from experiments.config.schema import RunConfig
from experiments.evaluation import forgetting
from experiments.evaluation.evaluate import Questions, evaluate
from experiments.records import checkpoint, machine, record, report
from experiments.records.interrupt import Interrupted, StopRequest
from experiments.records.progress import Progress
from experiments.records.tracking import Tracker, run_id
from experiments.records.trajectory import Head, Step, Trajectory
from experiments.training.parts import Parts
from experiments.training.schedule import Schedule


class NonFiniteLoss(RuntimeError):
    """A training or dev loss that is not finite."""


class Runner:
    """One run in its folder."""

    def __init__(
        self, config: RunConfig, parts: Parts, folder: Path, tracker: Tracker, stop: StopRequest
    ) -> None:
        self.config, self.parts, self.folder = config, parts, folder
        self.tracker, self.stop = tracker, stop
        self.memory = machine.PeakMemory(parts.device)
        self.checkpoints = folder / "checkpoints"
        self.schedule = Schedule(parts.optimizer, config.train.schedule, parts.steps)
        self.buffer: list[Tensor] = []  # losses still on the device
        self.gradients: list[tuple[Tensor, list[float]]] = []  # and their lr, likewise
        self.progress = Progress(run=run_id(config.as_dict(), placed=False))
        self.group = parts.shares.group
        self.leads = self.group.rank == 0  # the others write nothing
        self.unrelated_before = self._unrelated_loss()  # of the untouched model, on resume too
        saved = self.group.first(lambda: checkpoint.steps(self.checkpoints))
        if saved:
            self._go_on(saved[-1])
        self.progress.ran_by(machine.git_state())
        self._begin = time.perf_counter() - self.progress.total_seconds
        self.metrics = record.Metrics(folder, self.progress.rows) if self.leads else None
        self.trajectory = Trajectory(folder, self.progress.step) if self.leads else None
        for row in self.progress.rows:  # a mirror that is begun anew is complete as well
            tracker.log(row)
        label = "/".join(config.folder.parts[-3:])
        self.line = report.ProgressLine(label, parts.steps, self.progress.step)
        self.begun, self.sent = self.at, self.group.reduced_bytes  # when this process began

    def train(self) -> None:
        """Take all steps that are left; a stop request leaves a checkpoint."""
        try:
            while True:
                if self.at in self.parts.eval_steps and self.progress.evaluated < self.at:
                    self._look_at_dev()
                    self._save()
                elif self._due(self.config.train.checkpoint_every):
                    self._save()
                if self.at == self.parts.steps:
                    return
                if self.group.any(self.stop.requested is not None):
                    raise Interrupted(number=self.stop.requested or signal.SIGTERM)
                self._advance()
                if self._due(self.config.train.log_every) and self.at not in self.parts.eval_steps:
                    self._row(dev=None)
        except Interrupted:
            self._drain()
            self._save()
            raise
        finally:
            self.line.close()

    def final_evaluation(self) -> dict[str, Any]:
        """Load the best checkpoint and evaluate it on the evaluation split."""
        if self.leads and self.progress.best is not None:
            checkpoint.load_weights(self.checkpoints, self.progress.best["step"], self.parts.model)
        found = self._evaluate(self.parts.eval, "evaluation")
        self.line.close()
        if not math.isfinite(found["loss"]):
            raise self._non_finite(f"the loss on the evaluation split is {found['loss']}", self.at)
        return found

    def forgetting(self) -> dict[str, Any] | None:
        """Say what the run did to unrelated text and how far the weights moved (the best's)."""
        unrelated = self.parts.unrelated
        if unrelated is None:
            return None
        losses = {"loss_before": self.unrelated_before, "loss_after": self._unrelated_loss()}
        moved, config = None, self.config
        if config.adapter.name == "none":  # an adapter does not start where the model is
            moved = forgetting.moved(config.model, config.precision.dtype, self.parts.optimizer)
        return unrelated.about | losses | (moved or {"moved": None, "norm": None})

    def _unrelated_loss(self) -> float | None:
        unrelated = self.parts.unrelated
        if unrelated is None or not self.leads:
            return None
        return forgetting.loss(self.parts.model, unrelated.ids, self.parts.device)

    @property
    def at(self) -> int:
        """Steps taken so far."""
        return self.progress.step

    def measure(self) -> None:
        """Bring the totals of time and memory up to date."""
        self.progress.total_seconds = time.perf_counter() - self._begin
        self.progress.peak_gib = max(self.progress.peak_gib, self.memory.gib())

    def last_good(self) -> str:
        """Name the newest checkpoint, for messages."""
        saved = checkpoint.steps(self.checkpoints)
        return str(self.checkpoints / checkpoint.name(saved[-1])) if saved else "none yet"

    def _go_on(self, step: int) -> None:
        """Read the checkpoint of a step of this very run."""
        own = self.progress.run
        known = (None, own, run_id(self.config.as_dict()))  # of older checkpoints
        state, progress = checkpoint.load(self.checkpoints, step, self.parts.model)
        try:
            self.progress = Progress(**progress)
            if self.progress.run not in known:
                raise ValueError(f"of run {self.progress.run}, this configuration is run {own}")
            self.parts.optimizer.load_state_dict(state)
        except (ValueError, TypeError, KeyError) as error:
            raise checkpoint.CheckpointError(
                f"{self.checkpoints / checkpoint.name(step)}: the checkpoint of another "
                f"configuration or version ({error}); allowed is one that this run wrote: put it "
                f"back, or delete {self.checkpoints} to start the run again"
            ) from error
        self.progress.resumed.append(step)

    def _due(self, every: int | None) -> bool:
        return every is not None and self.at > 0 and self.at % every == 0

    def _advance(self) -> None:
        begin = time.perf_counter()
        parts, train = self.parts, self.config.train
        self.schedule.set(self.at)
        try:
            taken = parts.take(parts.optimizer, train.batch_size, self.config.seed, self.at)
        except FloatingPointError:  # of a step before, which the drain names
            self._drain()
            raise
        self.buffer.append(taken.detach())
        gradient = parts.optimizer.projected_grad
        if gradient is not None:
            lrs = [group["lr"] for group in parts.optimizer.param_groups]
            self.gradients.append((gradient.detach(), lrs))
        self.progress.step += 1
        self.progress.train_seconds += time.perf_counter() - begin

    def _drain(self) -> None:
        """Read the losses since the last drain; stop at the first that is not finite."""
        if not self.buffer:
            return
        begin = time.perf_counter()
        values = torch.stack(self.buffer).double().tolist()
        alive = bool(self.parts.optimizer.finite)
        self.progress.train_seconds += time.perf_counter() - begin
        first = self.at - len(values) + 1
        for step, value in enumerate(values, start=first):
            if not math.isfinite(value):
                raise self._non_finite(f"the loss of step {step} is {value}", updates=step - 1)
        if not alive:
            raise self._non_finite(
                "a perturbed loss, a gradient or an activation of a step from "
                f"{first} to {self.at} is not",
                updates=self.at - 1,
            )
        self.progress.pending += values
        self.buffer.clear()
        if self.gradients:
            self._trace(first)

    def _trace(self, first: int) -> None:
        """Read the projected gradients since the last drain, and log them; `first` is a step."""
        optimizer = self.parts.optimizer
        kept = torch.stack([gradient for gradient, _ in self.gradients])  # (steps, queries)
        values: list[list[float]] = kept.double().tolist()
        dtype = str(kept.dtype).removeprefix("torch.")
        scope: Scope = getattr(optimizer, "scope", Scope())
        head = Head(optimizer.stream_version, dtype, scope.settings.get("layer"))
        if self.trajectory is not None and not getattr(optimizer, "joined_late", False):
            rows = enumerate(zip(values, self.gradients, strict=True), start=first)
            steps = [Step(at, self.config.seed, g, lr) for at, (g, (_, lr)) in rows]
            self.trajectory.append(head, steps)
        self.progress.projected_grad = math.fsum(values[-1]) / len(values[-1])
        if self.config.train.objective == "metric":
            self.progress.zeros += [each.count(0.0) / len(each) for each in values]
        self.gradients.clear()

    def _non_finite(self, what: str, updates: int) -> NonFiniteLoss:
        """Say what is not finite, and after how many updates: before the first it is not the lr."""
        config = self.config
        cure = "a smaller method.lr is the usual cure"
        if updates == 0:
            cure = (
                "no weight had been changed before it, so the cause is the model in this precision "
                f"({config.model.name}) or method.eps; allowed is another one of these"
            )
        settings = ", ".join(f"{key}={value}" for key, value in config.method.items())
        return NonFiniteLoss(
            f"{what}: allowed are finite losses ({settings}, precision.dtype="
            f"{config.precision.dtype}); {cure}; last good checkpoint: {self.last_good()}"
        )

    def _row(self, dev: dict[str, Any] | None) -> None:
        self._drain()
        self.parts.check_replicas(self.at)
        progress = self.progress
        pending = progress.pending
        row = {
            "step": self.at,
            "forwards": self.parts.optimizer.forwards,
            "loss": math.fsum(pending) / len(pending) if pending else None,
            "projected_grad": progress.projected_grad,
            "dev": dev,
            "seconds": progress.train_seconds,
        }
        if self.config.train.objective == "metric":
            zeros = progress.zeros
            row["zero_grads"] = math.fsum(zeros) / len(zeros) if zeros else None
        progress.pending, progress.zeros = [], []
        if self.metrics is None:
            progress.rows.append(row)
        else:
            self.metrics.add(row)
        self.tracker.log(row)
        progress.last_dev = dev or progress.last_dev
        self.line.step(row, progress.last_dev, self.memory.gib())

    def _look_at_dev(self) -> None:
        self._drain()
        dev = self._evaluate(self.parts.dev, "dev")
        if not math.isfinite(dev["loss"]):
            raise self._non_finite(f"the dev loss at step {self.at} is {dev['loss']}", self.at)
        self.progress.evaluated = self.at
        if self.at == 0:
            self.progress.start_dev = dev
        elif self.progress.best is None or self._rank(dev) > self._rank(self.progress.best["dev"]):
            self.progress.best = {"step": self.at, "dev": dev}
        self._row(dev)

    def _rank(self, dev: dict[str, Any]) -> float:
        by_loss = self.config.train.select_by == "dev_loss"
        return -dev["loss"] if by_loss else dev[report.metric_name(dev)]

    def _evaluate(self, asked: Questions, name: str) -> dict[str, Any]:
        begin = time.perf_counter()

        def progress(done: int, total: int) -> None:
            self.stop.check()
            self.group.still_busy()
            self.line.note(f"{name} {done}/{total}")

        parts, train = self.parts, self.config.train

        def look() -> dict[str, Any]:
            found = evaluate(
                parts.model, parts.encoder, parts.task, asked, train.eval_batch_size,
                parts.device, progress, parts.asking,
            )  # fmt: skip
            return dict(found)

        found = self.group.first(look)
        self.line.pause(time.perf_counter() - begin)
        return found

    def _save(self) -> None:
        if self.at == 0:
            return
        begin = time.perf_counter()
        self._drain()
        if not self.leads:
            return
        best = self.progress.best["step"] if self.progress.best else self.at
        older = [pair for pair in self.progress.protected if pair[0] != self.at]
        self.progress.protected = [*older, [self.at, best]][-checkpoint.KEEP :]
        self.measure()
        optimizer = self.parts.optimizer
        state = getattr(optimizer, "live_state", optimizer.state_dict)()
        checkpoint.save(self.checkpoints, self.at, self.parts.model, state, asdict(self.progress))
        checkpoint.prune(self.checkpoints, {s for pair in self.progress.protected for s in pair})
        self.line.pause(time.perf_counter() - begin)
