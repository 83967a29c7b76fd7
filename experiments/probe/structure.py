"""Figure 1: do gradients lie in the span of the activations, and in how few of its directions?

Tables, each at every step of `--steps` along a training run:

* `cosines`: for each linear layer |G A| / |G|, the cosine of the gradient G and its projection on
  the leading r right directions A of an input: of the same minibatch (exact, and by AGZO's own
  power iteration and its cheaper ways), of another minibatch, and of the run's first minibatch at
  its first weights.
  `random` is what a random A gives, sqrt(r / d_in). The full rank is trivial, and `random` 1, where
  a minibatch has as many tokens as the layer is wide.
* `spectra`: singular values of G and of the input X for a few layers, at the first and last step.
* `energy`: the share of |X|^2 in the first direction, and whose it is: the position (0 is a row's
  first token) and the token that carry most of it.

Padding is left out: its own gradient is zero.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from agzo.activations.spectrum import Spectrum, gradients, inputs, spectrum
from agzo.activations.subspace import subspace_extract
from agzo.alignment import captured
from agzo.rng import Noise
from agzo.torch_calls.inputs import fits
from agzo.torch_calls.surroundings import Closure
from agzo.tuned.select import Tuned, select
from experiments.config.errors import BadInput
from experiments.config.lists import whole_numbers
from experiments.records import tidy

if TYPE_CHECKING:
    from experiments.data.batches import Rows
    from experiments.probe.scene import Scene

HELP = "figure 1: gradients and activations of each linear layer"
RANKS = (1, 10)
POWER_STEPS = 3  # K of the paper
SPECTRA = 6  # layers whose spectra can be told apart in the figure


def linear_layers(model: nn.Module) -> list[Tuned]:
    """Return the weights of the linear layers; a head tied to the embedding is none of them.

    Raises:
        BadInput: there is none, or one that lies turned, (d_in, d_out), which is not looked at.
    """
    tuned = select(model, None, "tuned")[0]
    turned = [each.name for each in tuned if each.role == "transposed"]
    found = [each for each in tuned if each.role == "linear"]
    if turned or not found:
        seen = f"{len(turned)} that lie turned, {turned[0]} first" if turned else "none at all"
        raise BadInput(
            f"model: of linear layers it has {seen}; allowed here are models whose linear weights "
            "are all (d_out, d_in), as those of nn.Linear are"
        )
    return found


def real_tokens(x: Tensor, mask: Tensor) -> Tensor:
    """Return the rows of a layer's input that are no padding, (tokens, d_in).

    An input that has not the mask's shape, such as a head's label positions, is taken whole.
    """
    flat = x.reshape(-1, x.shape[-1])
    return flat[mask.reshape(-1)] if fits(x, mask) else flat


def spectra_of(closure: Closure, rows: Rows, layers: list[Tuned]) -> dict[str, Spectrum]:
    """Return the spectrum of each layer's input on one batch; equal inputs are decomposed once."""
    by_input: dict[int, Spectrum] = {}
    found: dict[str, Spectrum] = {}
    for name, x in inputs(closure, layers).items():
        if id(x) not in by_input:
            by_input[id(x)] = spectrum(real_tokens(x, rows.token_mask))
        found[name] = by_input[id(x)]
    return found


def iterated_bases(
    same: Spectrum, other: Spectrum | None, rank: int, name: str, step: int
) -> dict[str, Tensor]:
    """Return what Algorithm 1 finds for this input, (d_in, rank), and what its cheaper ways do.

    "power" as AGZO's defaults; "warm" begins with the basis of another minibatch and iterates once
    (warm_start, power_steps=1); "sampled" looks at a quarter of the tokens.
    """
    x = ((same.left * same.values) @ same.right.T).float()  # X again: (tokens, d_in)
    omega = Noise(0, step).table(1, x.shape[0], rank, x.device, name)[0]
    found = {"power": subspace_extract(x, omega, POWER_STEPS)}
    if other is not None and rank <= other.rank:
        found["warm"] = subspace_extract(x, None, 1, start=other.basis(rank).float())
    few = x.shape[0] // 4
    if rank <= few:
        number = Noise(0, step).table(1, x.shape[0], 1, x.device, "tokens").view(-1)
        chosen = number.topk(few).indices
        found["sampled"] = subspace_extract(x[chosen], omega[chosen], POWER_STEPS)
    return found


def cosine_rows(
    step: int,
    layers: list[Tuned],
    gradient: Mapping[nn.Parameter, Tensor],
    sources: Mapping[str, Mapping[str, Spectrum]],
) -> list[tidy.Row]:
    """Return |G A| / |G| for each layer, source of the basis ("same" among them) and rank."""
    rows = []
    for layer in layers:
        g = gradient[layer.parameter]
        width = g.shape[1]
        bases: list[tuple[str, str, Tensor]] = []
        for source, spectra in sources.items():
            found = spectra[layer.name]
            bases += [(source, str(r), found.basis(r)) for r in RANKS if r <= found.rank]
            bases.append((source, "full", found.basis(found.rank)))
        same = sources["same"][layer.name]
        other = sources.get("other", {}).get(layer.name)
        for r in RANKS:
            if r <= same.rank:
                iterated = iterated_bases(same, other, r, layer.name, step)
                bases += [(source, str(r), basis) for source, basis in iterated.items()]
        rows += [
            {
                "step": step, "layer": layer.name, "basis": source, "rank": rank,
                "columns": basis.shape[1], "cosine": captured(g, basis).item(),
                "random": (basis.shape[1] / width) ** 0.5,
            }
            for source, rank, basis in bases
        ]  # fmt: skip
    return rows


def spectrum_rows(
    step: int,
    chosen: list[Tuned],
    gradient: Mapping[nn.Parameter, Tensor],
    spectra: Mapping[str, Spectrum],
) -> list[tidy.Row]:
    """Return the singular values of gradient and input of the chosen layers, from index 1."""
    rows = []
    for layer in chosen:
        values = {
            "gradient": torch.linalg.svdvals(gradient[layer.parameter].double()),
            "activation": spectra[layer.name].values,
        }
        rows += [
            {"step": step, "layer": layer.name, "of": of, "index": i, "value": value}
            for of, all_values in values.items()
            for i, value in enumerate(all_values.tolist(), start=1)
        ]
    return rows


def energy_rows(
    step: int,
    layers: list[Tuned],
    spectra: Mapping[str, Spectrum],
    rows: Rows,
    text: Callable[[int], str],
) -> list[tidy.Row]:
    """Return, per layer, the first direction's share of the energy and who carries it."""
    mask = rows.token_mask
    positions, ids = rows.position_ids[mask], rows.input_ids[mask]  # (tokens,) each
    found = []
    for layer in layers:
        own = spectra[layer.name]
        if own.left.shape[0] != positions.shape[0]:
            continue  # a head that sees label positions alone: its tokens have no such positions
        carried = own.left[:, 0].square()  # sums to 1 over tokens
        by_position = torch.bincount(positions, carried)
        by_token = torch.bincount(ids, carried)
        position, token = int(by_position.argmax()), int(by_token.argmax())
        found.append({
            "step": step, "layer": layer.name, "tokens": len(positions),
            "width": own.right.shape[0], "rank": own.rank,
            "share": own.energy()[0].item(),
            "position": position, "position_share": by_position[position].item(),
            "position_tokens": (positions == position).double().mean().item(),
            "token": text(token), "token_share": by_token[token].item(),
            "token_tokens": (ids == token).double().mean().item(),
        })  # fmt: skip
    return found


def look(
    scene: Scene, step: int, layers: list[Tuned], chosen: list[Tuned], first: dict[str, Spectrum]
) -> tidy.Tables:
    """Return the rows of one step; `chosen` are the layers of the spectra."""
    batch, other = scene.batch(step), scene.batch(step + 1)
    same = spectra_of(scene.closure(batch), batch, layers)
    others = spectra_of(scene.closure(other), other, layers)
    gradient = gradients(scene.closure(batch), layers)
    text = scene.parts.tokenizer.convert_ids_to_tokens
    sources = {"same": same, "other": others, "first": first}
    return {
        "cosines": cosine_rows(step, layers, gradient, sources),
        "spectra": spectrum_rows(step, chosen, gradient, same),
        "energy": energy_rows(step, layers, same, batch, text),
    }


def choose(layers: list[Tuned], text: str, unsaid: list[Tuned] | None = None) -> list[Tuned]:
    """Return the layers whose names hold one of the words of `text`.

    Without words `unsaid`, or the first, the middle and the last one.
    """
    names = [name for name in text.split(",") if name]
    if not names:
        return unsaid or [layers[i] for i in sorted({0, len(layers) // 2, len(layers) - 1})]
    chosen = [each for each in layers if any(name in each.name for name in names)]
    unknown = [name for name in names if not any(name in each.name for each in layers)]
    if unknown:
        listed = ", ".join(each.name for each in layers[:8])
        raise ValueError(f"--layers={','.join(unknown)}: in no layer's name; some are {listed}")
    return chosen


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the probe's own options."""
    parser.add_argument("--steps", default="0,100,400", help="of the run, to look at: 0,100,400")
    parser.add_argument("--layers", default="", help="parts of names, for the spectra: 0.self_attn")


def run(
    options: argparse.Namespace, say: Callable[[str], None]
) -> tuple[dict[str, Any], tidy.Tables]:
    """Look at a run as the options say; see the module's text for the tables."""
    from experiments.probe import scene as scenes

    steps = whole_numbers("--steps", options.steps)
    scene = scenes.load(options.overrides)
    layers = linear_layers(scene.model)
    chosen = choose(layers, options.layers)
    if len(chosen) > SPECTRA:
        raise ValueError(
            f"--layers={options.layers}: {len(chosen)} layers; allowed are up to {SPECTRA}, whose "
            "spectra one figure can show"
        )
    tables: tidy.Tables = {"cosines": [], "spectra": [], "energy": []}
    batch = scene.batch(0)
    first = spectra_of(scene.closure(batch), batch, layers)
    for step in scene.walk(steps):
        spectra = chosen if step in (steps[0], steps[-1]) else []
        seen = functools.partial(look, scene, step, layers, spectra, first)
        for name, rows in options.kept(f"step {step}", seen).items():
            tables[name] += rows
        say(f"step {step}: {len(layers)} layers")
    about = tidy.about("structure", scene.device)
    return about | scene.about(), tables
