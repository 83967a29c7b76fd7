"""The command line: compose a configuration with Hydra, do the run, say clearly what went wrong.

    python -m experiments.run method=agzo task=sst2 model=pocket data=pocket
    python -m experiments.run -m method=agzo,mezo,lozo task=sst2,rte seed=0,1,2
    python -m experiments.run -m hydra/launcher=slurm ...    (a cluster; local: a process a run)

Exit codes: 0 done, 1 a run failed, 2 bad input, 128 + n stopped by signal n with a checkpoint saved
(130 SIGINT, 143 SIGTERM, 140 SIGUSR2). In a sweep every run is tried; the code is that of the first
that did not succeed.
"""

import os
import sys
import traceback

import hydra
import torch
from omegaconf import DictConfig

from agzo.distributed.processes import Drifted, ProcessLost
from experiments.config.composed import COMPOSITION_ERRORS, CONF, explain, resolve
from experiments.config.errors import BadInput
from experiments.config.paths import quoted
from experiments.launch.launchers import SweepFailed, register
from experiments.records.checkpoint import CheckpointError
from experiments.records.interrupt import Interrupted, told, told_first
from experiments.records.record import CannotWrite
from experiments.training import ranks
from experiments.training.runner import NonFiniteLoss
from experiments.training.session import run

FAILURES = (
    *(ValueError, OSError, NonFiniteLoss, CheckpointError, CannotWrite),
    *(ProcessLost, Drifted),
)

codes: list[int] = []  # of the runs of this process that did not succeed


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def one_run(composed: DictConfig) -> None:
    """Do the run of one composed configuration."""
    try:
        run(resolve(composed))
    except FAILURES as error:
        if composed.get("traceback"):
            traceback.print_exc()
        codes.append(2 if isinstance(error, ValueError | OSError) else 1)
        print(f"{ranks.mine()}error: {error}", file=sys.stderr)
    except torch.OutOfMemoryError as error:
        codes.append(1)
        sizes = f"train.batch_size={composed.train.batch_size}, train.eval_batch_size="
        sizes += f"{composed.train.eval_batch_size}, precision.dtype={composed.precision.dtype}"
        print(f"{ranks.mine()}error: out of memory ({sizes}): {error}", file=sys.stderr)
    if told() is not None:
        print(f"{ranks.mine()}stopped after that error; checkpoints are kept", file=sys.stderr)
        sys.exit(codes[0])


@told_first()
def main() -> int:
    """Run what the command line asks for and return the exit code."""
    codes.clear()
    sys.argv[1:] = map(quoted, sys.argv[1:])
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them
    register()
    try:
        one_run()
    except COMPOSITION_ERRORS as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        return 2
    except (BadInput, SweepFailed) as error:  # of a sweep's launcher
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, BadInput) else 1
    except OSError as error:  # of a sweep's own files: a run's are caught where it is done
        where = "" if isinstance(error, BrokenPipeError) else "out: "
        print(f"{ranks.mine()}error: {where}{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:  # Interrupted says where the run can go on
        said = str(stopped) or "stopped at once; checkpoints are kept"
        print(f"{ranks.mine()}{said}", file=sys.stderr)
        return stopped.exit_code if isinstance(stopped, Interrupted) else 130
    if not codes:
        ranks.leave()
    return codes[0] if codes else 0


if __name__ == "__main__":
    sys.exit(main())
