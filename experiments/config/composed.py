"""A run's configuration as Hydra composes it: read, checked key by key, written, compared."""

import math
import re
from collections.abc import Iterator
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from experiments.config.errors import BadInput
from experiments.config.own_task import fill_own_task
from experiments.config.paths import home, quoted, user_path
from experiments.config.schema import MAX_INT, AdapterConfig, RunConfig

CONF = Path(__file__).resolve().parents[2] / "conf"

# Keys that change neither the numbers of a run nor where it is: these alone may differ when a run
# is resumed. The device and the number of threads are not among them: both change the last bits.
# `tuned` says where values of `method` are from, which themselves may not differ.
FREE_KEYS = (
    *("out", "traceback", "tracking.", "train.checkpoint_every", "train.keep_checkpoint"),
    *("tuned", "model.offload", "peer_timeout"),
)

# Where files of one's own lie, which may differ too: what they hold is compared by hash instead
# (experiments/records/provenance.py; a run's origin.json).
PLACES = ("data.root", "model.path", "train.forgetting")

ConfigStore.instance().store(name="schema", node=RunConfig)

COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException)  # of a wrong command line


def compose(overrides: list[str]) -> RunConfig:
    """Compose a configuration from conf/ as the command line does, outside Hydra's app."""
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = hydra_compose("config", list(map(quoted, overrides)))
    except COMPOSITION_ERRORS as error:
        raise BadInput(explain(error)) from error
    return resolve(composed)


def explain(error: Exception) -> str:
    """Say in one line what is wrong with the command line: key, value, what is allowed."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={option}: unknown; allowed are {', '.join(error.options)}"
    if isinstance(error, OverrideParseException):
        word, reason = str(error.override), str(error).splitlines()[0]
        if "=" not in word:
            return f"{word}: cannot be read ({reason}); needed is group=option or key=value"
        return (
            f"{word}: cannot be read ({reason}); texts with braces, parentheses, commas or "
            "quotes stand in quotes, and the whole word in others for the shell: "
            '\'task.options=["{a}","{b}"]\''
        )
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException) and cause.parent_node is not None:
        reason = str(cause).splitlines()[0]
        if "not in" in reason:
            allowed = ", ".join(str(key) for key in cause.parent_node if key != "hydra")
            return f"{cause.full_key}: no such key; allowed beside it are {allowed}"
        return f"{cause.full_key}: {reason}"
    return " ".join(str(error).split())


def resolve(composed: DictConfig) -> RunConfig:
    """Turn Hydra's composition into a checked `RunConfig`."""
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        raise BadInput(f"{missing[0]}=<missing>: it has no default; give it as {missing[0]}=...")
    try:
        config = OmegaConf.to_object(composed)
    except MissingMandatoryValue as error:
        raise BadInput(f"{error.full_key or error}: it has no default; give it a value") from error
    assert isinstance(config, RunConfig)
    check(config)
    return config


def check(config: RunConfig) -> None:
    """Check bounds and what belongs together; fill in a local model's name, and ~ in `out`."""
    for name, value, bounds in _entries(config):
        _check_bounds(name, value, bounds)
    _check_adapter(config.adapter)
    fill_own_task(config.task, config.data.source)
    _check_homes(config)
    train, model = config.train, config.model
    if (train.steps is None) == (train.forwards is None):
        raise BadInput(
            f"train.steps={train.steps} and train.forwards={train.forwards}: give one and set the "
            "other to null"
        )
    if (train.eval_every is None) == (train.evals is None):
        raise BadInput(
            f"train.eval_every={train.eval_every} and train.evals={train.evals}: give one and set "
            "the other to null"
        )
    if config.data.source == "local" and not config.data.root:
        raise BadInput(
            f"data.root={config.data.root}: data=local needs the folder of <task>/train.jsonl "
            "(of task=custom a file or a folder)"
        )
    if model.source in ("local", "hub") and not model.path:
        raise BadInput(f"model.path={model.path}: model.source={model.source} needs a path")
    if model.name is None:
        model.name = user_path(model.path or model.source).resolve().name
    if config.tuned and not (CONF / "method" / "tuned" / f"{config.tuned}.yaml").is_file():
        raise BadInput(
            f"tuned={config.tuned}: files of conf/method/tuned write it; allowed is null"
        )
    if "name" not in config.method:
        raise BadInput("method.name=<missing>: a file in conf/method gives it")
    folders = {"suite": config.suite, "variant": config.variant, "model.name": model.name}
    if config.task.prompt is not None:
        folders["task.name"] = config.task.name
    for name, value in folders.items():
        if value is not None and not re.fullmatch(r"[A-Za-z0-9][\w.+=,-]*", value):
            made = f" (if not given, the end of model.path={model.path})"
            raise BadInput(
                f"{name}={value!r}{made if name == 'model.name' else ''}: it names a folder; "
                "allowed are letters, digits and _.+=,-"
            )


def to_yaml(config: RunConfig) -> str:
    """Write the resolved configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(config.as_dict()))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a configuration that `to_yaml` wrote."""
    loaded = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(loaded, dict)
    return {str(name): value for name, value in loaded.items()}


def from_dict(tree: dict[str, Any]) -> RunConfig:
    """Turn what `read_yaml` read back into a checked `RunConfig`; raises BadInput."""
    try:
        whole = OmegaConf.merge(OmegaConf.structured(RunConfig), {"plan": None, **tree})
    except OmegaConfBaseException as error:
        raise BadInput(explain(error)) from error
    assert isinstance(whole, DictConfig)
    return resolve(whole)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dicts to {"train.steps": 1000, ...}."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def changes(old: dict[str, Any], new: dict[str, Any], may_move: bool = True) -> list[str]:
    """List what differs between two configurations, as "key: old -> new".

    Left out are `FREE_KEYS`, and with `may_move` what is in `PLACES` and has only moved: for who
    compares the hashes as well.
    """
    before, after = flatten(old), flatten(new)
    names = sorted(name for name in before.keys() | after.keys() if not name.startswith(FREE_KEYS))
    return [
        f"{name}: {before.get(name, '<absent>')} -> {after.get(name, '<absent>')}"
        for name in names
        if before.get(name, NO_DEFAULT) != after.get(name, NO_DEFAULT)
        and not (may_move and _moved(name, before, after))
    ]


def _moved(name: str, *trees: dict[str, Any]) -> bool:
    """Whether a key says where the same kind of thing lies in both."""
    return all(is_place(name, tree) and tree.get(name) for tree in trees)


def is_place(name: str, flat: dict[str, Any]) -> bool:
    """Tell whether a key of a flat configuration says where something lies (a hub's path: what)."""
    hub = name == "model.path" and flat.get("model.source") == "hub"
    return name in PLACES and not hub


def _entries(node: Any, prefix: str = "") -> Iterator[tuple[str, Any, dict[str, Any]]]:
    for entry in fields(node):
        value = getattr(node, entry.name)
        if is_dataclass(value):
            yield from _entries(value, f"{prefix}{entry.name}.")
        else:
            yield prefix + entry.name, value, dict(entry.metadata)


def _check_bounds(name: str, value: Any, bounds: dict[str, Any]) -> None:
    if value is None:
        return
    _refuse_half_characters(name, value)
    refuse_beyond_int64(name, value)
    choices, at_least, above = (bounds.get(kind) for kind in ("choices", "at_least", "above"))
    at_most = bounds.get("at_most", math.inf)
    if choices is not None and value not in choices:
        raise BadInput(f"{name}={value}: allowed are {', '.join(choices)}")
    if at_least is not None and (value < at_least or math.isnan(value)):
        raise BadInput(f"{name}={value}: allowed is {at_least} or more")
    if at_least is not None and value > at_most:
        raise BadInput(f"{name}={value}: allowed are {at_least} to {at_most}")
    if above is not None and not above < value < math.inf:
        raise BadInput(f"{name}={value}: allowed is a finite number above {above}")


def _refuse_half_characters(name: str, value: Any) -> None:
    """Refuse text that no file of the run could hold: bytes of a path that are no UTF-8."""
    if isinstance(value, str) and value != value.encode(errors="ignore").decode():
        raise BadInput(f"{name}={value!r}: allowed is text that UTF-8 can write")


def refuse_beyond_int64(name: str, value: Any) -> None:
    """Refuse whole numbers that torch cannot take as a seed, a size or a count."""
    if isinstance(value, int) and abs(value) > MAX_INT:
        raise BadInput(f"{name}={value}: allowed are whole numbers up to {MAX_INT}")


def _check_homes(config: RunConfig) -> None:
    """Replace ~ in `out`; of the other paths see that it can be replaced where they are used.

    These belong to what a run was begun with, so they stay as they were written.
    """
    begun = {
        "data.root": config.data.root,
        "model.path": config.model.path,
        "train.forgetting": config.train.forgetting,
    }
    for name, value in begun.items():
        _home(name, value or "")
    config.out = _home("out", config.out)


def _home(name: str, value: str) -> str:
    try:
        return home(value)
    except ValueError as error:
        raise BadInput(f"{name}={error}") from error


def _check_adapter(adapter: AdapterConfig) -> None:
    """Check that every key the adapter has is given, and none that it has not."""
    kinds = {entry.name: entry.metadata for entry in fields(adapter) if "of" in entry.metadata}
    own = [name for name, kind in kinds.items() if adapter.name in kind["of"]]
    for name, kind in kinds.items():
        value = getattr(adapter, name)
        if name not in own and value is not None:
            raise BadInput(
                f"adapter.{name}={value}: adapter={adapter.name} has no such key; allowed are "
                f"{', '.join(['name', *own])}"
            )
        if name in own and value is None and not kind.get("optional"):
            raise BadInput(f"adapter.{name}=null: adapter={adapter.name} needs a value")
    if adapter.targets is not None and not adapter.targets:
        raise BadInput("adapter.targets=[]: allowed are names of linear layers, or null")
