"""A number of each linear layer of a deep model as a map: blocks to the right, roles downwards."""

import re
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

MOST_BARS = 40  # layers of which each can have a bar of its own, and its name
COLOURS = "cividis"  # the same for all readers, and in grey


def block(layer: str) -> str:
    """Return the number of the block that a weight is in, "" for one outside."""
    number = re.search(r"\.(\d+)\.", layer)
    return number.group(1) if number else ""


def role(layer: str) -> str:
    """Return what a weight is in its block: self_attn.q_proj of model.layers.3.self_attn.q_proj."""
    return re.sub(r"^.*?\.\d+\.", "", layer.removesuffix(".weight"))


def short(layer: str) -> str:
    """Shorten a weight's name: model.layers.3.self_attn.q_proj.weight to 3.q_proj."""
    last = role(layer).rpartition(".")[2]
    return f"{block(layer)}.{last}" if block(layer) else last


def draw_map(axes: Axes, values: Mapping[str, float], title: str, low: float, high: float) -> None:
    """Draw a value of each layer; a place without a layer stays white.

    Args:
        axes: to draw on.
        values: of each weight by its name.
        title: of the map.
        low, high: the ends of the colours.
    """
    blocks = list(dict.fromkeys(map(block, values)))
    roles = list(dict.fromkeys(map(role, values)))
    grid = np.full((len(roles), len(blocks)), np.nan)
    for layer, value in values.items():
        grid[roles.index(role(layer)), blocks.index(block(layer))] = value
    image = axes.imshow(
        grid, aspect="auto", cmap=COLOURS, norm=Normalize(low, high), interpolation="nearest"
    )
    axes.figure.colorbar(image, ax=axes, pad=0.02, aspect=12)
    last = [each.rpartition(".")[2] for each in roles]
    axes.set_yticks(range(len(roles)), last if len(set(last)) == len(roles) else roles)
    shown = range(0, len(blocks), max(1, len(blocks) // 6))
    axes.set_xticks(shown, [blocks[place] for place in shown])
    axes.set_xlabel("block")
    axes.grid(visible=False)
    axes.set_title(title, loc="left")
