"""Which trained parts of a model text never comes to, so that they are not tuned.

A multimodal checkpoint has towers for images or sound, a decoder made of half an encoder-decoder
has attention to an encoder that is not there. Without a use a parameter has no gradient, and a
zeroth-order step would move it at random.

An expert that no token of a few rows chose is another matter: other rows may. It is told by its
place, in a list beside others of which some were reached.
"""

from collections.abc import Collection, Sequence

from torch import nn

from agzo.tuned.roles import Usage


def unreached(model: nn.Module, usage: Usage) -> list[str]:
    """Name the modules (or lone parameters) with trained parameters that a forward did not use.

    Of a module and its parts the outermost is named.
    """
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    dark = {name for name, parameter in trained.items() if not usage.reached(parameter)}
    light = trained.keys() - dark
    named: list[str] = []
    for name in sorted(dark):
        if any(_within(name, found) for found in named):
            continue
        words = name.split(".")
        paths = [".".join(words[:n]) for n in range(1, len(words) + 1)]
        outermost = next(path for path in paths if not any(_within(n, path) for n in light))
        if not _one_of_several(model, outermost, light):
            named.append(outermost)
    return named


def leave_out(model: nn.Module, names: Sequence[str]) -> None:
    """Freeze what `unreached` named."""
    for name, parameter in model.named_parameters():
        if any(_within(name, found) for found in names):
            parameter.requires_grad_(False)


def _within(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.")


def _one_of_several(model: nn.Module, path: str, light: Collection[str]) -> bool:
    """Tell whether a module is in a list with others that were reached."""
    parent = path.rpartition(".")[0]
    listed = isinstance(model.get_submodule(parent), nn.ModuleList | nn.ModuleDict)
    return listed and any(_within(name, parent) for name in light)
