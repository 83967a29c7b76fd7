"""What a few rows show of a model before its run, so that no score of it is wrong in silence.

| tried                                                 | if not                                 |
|-------------------------------------------------------|----------------------------------------|
| later tokens change no earlier logit                  | refused: answers would be in sight     |
| a row padded beside longer ones is answered as alone  | each length is run by itself           |
| options go on from copies of their prompt's cache     | each is scored behind its own prompt   |
| a text goes on from the cache                         | refused for tasks that generate        |
| text reaches every parameter that is tuned (`reach`)  | what it never reaches is frozen, named |

Tried are parts of the longest training row: all of it, its last third, its last two tokens; and
all of it with one token in the place of each in its second half. What was found is a function of
the model and that row, and stands in the run's origin.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from agzo.tuned.roles import Usage
from experiments.config.errors import BadInput
from experiments.data.batches import collate_rows, pad_left
from experiments.data.encode import Encoded
from experiments.evaluation.asking import (
    SCORED,
    USUAL,
    Answers,
    Asking,
    answers,
    differ,
    log_probs,
    one_of,
    said,
    sample_rows,
)
from experiments.evaluation.scoring import find_asking
from experiments.models.loss import accepted_keywords, label_logits, wrapped
from experiments.models.reach import unreached
from experiments.tasks.base import Task


@dataclass(frozen=True)
class Trial:
    """What was found: how the model is asked, what is left out, why, and how weights are used."""

    asking: Asking
    left_out: list[str]
    why: dict[str, str]
    usage: Usage

    def lines(self) -> list[str]:
        """Return what a run says of it: nothing of a model like most."""
        said = []
        if self.left_out:
            said.append(f"left as it is, for text never comes to it: {', '.join(self.left_out)}")
        if not self.asking.padded:
            said.append(f"{self.why['rows']}; so each length is run by itself")
        if self.asking.padded and not self.asking.cached:
            said.append(f"{self.why['options']}; so each is scored behind its own prompt")
        return said

    def about(self) -> dict[str, Any]:
        """Return what a result says of it."""
        return {
            "rows": "padded" if self.asking.padded else "of one length",
            "options": _way(self.asking),
            "left_out": self.left_out,
            "why": self.why,
        }


def _way(asking: Asking) -> str:
    if asking.packed:
        return "packed"
    return "cached" if asking.cached else "plain"


@torch.no_grad()
def try_out(
    where: str, model: nn.Module, task: Task, encoded: Sequence[Encoded], pad_id: int
) -> Trial:
    """Try a model on parts of a training row; BadInput where no run can be made of it.

    `where` names the model in messages: a key and its value.
    """
    rows = sample_rows([ids for example in encoded for ids in example.ids])
    dtype = one_of(model).dtype
    with Usage(p for p in model.parameters() if p.requires_grad) as usage:
        alone = _alone(where, model, rows, pad_id)
    left_out = unreached(model, usage)
    if any(each.isnan().any() for each in alone):
        return Trial(USUAL, left_out, {}, usage)  # nothing to compare; the run will say so
    _refuse_foresight(where, model, rows[0], pad_id, dtype)
    asking, why = find_asking(model, encoded, pad_id, rows, alone)
    if task.kind == "generation":
        _refuse_no_cache(model, task, rows[: 2 if asking.padded else 1], alone, pad_id, dtype)
    return Trial(asking, left_out, why, usage)


@torch.no_grad()
def check_runs(
    where: str, model: nn.Module, encoded: Sequence[Encoded], longest: int, pad_id: int
) -> None:
    """Refuse a model that cannot run a row as long as an evaluation's longest."""
    row = sample_rows([ids for example in encoded for ids in example.ids])[0]
    if longest > len(row):
        _alone(where, model, [(row * longest)[:longest]], pad_id)


def answers_before(model: nn.Module, row: Sequence[int], place: int, pad_id: int) -> Answers:
    """Return what a model says at the last places before this one, of a row run by itself."""
    batch = collate_rows([row], [1], pad_id, one_of(model).device)
    places = torch.arange(max(0, place - SCORED), place, device=batch.label_positions.device)
    return [log_probs(label_logits(model, replace(batch, label_positions=places))[0])]


def _alone(where: str, model: nn.Module, rows: Sequence[list[int]], pad_id: int) -> Answers:
    """Return the answers to rows of which each is run by itself."""
    found: Answers = []
    for row in rows:
        try:
            found += answers(model, [row], pad_id)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a model's own code raises what it will
            raise BadInput(
                f"{where}: it cannot run a row of {len(row)} tokens ({said(error)}); allowed is a "
                "model that can, or a smaller train.max_length"
            ) from error
    return found


def _refuse_foresight(
    where: str, model: nn.Module, row: list[int], pad_id: int, dtype: torch.dtype
) -> None:
    """Refuse a model in which a token sees later ones, as those of encoders do."""
    half = len(row) // 2
    changed = row[:half] + [row[0] if row[0] != row[half] else pad_id] * (len(row) - half)
    wanted = answers_before(model, row, half, pad_id)
    found = differ(lambda: answers_before(model, changed, half, pad_id), wanted, dtype)
    if found is not None:
        raise BadInput(
            f"{where}: {type(wrapped(model)).__name__} is no causal language model: with other "
            f"tokens behind them earlier {found}; so options would be scored with the answer in "
            "sight; allowed is a model whose tokens see no later ones, which an encoder's do"
        )


def _refuse_no_cache(
    model: nn.Module,
    task: Task,
    rows: Sequence[list[int]],
    alone: Answers,
    pad_id: int,
    dtype: torch.dtype,
) -> None:
    """Refuse to generate text with a model that does not go on from what it returned."""
    why: str | None = None
    if "past_key_values" not in accepted_keywords(model):
        why = "its forward takes no past_key_values"
    elif len(rows[0]) > 2:
        wanted = [each[-1:] for each in alone[: len(rows)]]
        why = differ(lambda: _in_two(model, rows, pad_id), wanted, dtype)
    if why is not None:
        name = type(wrapped(model)).__name__
        raise BadInput(
            f"task={task.name}: it generates text, and {name} does not go on from a cache ({why}); "
            "allowed are tasks with options, or another model"
        )


def _in_two(model: nn.Module, rows: Sequence[list[int]], pad_id: int) -> Answers:
    """Return the answers at the rows' last places but one token, run in two parts."""
    ids, mask, positions = pad_left([row[:-1] for row in rows], pad_id)
    device = one_of(model).device
    accepted = accepted_keywords(model)
    past: Any = None
    logits: Tensor | None = None
    for part in (slice(0, -1), slice(-1, None)):
        seen = mask[:, : mask.shape[1] - 1] if past is None else mask
        keywords: dict[str, Any] = {"use_cache": True}
        if "position_ids" in accepted:
            keywords["position_ids"] = positions[:, part].to(device)
        if past is not None:
            keywords["past_key_values"] = past
        output = model(ids[:, part].to(device), attention_mask=seen.long().to(device), **keywords)
        past, logits = output.past_key_values, output.logits
    assert logits is not None
    return [log_probs(each[-1:]) for each in logits]
