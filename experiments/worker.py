"""A process that does one run after another, for the suite: they share its start-up.

Reads a line of JSON per run, {"overrides": [...], "log": path}, and answers with a line of JSON,
{"status": ..., "error": ..., "seconds": ...}. All that a run prints goes to its log.

    finished      result.json is there
    diverged      a loss was not finite: a property of the settings, not a fault
    busy          another process holds the run's folder
    interrupted   a signal asked to stop; the run can be resumed
    failed        anything else; the log has the stack
"""

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from experiments.config import compose
from experiments.record import Busy
from experiments.runner import NonFiniteLoss
from experiments.session import run


def do(overrides: list[str]) -> dict[str, Any]:
    """Do one run and say how it ended."""
    begin = time.perf_counter()
    status, error = "finished", None
    try:
        run(compose(overrides))
    except KeyboardInterrupt as stopped:  # Interrupted, or a second Ctrl-C
        status, error = "interrupted", str(stopped) or type(stopped).__name__
    except Exception as failure:
        kinds = {NonFiniteLoss: "diverged", Busy: "busy"}
        status = kinds.get(type(failure), "failed")
        error = f"{type(failure).__name__}: {failure}"
        if status == "failed":
            traceback.print_exc()
        else:
            print(error, file=sys.stderr)
    return {"status": status, "error": error, "seconds": time.perf_counter() - begin}


def main() -> int:
    """Serve until the input ends or a run was interrupted."""
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        order = json.loads(line)
        with Path(order["log"]).open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        print("$ python -m experiments.run", *order["overrides"], flush=True)
        answer = do(order["overrides"])
        sys.stdout.flush()
        sys.stderr.flush()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if answer["status"] == "interrupted":
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
