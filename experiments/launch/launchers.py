"""Where the runs of a Hydra sweep are done: `hydra/launcher=local` or `hydra/launcher=slurm`.

Both do what is missing: a run that is finished, diverged, running or queued is left alone. Hydra
takes launchers from installed packages named hydra_plugins alone; `register` makes these two known
under such a name without one.
"""

import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from experiments.config.composed import COMPOSITION_ERRORS, CONF, explain, resolve
from experiments.config.errors import BadInput
from experiments.launch import slurm
from experiments.launch.job import LOG, Run
from experiments.launch.pool import End, Pool, Worker
from experiments.launch.sweep import missing, on_slurm
from experiments.records.interrupt import raising_at_signals
from experiments.training import ranks
from experiments.training.session import verify


class SweepFailed(RuntimeError):
    """Runs of a sweep failed; each was named when it did."""


class Sweep(Launcher):
    """What the two have in common: which runs are to be done."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what composes the configuration of a run."""
        self.config, self.loader = config, hydra_context.config_loader
        self.check()

    def check(self) -> None:
        """Check what conf/hydra/launcher gave, once errors are reported as they are."""

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Do, or submit, the runs that are missing."""
        if ranks.several():
            raise BadInput(
                f"hydra/launcher: process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} "
                "(torchrun) would do this sweep beside the others; allowed is -m without a "
                "launcher, one run after another"
            )
        runs = [self.run(list(overrides)) for overrides in job_overrides]
        folders = {run.folder for run in runs}
        if len(folders) < len(runs):
            raise BadInput(
                f"{len(runs)} runs of this sweep share {len(folders)} folders: a sweep over a "
                "setting needs variant=..., or runs by the basic launcher"
            )
        self.do(runs)
        return []

    def run(self, overrides: list[str]) -> Run:
        """Compose and check one run."""
        composed = self.loader.load_sweep_config(self.config, overrides)
        with open_dict(composed):
            del composed["hydra"]
        config = resolve(composed)
        verify(config)
        return Run(tuple(overrides), config)

    def do(self, runs: list[Run]) -> None:
        """Do, or submit, what is missing of these runs."""
        raise NotImplementedError


class SlurmLauncher(Sweep):
    """Submits a job array and returns."""

    def __init__(self, **given: Any) -> None:
        self.given = OmegaConf.create(given)

    def check(self) -> None:
        """Read the settings."""
        self.settings = slurm.Settings.read(OmegaConf.to_container(self.given, resolve=True))

    def do(self, runs: list[Run]) -> None:
        """Submit what is missing of these runs."""
        on_slurm(runs, self.settings)


class LocalLauncher(Sweep):
    """A process for every run, `n_jobs` at once on each GPU."""

    def __init__(self, n_jobs: int = 1, gpus: Sequence[int | str] | None = None) -> None:
        self.n_jobs, self.gpus = n_jobs, gpus

    def check(self) -> None:
        """Find the places for runs."""
        if not slurm.is_count(self.n_jobs, 1):
            raise BadInput(f"hydra.launcher.n_jobs={self.n_jobs}: allowed is 1 or more")
        if self.gpus is not None and (
            isinstance(self.gpus, str) or not isinstance(self.gpus, Sequence)
        ):
            raise BadInput(f"hydra.launcher.gpus={self.gpus}: allowed is a list, [0, 1], or null")
        self.places = places(self.gpus) * self.n_jobs

    def do(self, runs: list[Run]) -> None:
        """Do what is missing of these runs here."""
        runs = missing(runs, None)
        left, ends = list(runs), []

        def ended(end: End) -> None:
            ends.append(end)
            why = f" ({end.error}; log: {end.job.folder / LOG})" if end.error else ""
            print(f"[{len(ends)}/{len(runs)}] {end.job.name}: {end.status}{why}", flush=True)

        workers = [Worker(gpu, fresh=True) for gpu in self.places[: max(1, len(runs))]]
        with raising_at_signals("stopped, what ran is saved; the same command goes on"):
            Pool(workers, lambda: left.pop(0) if left else None, ended).run()
        bad = sum(end.status != "finished" for end in ends)
        if bad:
            raise SweepFailed(f"{bad} of {len(runs)} runs did not finish, see above")


def of_slurm(overrides: list[str]) -> slurm.Settings:
    """Return what conf/hydra/launcher/slurm.yaml says, with overrides of hydra.launcher.*."""
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            words = ["hydra/launcher=slurm", *overrides]
            composed = compose("config", words, return_hydra_config=True)
    except COMPOSITION_ERRORS as error:
        raise BadInput(explain(error)) from error
    given = dict(composed.hydra.launcher)
    del given["_target_"]
    return slurm.Settings.read(OmegaConf.to_container(OmegaConf.create(given), resolve=True))


def places(gpus: Sequence[int | str] | None) -> list[str | None]:
    """Return the GPUs to use, [None] where there is none."""
    if gpus is not None:
        return [str(gpu) for gpu in gpus] or [None]
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is not None:
        return [*filter(None, shown.split(","))] or [None]
    return [str(index) for index in range(torch.cuda.device_count())] or [None]


def register() -> None:
    """Make the launchers known to Hydra as hydra_plugins.agzo.<class>."""
    known = Plugins.instance()  # first, as it looks through the packages installed
    package = sys.modules.setdefault("hydra_plugins", ModuleType("hydra_plugins"))
    module = ModuleType("hydra_plugins.agzo")
    sys.modules[module.__name__] = module
    setattr(package, "agzo", module)  # noqa: B010 (a module has no such attribute for a checker)
    for launcher in (SlurmLauncher, LocalLauncher):
        launcher.__module__ = module.__name__
        setattr(module, launcher.__name__, launcher)
        known.register(launcher)
