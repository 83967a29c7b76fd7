"""The demo's runs: five methods on three pocket tasks, one after the other, in one process.

    make demo            # these runs, then a table and a plot of them
    make demo ARGS="train.forwards=2000"      # the same, longer (remove runs/demo first)

Settings: conf/experiment/demo.yaml. A finished run is found and not repeated, so a demo that
was stopped goes on where it was.
"""

import sys
import time

from experiments.checkpoint import CheckpointError
from experiments.config import BadInput, compose
from experiments.interrupt import Interrupted
from experiments.runner import NonFiniteLoss
from experiments.session import run

TASKS = ("sst2", "rte", "squad")
METHODS = ("zero_shot", "sgd", "mezo", "lozo", "agzo")


def main(overrides: list[str]) -> int:
    """Do the runs; extra words override the configuration, as in experiments.run."""
    begin = time.perf_counter()
    jobs = [(task, method) for task in TASKS for method in METHODS]
    try:
        for count, (task, method) in enumerate(jobs, start=1):
            elapsed = time.perf_counter() - begin
            print(f"[{count}/{len(jobs)}] {task} {method} ({elapsed:.0f} s so far)", flush=True)
            run(compose(["experiment=demo", f"task={task}", f"method={method}", *overrides]))
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    except (BadInput, NonFiniteLoss, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, BadInput) else 1
    print(f"{len(jobs)} runs in {time.perf_counter() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
