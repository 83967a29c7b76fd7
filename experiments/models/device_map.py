"""A model spread over several GPUs of one machine: model.device_map=auto.

accelerate puts each layer on a GPU and moves hidden states between them. A direction is made on the
device of its parameter, and is the same on every device; what a step needs of each layer is small
and moved. It is for models that no GPU holds; where one does, processes that share the batch are
faster (ranks.py), and for a GPU alone there is model.offload=layers.
"""

from typing import Any

import torch
from torch import nn

from experiments.config.errors import BadInput
from experiments.config.schema import RunConfig


def check_device_map(config: RunConfig, processes: int) -> None:
    """Refuse, before anything is loaded, what a spread model cannot be used for."""
    model = config.model
    if model.device_map == "none":
        return
    needs = {
        f"model.offload={model.offload}": model.offload == "none",
        f"model.quantize={model.quantize}": model.quantize == "none",
        f"method.execution={config.method.get('execution')}": config.method.get("execution")
        != "batched",
        f"train.packing={config.train.packing}": config.train.packing != "always",
    }
    for setting, fits in needs.items():
        if not fits:
            raise BadInput(f"{setting}: with model.device_map=auto it is not allowed")
    if processes > 1:
        raise BadInput(
            f"model.device_map=auto: allowed with {processes} processes is none, a replica for each"
        )


def settle(model: nn.Module, device: torch.device, device_map: str) -> nn.Module:
    """Put a loaded model on its device; one that is spread stays where accelerate has put it."""
    if device_map == "none":
        return model.to(device)
    away = {str(p.device) for p in model.parameters() if p.device.type != device.type}
    if away:
        raise BadInput(
            f"model.device_map=auto: part of the model is on {', '.join(sorted(away))}, where it "
            "cannot be tuned; allowed are GPUs that hold all of it, or model.offload=layers"
        )
    hook: Any = getattr(model, "_hf_hook", None)
    if hasattr(hook, "skip_keys"):  # an index of hidden states, to be left on the CPU
        hook.skip_keys = [*_listed(hook.skip_keys), "logits_to_keep"]
    return model


def _listed(keys: Any) -> list[str]:
    return [keys] if isinstance(keys, str) else list(keys or ())
