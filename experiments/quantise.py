"""Weight-only quantisation of a loaded model by torchao: every linear layer but the head.

    model.quantize=int8    one scale a row; any dtype, CPU and CUDA
    model.quantize=int4    groups of 32 inputs, a scale and a zero point each, packed two a byte;
                           CUDA: bf16 alone; CPU: a prototype of torchao's, slow in fp32

Embeddings, the head and norms keep the dtype of `precision`. Quantised weights stay as they are:
what is tuned stands beside them (method=zo_act).
"""

from typing import Any

import torch
from torch import nn

from agzo.layers import body_linears, sizes
from experiments.config import BadInput

GROUP = 32  # inputs that share a scale at int4


def quantise(model: nn.Module, kind: str) -> nn.Module:
    """Replace the weights of a model's linear layers by quantised ones, in place."""
    layers = body_linears(model)
    device = next(model.parameters()).device
    dtype = next(model.parameters()).dtype
    if kind == "int4":
        for name, layer in layers.items():
            if sizes(layer)[0] % GROUP:
                raise BadInput(
                    f"model.quantize=int4: layer {name} has {sizes(layer)[0]} inputs; allowed are "
                    f"multiples of {GROUP}, or model.quantize=int8"
                )
        if device.type == "cuda" and dtype != torch.bfloat16:
            raise BadInput(
                f"model.quantize=int4: on CUDA it runs in bf16 alone, this model is {dtype}; "
                "allowed is precision=bf16, or model.quantize=int8"
            )
    wanted = set(layers)
    try:
        from torchao.quantization import quantize_

        scheme = _scheme(kind, device)
        quantize_(model, scheme, lambda module, name: name in wanted)
    except ImportError as error:
        raise BadInput(
            f"model.quantize={kind}: it needs torchao of the version in requirements.lock "
            f"({error}); allowed without it is none"
        ) from error
    return model


def _scheme(kind: str, device: torch.device) -> Any:
    """Return torchao's configuration of a kind of quantisation."""
    if kind == "int8":
        from torchao.quantization import Int8WeightOnlyConfig

        return Int8WeightOnlyConfig(set_inductor_config=False)
    if device.type == "cuda":
        from torchao.quantization import Int4WeightOnlyConfig
        from torchao.quantization.quantize_.workflows import Int4PackingFormat

        packing = Int4PackingFormat.TILE_PACKED_TO_4D
        return Int4WeightOnlyConfig(
            group_size=GROUP, int4_packing_format=packing, set_inductor_config=False
        )
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

    return PrototypeInt4WeightOnlyConfig(group_size=GROUP, set_inductor_config=False)
