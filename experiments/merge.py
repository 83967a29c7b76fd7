"""Merge the adapter that a run saved into the weights of its model, as a folder of its own.

    python -m experiments.run method=zo_act train.save_model=true ...      (or adapter=lora)
    python -m experiments.merge runs/.../seed0 merged_model

The folder is an ordinary model then (model=local model.path=merged_model), in the run's dtype.
"""

import json
import sys
from pathlib import Path

import torch

from experiments.config.composed import read_yaml
from experiments.config.errors import BadInput
from experiments.config.paths import user_path
from experiments.config.schema import ModelConfig
from experiments.models import loading
from experiments.records.provenance import refuse_other_model

ADAPTER = "adapter_config.json"
TRUST = "--trust-remote-code"


def merge(run: Path, out: Path, trust_remote_code: bool = False) -> None:
    """Load a run's model, add its adapter, and write both as one model with the tokenizer."""
    adapter = run / "model"
    if not (adapter / ADAPTER).is_file():
        raise BadInput(
            f"{adapter}: it holds no {ADAPTER}; allowed is the folder of a run with "
            "train.save_model=true and a method that trains an adapter"
        )
    if out.exists():
        raise BadInput(f"{out}: it is there already; allowed is the name of a new folder")
    kind = json.loads((adapter / ADAPTER).read_text())["peft_type"]
    if kind != "LORA":
        raise BadInput(
            f"{adapter}: its adapter is of kind {kind}; allowed is LORA, a sum of weights"
        )
    config = read_yaml(run / "config.yaml")
    about = ModelConfig(**config["model"])
    loading.refuse_remote_code(about, run / "config.yaml", trust_remote_code)
    if about.quantize != "none":
        raise BadInput(
            f"model.quantize={about.quantize}: nothing can be added to quantised weights; allowed "
            "is none: use the adapter beside the model it was trained with"
        )
    model, tokenizer = loading.load(about, config["precision"]["dtype"], torch.device("cpu"))
    origin = json.loads((run / "origin.json").read_text())
    refuse_other_model(origin["model"], loading.origin(about, model))
    from experiments.models import adapters  # peft takes seconds to import

    adapters.merged(model, adapter).save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> int:
    """Merge what the command line names."""
    given = [word for word in sys.argv[1:] if word != TRUST]
    if len(given) != 2:
        usage = f"python -m experiments.merge [{TRUST}] <folder of a run> <new folder>"
        print(f"usage: {usage}", file=sys.stderr)
        return 2
    try:
        merge(user_path(given[0]), user_path(given[1]), TRUST in sys.argv)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
