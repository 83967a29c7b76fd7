"""Scores of options, the mean log-probability of their tokens, at the least cost the model allows.

    our attention             packed: every token once, prompts and options in one forward
    options of one token      one row per example, its prompt: the last logits score them all
    longer options            the prompt once, then each option on a copy of its keys and values
    anything else             every option behind its own prompt, the plain way

`asking` says which of them the model can be asked. All give the score of one row at a time.
Examples run longest first: little padding, and if memory is short it shows at once.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from experiments.data.batches import collate_prompts, collate_rows, longest_first, pad_left
from experiments.data.encode import Encoded
from experiments.data.options import collate_options
from experiments.data.packing import can_pack
from experiments.evaluation.asking import (
    USUAL,
    Answers,
    Asking,
    answers,
    differ,
    one_of,
    padding_matters,
    sample_rows,
)
from experiments.models.loss import (
    accepted_keywords,
    mean_log_probs,
    option_log_probs,
    target_log_probs,
    wrapped,
)

Report = Callable[[int], None]  # called with the number of options scored
Way = Callable[..., Tensor]


@torch.no_grad()
def option_scores(
    model: nn.Module,
    encoded: Sequence[Encoded],
    pad_id: int,
    batch_size: int,
    device: torch.device | str,
    report: Report = lambda options: None,
    share: bool = True,
    asking: Asking | None = None,
) -> list[Tensor]:
    """Return each example's option scores on the CPU in float64.

    `batch_size` bounds the rows of a forward pass (an example's options stay together). With
    `share`=False every option is scored the plain way. Without `asking` the model is tried out on
    these examples, once.
    """
    asking = asking or known_asking(model, encoded, pad_id)
    scores: list[Tensor] = [torch.empty(0)] * len(encoded)
    ways: dict[Way, list[int]] = {_packed: [], _one_row: [], _cached: [], _plain: []}
    for index, example in enumerate(encoded):
        ways[_way(model, example, asking) if share else _plain].append(index)
    for way, indices in ways.items():
        lengths = [max(map(len, encoded[index].ids)) for index in indices]
        rows = [_rows(encoded[index], way) for index in indices]
        for chosen in longest_first(lengths, batch_size, rows):
            examples = [encoded[indices[item]] for item in chosen]
            counts = [len(example.ids) for example in examples]
            found = way(model, examples, pad_id, device, asking).flatten().double().cpu()
            for item, own in zip(chosen, found.split(counts), strict=True):
                scores[indices[item]] = own
            report(sum(counts))
    return scores


def _way(model: nn.Module, example: Encoded, asking: Asking) -> Way:
    if asking.packed:
        return _packed
    if len(example.ids) == 1:
        return _plain
    if example.one_token:
        return _one_row
    return _cached if asking.cached and _caches(model, example) else _plain


def _rows(example: Encoded, way: Way) -> int:
    return 1 if way is not _plain and example.one_token else len(example.ids)


def _caches(model: nn.Module, example: Encoded) -> bool:
    """Tell whether the options of an example would be scored behind kept keys and values."""
    several = len(example.ids) > 1 and not example.one_token
    return several and example.shared > 1 and "past_key_values" in accepted_keywords(model)


# Of models that nobody tried out before, by whether examples have options to be scored by a cache.
_KNOWN: WeakKeyDictionary[nn.Module, dict[bool, Asking]] = WeakKeyDictionary()


@torch.no_grad()
def known_asking(model: nn.Module, encoded: Sequence[Encoded], pad_id: int) -> Asking:
    """Return how a model is asked, tried out where nobody said."""
    known = _KNOWN.setdefault(model, {})
    key = any(_caches(model, example) for example in encoded)
    if key not in known:
        rows = sample_rows([ids for example in encoded for ids in example.ids])
        alone = [answers(model, [row], pad_id)[0] for row in rows]
        known[key] = find_asking(model, encoded, pad_id, rows, alone)[0]
    return known[key]


@torch.no_grad()
def find_asking(
    model: nn.Module,
    encoded: Sequence[Encoded],
    pad_id: int,
    rows: Sequence[Sequence[int]],
    alone: Answers,
) -> tuple[Asking, dict[str, str]]:
    """Find out how a model is asked for these examples; return why, where it is another way.

    `rows` are of different lengths, `alone` what the model answers to each by itself.
    """
    found = padding_matters(model, rows, alone, pad_id)
    if found is not None:  # prompts of one batch are padded as well
        return Asking(padded=False, cached=False), {"rows": found}
    name, why = type(wrapped(model)).__name__, {}
    if can_pack(wrapped(model)):
        found = _differs(model, encoded, pad_id, Asking(packed=True))
        if found is None:
            return Asking(packed=True), {}
        why = {"packed": f"{name} scores options otherwise in a packed batch: {found}"}
    options = [example for example in encoded if _caches(model, example)]
    found = _differs(model, options, pad_id, USUAL) if options else None
    if found is None:
        return USUAL, why
    why["options"] = f"{name} scores options otherwise behind a kept prompt: {found}"
    return Asking(cached=False), why


def _differs(
    model: nn.Module, encoded: Sequence[Encoded], pad_id: int, asking: Asking
) -> str | None:
    """Say how the shortest and the longest example's scores differ from those of the plain way."""
    by_length = sorted(encoded, key=lambda example: max(map(len, example.ids)))
    some = [by_length[0], by_length[-1]]
    size = sum(len(example.ids) for example in some)
    like = one_of(model)

    def scores(share: bool) -> Answers:
        return option_scores(model, some, pad_id, size, like.device, share=share, asking=asking)

    return differ(lambda: scores(True), scores(False), like.dtype)


def _packed(
    model: nn.Module,
    examples: Sequence[Encoded],
    pad_id: int,
    device: torch.device | str,
    asking: Asking,
) -> Tensor:
    batch = collate_options(examples, device)
    log_probs = option_log_probs(model, batch.rows).flatten()[batch.numbers].double().cpu()
    return torch.stack([own.mean() for own in log_probs.split(batch.lengths)])


def _plain(
    model: nn.Module,
    examples: Sequence[Encoded],
    pad_id: int,
    device: torch.device | str,
    asking: Asking = USUAL,
) -> Tensor:
    ids = [row for example in examples for row in example.ids]
    lengths = [length for example in examples for length in example.option_lengths]
    rows = collate_rows(ids, lengths, pad_id, device, one_length=not asking.padded)
    return mean_log_probs(option_log_probs(model, rows), rows.target_mask)


def _one_row(
    model: nn.Module,
    examples: Sequence[Encoded],
    pad_id: int,
    device: torch.device | str,
    asking: Asking,
) -> Tensor:
    parts = []
    for _, same in groupby(examples, key=lambda example: len(example.ids)):
        rows = collate_prompts(list(same), pad_id, device, one_length=not asking.padded)
        parts.append(mean_log_probs(option_log_probs(model, rows), rows.target_mask).flatten())
    return torch.cat(parts)


def _cached(
    model: nn.Module,
    examples: Sequence[Encoded],
    pad_id: int,
    device: torch.device | str,
    asking: Asking = USUAL,
) -> Tensor:
    """Run the shared prompts, then what follows them, on copies of their keys and values.

    What follows begins with the last shared token, whose logits predict an option's first. Prompts
    are padded on the left and what follows on the right, so that real tokens stand side by side:
    some models measure distances in columns, not in positions.
    """
    accepted = accepted_keywords(model)
    starts = [example.shared - 1 for example in examples]
    prompts = [e.ids[0][:start] for e, start in zip(examples, starts, strict=True)]
    ids, mask, positions = (t.to(device) for t in pad_left(prompts, pad_id))
    keep: dict[str, Any] = {"logits_to_keep": 1, "position_ids": positions}
    keep = {key: value for key, value in keep.items() if key in accepted}
    past = model(ids, attention_mask=mask.long(), use_cache=True, **keep).past_key_values
    if not all(hasattr(layer, "batch_select_indices") for layer in getattr(past, "layers", [past])):
        return _plain(model, examples, pad_id, device)
    rows = [row[start:] for e, start in zip(examples, starts, strict=True) for row in e.ids]
    lengths = [length for example in examples for length in example.option_lengths]
    owner = torch.tensor([i for i, e in enumerate(examples) for _ in e.ids], device=device)
    past.batch_select_indices(owner)
    behind = pad_right(rows, lengths, pad_id, device)
    first = torch.tensor(starts, device=device)[owner][:, None]
    keep = {"position_ids": first + torch.arange(behind.ids.shape[1], device=device)}
    logits = model(
        behind.ids,
        attention_mask=torch.cat([mask[owner].long(), behind.mask.long()], dim=1),
        past_key_values=past,
        use_cache=True,
        **{key: value for key, value in keep.items() if key in accepted},
    ).logits[:, :-1]
    log_probs = target_log_probs(logits, behind.ids[:, 1:, None], behind.option)
    return mean_log_probs(log_probs, behind.option)


class Behind(NamedTuple):
    """Rows padded on the right, T the longest."""

    ids: Tensor  # (R, T) int64
    mask: Tensor  # (R, T) bool, True at real tokens
    option: Tensor  # (R, T - 1) bool, True where the next token is the option's


def pad_right(
    rows: Sequence[Sequence[int]], lengths: Sequence[int], pad_id: int, device: torch.device | str
) -> Behind:
    """Pad rows on the right; the last `lengths` tokens of each are its option's."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([list(row) + [pad_id] * (width - len(row)) for row in rows])
    ends = torch.tensor([len(row) for row in rows])[:, None]
    columns = torch.arange(width)
    begins = ends - torch.tensor(lengths)[:, None]
    option = (columns[1:] >= begins) & (columns[1:] < ends)
    return Behind(ids.to(device), (columns < ends).to(device), option.to(device))
