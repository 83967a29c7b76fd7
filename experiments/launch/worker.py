"""A process that does one run after another, for the suite: they share its start-up.

Reads a line of JSON per run, {"overrides": [...], "log": path}, and answers with a line of JSON,
{"status": ..., "error": ..., "seconds": ...}. All that a run prints goes to its log.

    finished      result.json is there
    diverged      a loss was not finite: a property of the settings, not a fault
    busy          another process holds the run's folder
    interrupted   a signal asked to stop; the run can be resumed
    failed        anything else; the log has the stack
"""

import gc
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any


def do(overrides: list[str]) -> dict[str, Any]:
    """Do one run and say how it ended."""
    begin = time.perf_counter()
    status, error, number = "finished", None, None
    try:
        _run(overrides)
    except KeyboardInterrupt as stopped:  # Interrupted, or a second signal
        status, error = "interrupted", str(stopped) or type(stopped).__name__
        number = getattr(stopped, "number", None)
    except Exception as failure:
        kinds = {"NonFiniteLoss": "diverged", "Busy": "busy"}
        status = kinds.get(type(failure).__name__, "failed")
        error = f"{type(failure).__name__}: {failure}"
        if status == "failed":
            traceback.print_exc()
        else:
            print(error, file=sys.stderr)
    seconds = time.perf_counter() - begin
    return {"status": status, "error": error, "signal": number, "seconds": seconds}


def _run(overrides: list[str]) -> None:
    import torch

    from experiments.config.composed import compose
    from experiments.training.session import run

    try:
        run(compose(overrides))
    finally:
        gc.collect()  # the model, before the next one comes
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def serve(order: dict[str, Any]) -> dict[str, Any]:
    """Do the run of one order, its output in its log."""
    try:
        with Path(order["log"]).open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
    except OSError as error:
        return {"status": "failed", "error": f"its log cannot be written: {error}", "seconds": 0.0}
    print("$ python -m experiments.run", *order["overrides"], flush=True)
    answer = do(order["overrides"])
    sys.stdout.flush()
    sys.stderr.flush()
    return answer


def main() -> int:
    """Serve until the input ends or a run was interrupted."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # before the imports of a run: what one prints must not be read as an answer
    for line in sys.stdin:
        answer = serve(json.loads(line))
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if answer["status"] == "interrupted":
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
