"""A tuned model as a folder that other programs load: save_pretrained, whole or not at all."""

import shutil
from pathlib import Path
from typing import Any

from experiments.models.adapter_files import save_lora


def save_model(model: Any, tokenizer: Any, optimizer: Any, target: Path) -> None:
    """Write model and tokenizer with save_pretrained.

    Of an adapted model PEFT writes the adapter alone, for `PeftModel.from_pretrained`. So is what a
    method trains beside the weights, which it hands out by `adapter()`.
    """
    beside = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    if hasattr(optimizer, "adapter"):
        save_lora(model, optimizer.adapter(), beside)
    else:
        alone = {"save_embedding_layers": False} if hasattr(model, "peft_config") else {}
        model.save_pretrained(beside, **alone)
    tokenizer.save_pretrained(beside)
    shutil.rmtree(target, ignore_errors=True)
    beside.rename(target)
