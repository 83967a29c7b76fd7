"""Weight-only quantisation of a loaded model by torchao: every linear layer but the head.

    model.quantize=int8    one scale a row; any dtype, CPU and CUDA
    model.quantize=int4    groups of 32 inputs, a scale and a zero point each, packed two a byte;
                           CUDA: bf16 alone; CPU: a prototype of torchao's, slow in fp32

Embeddings, the head and norms keep the dtype of `precision`. Quantised weights stay as they are:
what is tuned stands beside them (method=zo_act, or an adapter).
"""

# torchao is an optional extra: the types are checked without it too.
# pyright: reportMissingImports=false

import importlib
import logging
import sys
from typing import Any

import torch
from torch import nn

from agzo.tuned.linears import body_linears, sizes, weight_inputs
from experiments.config.errors import BadInput

GROUP = 32  # inputs that share a scale at int4
ROWS = 16  # outputs that the CPU packs together at int4


def quantise(model: nn.Module, kind: str) -> nn.Module:
    """Replace the weights of a model's linear layers by quantised ones, in place."""
    layers = body_linears(model)
    if not layers or any(weight_inputs(each) != 1 for each in layers.values()):
        raise BadInput(
            f"model.quantize={kind}: {type(model).__name__} has linear layers of its own kind, "
            "which torchao does not know; allowed is none"
        )
    device = next(model.parameters()).device
    dtype = next(model.parameters()).dtype
    if kind == "int4":
        for name, layer in layers.items():
            d_in, d_out = sizes(layer)
            if d_in % GROUP or d_out % ROWS:
                raise BadInput(
                    f"model.quantize=int4: layer {name} has {d_in} inputs and {d_out} outputs; "
                    f"allowed are multiples of {GROUP} and {ROWS}, or model.quantize=int8"
                )
        if device.type == "cuda" and dtype != torch.bfloat16:
            raise BadInput(
                f"model.quantize=int4: on CUDA it runs in bf16 alone, this model is {dtype}; "
                "allowed is precision=bf16, or model.quantize=int8"
            )
    wanted = set(layers)
    if not import_torchao():
        raise BadInput(
            f"model.quantize={kind}: it needs torchao (pip install -e '.[quant]'); allowed "
            "without it is none"
        )
    from torchao.quantization import quantize_

    quantize_(model, _scheme(kind, device), lambda module, name: name in wanted)
    return model


def import_torchao() -> bool:
    """Import torchao, if it is installed, without what it logs of kernels that do not fit here.

    transformers and peft import it too, the moment they load a model; they find it done.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        for name in ("torchao.quantization", "torchao.prototype.safetensors.safetensors_support"):
            importlib.import_module(name)
    except ImportError:
        return "torchao.quantization" in sys.modules
    finally:
        logging.disable(before)
    return True


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
    try:
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    except ImportError as error:
        raise BadInput(
            f"model.quantize=int4: this torchao packs int4 for no CPU ({error}); allowed are the "
            "version in requirements.lock, model.quantize=int8, or device=cuda"
        ) from error

    return PrototypeInt4WeightOnlyConfig(group_size=GROUP, set_inductor_config=False)
