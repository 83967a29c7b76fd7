"""The demo's runs, one after the other, in one process.

    make demo            # five methods on three pocket tasks, then a table and a plot of them
    make demo ARGS="train.forwards=2000"      # the same, longer (remove runs/demo first)
    make demo MODEL=smollm2-135m-wheel ARGS="data=local data.root=..."  # a real model on SST-2

Settings: conf/experiment/demo.yaml and demo_real.yaml. A finished run is found and not repeated, so
a demo that was stopped goes on where it was.
"""

import sys
import time

from experiments.config.composed import compose
from experiments.records.checkpoint import CheckpointError
from experiments.records.interrupt import Interrupted
from experiments.training.runner import NonFiniteLoss
from experiments.training.session import run

POCKET = "pocket"
TASKS = {POCKET: ("sst2", "rte", "squad")}  # of any other model: SST-2
METHODS = {POCKET: ("zero_shot", "sgd", "mezo", "lozo", "agzo")}
REAL = ("zero_shot", "mezo", "agzo")


def main(model: str, overrides: list[str]) -> int:
    """Do the runs; extra words override the configuration, as in experiments.run."""
    begin = time.perf_counter()
    preset = "demo" if model == POCKET else "demo_real"
    tasks, methods = TASKS.get(model, ("sst2",)), METHODS.get(model, REAL)
    jobs = [(task, method) for task in tasks for method in methods]
    try:
        for count, (task, method) in enumerate(jobs, start=1):
            elapsed = time.perf_counter() - begin
            print(f"[{count}/{len(jobs)}] {task} {method} ({elapsed:.0f} s so far)", flush=True)
            words = [f"experiment={preset}", f"model={model}", f"task={task}", f"method={method}"]
            run(compose([*words, *overrides]))
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    except (ValueError, OSError, NonFiniteLoss, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError | OSError) else 1
    print(f"{len(jobs)} runs in {time.perf_counter() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
