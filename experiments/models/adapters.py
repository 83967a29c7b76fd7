"""Adapters through PEFT: LoRA and prefix tuning, for any architecture that PEFT knows.

    lora     y = W x + alpha / rank * B A x;  A, B are tuned, W is frozen, B = 0 at the start
    prefix   keys and values of `tokens` virtual tokens stand before every layer's own; they are
             tuned, the model is frozen

The adapted model is PEFT's own, so its folder is one that `PeftModel.from_pretrained` loads. It is
in eval() mode; only what the adapter adds requires a gradient, so it alone is tuned, counted and
saved. The start is a function of the run's seed, drawn on the CPU whatever the device is.

The only module of the package that imports peft, which takes seconds: import it where an adapter is
asked for.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftModel,
    PeftModelForCausalLM,
    PrefixTuningConfig,
    TaskType,
    initialize_kv_prefix_from_past_key_values,
)
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from torch import Tensor, nn

from experiments.config.errors import BadInput
from experiments.config.schema import AdapterConfig
from experiments.models.loading import context
from experiments.models.weight_files import Damaged, check_finite, check_weights


def attach(config: AdapterConfig, model: Any, seed: int, max_length: int) -> PeftModelForCausalLM:
    """Freeze a causal language model and put an adapter on it, changing the model in place.

    `max_length` is the longest sequence it will see. Raises BadInput for targets or an architecture
    that PEFT cannot use. torch's global generator is left as it was.
    """
    if config.name == "prefix":
        _refuse_lengths(model.config, config.tokens or 0)
        _refuse_windows(model.config, max_length + (config.tokens or 0))
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers for an old name
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False")  # and PEFT sets it
        torch.default_generator.manual_seed(seed)
        made = _lora(config, model) if config.name == "lora" else _prefix(config, model, seed)
    return made.eval()


def about(config: AdapterConfig, model: PeftModelForCausalLM) -> dict[str, Any]:
    """Return what a result says of an adapter: its kind, where it is, how large, in which dtype."""
    tuned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    layers = sorted(getattr(model.base_model, "targeted_module_names", []))
    return {
        "name": config.name,
        "layers": layers,
        "parameters": sum(parameter.numel() for parameter in tuned),
        "dtype": str(tuned[0].dtype).removeprefix("torch."),
    }


def merged(model: Any, folder: Path) -> Any:
    """Return a model with the LoRA adapter of a folder added to its weights, changing it.

    Raises BadInput, with nothing added, for a weight that another layer has too (a head tied to the
    embedding): the sum would change that layer as well, which the adapter beside it does not.
    """
    if not (folder / SAFETENSORS_WEIGHTS_NAME).is_file():  # PEFT would take a pickle instead
        raise BadInput(
            f"{folder}: it holds no {SAFETENSORS_WEIGHTS_NAME}, the one kind that is read"
        )
    try:
        check_weights(folder / SAFETENSORS_WEIGHTS_NAME)
    except Damaged as damage:
        raise BadInput(f"{folder}: {damage}") from damage
    adapted: Any = PeftModel.from_pretrained(model, str(folder))
    uses = [id(parameter) for _, parameter in adapted.named_parameters(remove_duplicate=False)]
    for name in adapted.base_model.targeted_module_names:
        if uses.count(id(adapted.base_model.model.get_submodule(name).base_layer.weight)) > 1:
            raise BadInput(
                f"{folder}: layer {name} shares its weight with another one, so nothing can be "
                "added to it alone; allowed are adapters of layers with weights of their own: use "
                "this one beside the model"
            )
    check_finite(str(folder), "model", adapted)
    return adapted.merge_and_unload()


def _lora(config: AdapterConfig, model: Any) -> PeftModelForCausalLM:
    assert config.rank is not None
    assert config.alpha is not None
    wanted = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=config.rank,
        lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType] (any number will do)
        target_modules=config.targets,
        base_model_name_or_path=getattr(model, "name_or_path", None) or None,
    )
    try:
        made = PeftModelForCausalLM(model, wanted, autocast_adapter_dtype=config.dtype == "fp32")
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:120].rstrip(".")
        raise BadInput(_targets_message(config, model, f"PEFT says: {reason}")) from error
    found: list[str] = made.base_model.targeted_module_names  # pyright: ignore
    for target in config.targets or []:
        if not any(name == target or name.endswith(f".{target}") for name in found):
            raise BadInput(_targets_message(config, model, f"{target} matches no layer"))
    return made


def _targets_message(config: AdapterConfig, model: nn.Module, reason: str) -> str:
    """Name the key, its value and layers there are; the model may be adapted in part by now."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    plain = [name.removesuffix(".base_layer") for name in linear if ".lora_" not in name]
    known = ", ".join(sorted({name.rpartition(".")[2] for name in plain})[:12])
    targets = "null" if config.targets is None else f"[{','.join(config.targets)}]"
    return (
        f"adapter.targets={targets}: {reason}; allowed are names of linear layers of "
        f"{type(model).__name__}: {known}"
    )


class Prefix(PeftModelForCausalLM):
    """PEFT's prefix tuning that also goes on from a cache.

    PEFT puts the prefix in front of every call and drops the cache it is given, which is right for
    whole sequences alone. A cache that an earlier call returned holds the prefix already: here what
    follows is run behind it, at the positions after the prefix, with the prefix in its mask.
    """

    def forward(self, *args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        """Run whole sequences, or with `past_key_values` what follows them."""
        if past_key_values is None:
            return super().forward(*args, **kwargs)
        length = self.active_peft_config.num_virtual_tokens  # pyright: ignore
        mask: Tensor | None = kwargs.get("attention_mask")
        if mask is not None:
            kwargs["attention_mask"] = torch.cat([mask.new_ones(len(mask), length), mask], dim=1)
        if kwargs.get("position_ids") is not None:
            kwargs["position_ids"] = kwargs["position_ids"] + length
        return self.base_model(*args, past_key_values=past_key_values, **kwargs)


def _prefix(config: AdapterConfig, model: Any, seed: int) -> Prefix:
    assert config.tokens is not None
    wanted = PrefixTuningConfig(
        task_type=TaskType.CAUSAL_LM,
        num_virtual_tokens=config.tokens,
        prefix_projection=config.init == "projected",
        base_model_name_or_path=getattr(model, "name_or_path", None) or None,
    )
    past = _past(model, config.tokens, seed) if config.init == "activations" else None
    try:
        made = Prefix(model, wanted)
        if past is not None:
            initialize_kv_prefix_from_past_key_values(made, past_key_values=past)
        if config.dtype == "model":
            made.prompt_encoder.to(model.dtype)
        with torch.no_grad():  # do its keys and values fit the model's own? PEFT guesses their size
            made.eval()(torch.zeros(1, 1, dtype=torch.long, device=model.device))
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise BadInput(
            f"adapter.name=prefix: PEFT cannot put a prefix on {type(model).__name__} ({reason}); "
            "allowed is adapter=lora"
        ) from error
    return made


@torch.no_grad()
def _past(model: Any, tokens: int, seed: int) -> Any:
    """Run random tokens through the model and return their keys and values."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(model.config.vocab_size, (1, tokens), generator=generator)
    return model(ids.to(model.device), use_cache=True).past_key_values


def _refuse_lengths(config: Any, tokens: int) -> None:
    """Refuse a prefix that leaves a sequence less than a prompt's and an option's token."""
    room = context(config)
    if room is not None and tokens > room - 2:
        raise BadInput(
            f"adapter.tokens={tokens}: the model has room for {room} tokens in all; allowed are "
            f"1 to {room - 2}"
        )


def _refuse_windows(config: Any, longest: int) -> None:
    """Refuse a model in which a token may not see all of the `longest` before it.

    Windows are measured in columns. With padding between them a row's tokens may not see a prefix
    that they see without: a score would depend on the batch.
    """
    kinds = {
        *(getattr(config, "layer_types", None) or []),
        *getattr(config, "attention_layers", []),
    }
    window = getattr(config, "sliding_window", None) or getattr(config, "window_size", None)
    if not kinds and window is not None:
        kinds = {"sliding_attention"}
    short = kinds - {"full_attention", "global"}
    if window is not None and window >= longest:
        short -= {"sliding_attention", "local"}
    if short:
        raise BadInput(
            f"adapter.name=prefix: {config.model_type} has layers of {', '.join(sorted(short))} "
            f"(window: {window}), and padding could push a prefix out of their sight; allowed are "
            "adapter=lora, or a train.max_length that leaves adapter.tokens room in the window"
        )
