"""Where a run's weights are: all on its device, or the decoder layers on the host and streamed.

model.offload=none      all on the device
model.offload=layers    layers come to the device one at a time, see `agzo.execution.stream`; the
numbers
                        of the run are the same, so it may be set or unset when one is resumed
"""

import torch
from torch import nn

from agzo.execution.stream import StreamedLayers
from agzo.execution.weights import Resident
from experiments.config.errors import BadInput
from experiments.config.schema import ModelConfig, RunConfig
from experiments.methods import registry


def check_offload(config: RunConfig) -> None:
    """Refuse, before anything is loaded, what cannot be done with streamed layers."""
    if config.model.offload == "none":
        return
    name, adapter = config.method["name"], config.adapter
    method = registry.method_class(name)
    if config.model.quantize != "none":
        raise BadInput(
            f"model.quantize={config.model.quantize}: with model.offload=layers allowed is none"
        )
    if adapter.init == "activations":
        raise BadInput(
            "adapter.init=activations: it runs the model before its layers can be streamed; with "
            "model.offload=layers allowed are random, projected"
        )
    if not method.about.trains:
        return
    if not registry.takes(name, "stream"):
        able = [each for each in registry.METHODS if registry.takes(each, "stream")]
        raise BadInput(
            f"model.offload=layers: method={name} needs all weights at once; allowed are "
            f"{', '.join(able)}, or model.offload=none"
        )
    values = registry.settings(config.method, config.precision.rounding)
    registry.rehearse(name, values | {"stream": Resident()})


def host(model: ModelConfig, device: torch.device) -> torch.device:
    """Return the device on which the model is loaded."""
    return device if model.offload == "none" else torch.device("cpu")


def offload(asked: ModelConfig, model: nn.Module, device: torch.device) -> StreamedLayers | None:
    """Stream the layers of a model, its adapter included, if the run asks for it."""
    if asked.offload == "none":
        return None
    try:
        return StreamedLayers(model, device)
    except ValueError as error:
        raise BadInput(f"model.offload=layers: {error}; or model.offload=none") from error
