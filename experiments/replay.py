"""Rebuild the weights of a zeroth-order run from its start weights and its trajectory log.

    python -m experiments.replay runs/.../seed0 --out weights            (after the last step)
    python -m experiments.replay runs/.../seed0 --out weights --step 400

A step of most methods is a function of (seed, step, projected_grad, lr) and the steps before it
alone, so no data, no forward and no checkpoint is needed. In float32 the weights are those of the
run, bit for bit, on the kind of device and with the number of threads it had. AGZO and ZO-Act look
along bases of activations, HiZOO by a curvature: replaying them is refused with that reason.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.config.composed import from_dict, read_yaml
from experiments.config.errors import BadInput
from experiments.config.paths import user_path
from experiments.config.schema import RunConfig
from experiments.methods import registry
from experiments.models import loading
from experiments.models.reach import leave_out
from experiments.models.saving import save_model
from experiments.records.provenance import refuse_other_model
from experiments.records.trajectory import TRAJECTORY, Head, Step, read

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def replay(
    run: Path, step: int | None = None, trust_remote_code: bool = False
) -> tuple[nn.Module, Any, Any]:
    """Return the model of a run after `step` (None: the last one logged), tokenizer and optimizer.

    Raises BadInput where the run cannot be replayed, with the reason.
    """
    config, origin = _of(run)
    loading.refuse_remote_code(config.model, run / "config.yaml", trust_remote_code)
    values = registry.settings(config.method, config.precision.rounding)
    _refuse_data(config, values)
    head, steps = _steps(run, step)
    device = loading.choose_device(origin["device"])
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    model, tokenizer = loading.load(config.model, config.precision.dtype, device)
    refuse_other_model(origin["model"], loading.origin(config.model, model))
    if config.adapter.name != "none":
        from experiments.models import adapters  # peft takes seconds to import

        model = adapters.attach(config.adapter, model, config.seed, config.train.max_length)
    leave_out(model, origin.get("trial", {}).get("left_out", []))
    if head.layer is not None:
        values["layer"] = head.layer  # a scan of the data chose it
    optimizer: Any = registry.build(config.method["name"], model, values, config.seed)
    if optimizer.stream_version != head.stream_version:
        raise BadInput(
            f"stream_version={head.stream_version}: the run's noise; this program makes that of "
            f"version {optimizer.stream_version}, which is another run's"
        )
    for each in steps:
        for group, lr in zip(optimizer.param_groups, each.lr, strict=True):
            group["lr"] = lr
        dtype = DTYPES[head.dtype]
        optimizer.replay(torch.tensor(each.projected_grad, dtype=dtype, device=device))
    return model, tokenizer, optimizer


def _of(run: Path) -> tuple[RunConfig, dict[str, Any]]:
    """Read the configuration and the origin of a run."""
    try:
        origin = json.loads((run / "origin.json").read_text())
        return from_dict(read_yaml(run / "config.yaml")), origin
    except BadInput:
        raise
    except Exception as error:  # the file system, JSON, YAML and OmegaConf raise many kinds
        raise BadInput(
            f"{run}: no folder of a run (config.yaml, origin.json: "
            f"{' '.join(str(error).split())[:120]})"
        ) from error


def _refuse_data(config: RunConfig, values: dict[str, Any]) -> None:
    name = config.method["name"]
    rehearsed = registry.rehearse(name, values)
    if not hasattr(rehearsed, "replay"):
        raise BadInput(f"method={name}: it has no random directions; allowed are MeZO, LOZO, "
                       "FZOO, ConMeZO, SubZero+, ZO-Muon, GRZO and dominant-layer ZO")  # fmt: skip
    why = getattr(rehearsed, "needs_data", None)
    if why is not None:
        raise BadInput(
            f"method={name}: cannot be replayed from its log, because {why}; allowed are methods "
            "whose steps need no data (mezo, lozo, fzoo, conmezo, subzero, zo_muon, grzo, "
            "dominant_layer)"
        )


def _steps(run: Path, last: int | None) -> tuple[Head, list[Step]]:
    """Read the steps of a run from the first to `last`."""
    path = run / TRAJECTORY
    head, steps, _ = read(path) if path.is_file() else (None, [], [])
    if head is None or not steps:
        raise BadInput(f"{path}: missing or empty, so there is nothing to replay")
    for number, each in enumerate(steps, start=1):
        if each.step != number:
            raise BadInput(
                f"{path}: step {number} is missing (the log goes on with step {each.step}); "
                "allowed is a log of every step from the first on"
            )
    if last is not None and not 0 <= last <= len(steps):
        raise BadInput(f"--step {last}: allowed are 0 to {len(steps)}, the steps of {path}")
    return head, steps[:last]


def main() -> int:
    """Replay what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m experiments.replay")
    parser.add_argument("run", type=user_path, help="the folder of a run")
    parser.add_argument("--out", type=user_path, required=True, help="a new folder for the model")
    parser.add_argument("--step", type=int, help="stop after this step; default: the last one")
    trust = "run the code that comes with the run's model, if its configuration says so"
    parser.add_argument("--trust-remote-code", action="store_true", help=trust)
    given = parser.parse_args()
    try:
        if given.out.exists():
            raise BadInput(f"--out {given.out}: it is there already; allowed is a new folder")
        model, tokenizer, optimizer = replay(given.run, given.step, given.trust_remote_code)
        given.out.parent.mkdir(parents=True, exist_ok=True)
        save_model(model, tokenizer, optimizer, given.out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{given.out}: the weights of {given.run}, rebuilt from {TRAJECTORY}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
