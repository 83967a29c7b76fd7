"""Write the factors that a method trained as a LoRA adapter that PEFT loads.

<folder>/adapter_config.json          r, alpha = r, the layers
         adapter_model.safetensors    base_model.model.<layer>.lora_A.weight (r, d_in) and lora_B

model = PeftModel.from_pretrained(base, folder)      # W + B A in each layer
"""

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from agzo.tuned.linears import weight_inputs

Factors = dict[str, tuple[Tensor, Tensor]]


def save_lora(model: nn.Module, factors: Factors, folder: Path) -> None:
    """Write an adapter.

    Args:
        model: holds the layers; its name or path goes into the adapter's configuration.
        factors: (A, B) for each layer's name, A (r, d_in) and B (d_out, r), for W + B A.
        folder: is made where there is none.
    """
    ranks = {name: a.shape[0] for name, (a, _) in factors.items()}
    rank = max(ranks.values())
    others = {name: each for name, each in ranks.items() if each != rank}
    turned = [weight_inputs(model.get_submodule(name)) == 0 for name in factors]
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": getattr(getattr(model, "config", None), "_name_or_path", None),
        "r": rank,
        "lora_alpha": rank,  # PEFT multiplies B A by alpha / r
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": _targets(model, set(factors)),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(turned),
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    tensors: dict[str, Tensor] = {}
    for name, (a, b) in factors.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.detach().clone().contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.detach().clone().contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _targets(model: nn.Module, names: set[str]) -> list[str]:
    """Name layers for PEFT: by their last words where these mean the same layers, else in full."""
    words = {name.rpartition(".")[2] for name in names}
    found = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in words}
    return sorted(words if found == names else names)
