"""How rows are put to a model, and whether it answers a row beside longer ones as it does alone.

Most models give a row the same scores beside longer rows, padded, as alone, and go on from keys and
values they returned. Some do not: recurrent ones that take padding for tokens, decoders that count
positions from the padding on. Those are asked in ways that are slower and right.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experiments.data.batches import collate_rows
from experiments.models.loss import label_logits, wrapped

SCORED = 8  # tokens at the end of a row whose log-probabilities are compared
# How far log-probabilities may be apart: more than rounding takes them, less than the faults that
# were found did (0.4 or more where the largest is 10). In half precision a share of the largest.
TOLERANCE, HALF_SHARE = 1e-3, 0.03

Answers = list[Tensor]  # of each row log p of all tokens at its last places, (up to SCORED, V)


@dataclass(frozen=True)
class Asking:
    """What a model may be asked.

    `padded`: rows of different lengths in one forward; else each length is run by itself.
    `cached`: options behind copies of their (padded) prompt's keys and values; else each of them
    behind its own prompt.
    `packed`: options and prompts in one packed batch, no token twice; it needs no cache.
    """

    padded: bool = True
    cached: bool = True
    packed: bool = False


USUAL = Asking()


def sample_rows(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the longest row, its last third, and its last two tokens."""
    row = list(max(rows, key=len))
    return [row, row[-max(3, len(row) // 3) :], row[-2:]]


def answers(model: nn.Module, rows: Sequence[Sequence[int]], pad_id: int) -> Answers:
    """Return what a model says at the last places of rows that are run together."""
    counts = [min(SCORED, len(row) - 1) for row in rows]
    batch = collate_rows(rows, counts, pad_id, one_of(model).device)
    logits = label_logits(model, batch)
    return [log_probs(each[-n:]) for each, n in zip(logits, counts, strict=True)]


def one_of(model: nn.Module) -> Tensor:
    """Return a tensor of the device and dtype of a model: its first parameter, if it has one."""
    return next(model.parameters(), torch.empty(0, dtype=torch.float32, device="cpu"))


def log_probs(logits: Tensor) -> Tensor:
    """Return the log-probabilities of logits, in float32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


@torch.no_grad()
def padding_matters(
    model: nn.Module, rows: Sequence[Sequence[int]], alone: Answers, pad_id: int
) -> str | None:
    """Say how answers to rows that are run together differ from those `alone`, None if not."""
    found = differ(lambda: answers(model, rows, pad_id), alone, one_of(model).dtype)
    if found is None:
        return None
    name = type(wrapped(model)).__name__
    return f"{name} answers a row otherwise beside longer ones than alone: {found}"


def differ(found: Callable[[], Answers], wanted: Answers, dtype: torch.dtype) -> str | None:
    """Say how answers differ from those wanted, or how they fail; None if only rounding does."""
    try:
        far = distance(found(), wanted)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a model's own code raises what it will
        return f"it fails ({said(error)})"
    allowed = TOLERANCE
    if dtype not in (torch.float32, torch.float64):
        largest = max(float(each[each.isfinite()].abs().max()) for each in wanted)
        allowed = HALF_SHARE * largest
    if far <= allowed:
        return None
    return f"log-probabilities differ by {far:.0e}, allowed is {allowed:.0e}"


def distance(found: Answers, wanted: Answers) -> float:
    """Return how far answers are apart at most."""
    pairs = zip(found, wanted, strict=True)
    apart = [torch.where(a == b, 0.0, (a - b).abs()).nan_to_num(nan=torch.inf) for a, b in pairs]
    return max(float(each.max()) for each in apart)


def said(error: Exception) -> str:
    """Return what an error of other people's code says, in one short line."""
    text = " ".join(str(error).split())[:160]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
