"""What a run does to everything else: the loss on text it never trains on, and how far it moved.

    train.forgetting=PATH     passages of plain text, before and after the run

Two runs with the same score on their task may have done very different things to the rest of the
model. So the loss on unrelated passages is measured at the untouched model and at the weights that
are reported, and the distance between the two is measured as well:

    loss     mean over tokens of -log p(token | the passage before it)
    moved    |W_reported - W_untouched|, over all tuned weights together

PATH is a text file whose passages are separated by blank lines, or JSON lines with a field `text`
or `context` (SQuAD's). The first `PASSAGES` different ones count, each cut to `TOKENS` tokens.
Memory: the logits of one passage; for `moved` a second copy of the model, on the host, after the
run's own peak was taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from agzo.tuned.linears import is_quantised
from experiments.config.errors import BadInput
from experiments.config.files import file_sha256
from experiments.config.paths import user_path
from experiments.config.schema import ModelConfig
from experiments.config.shorten import shortened
from experiments.data.jsonl import objects, refuse_other_kinds
from experiments.models import loading
from experiments.tasks.text import check_whole

PASSAGES, TOKENS = 24, 128
FIELDS = ("text", "context")
BRANCH = "zo_act.coefficients"  # ends the name of a parameter that is zero at the start


@dataclass(frozen=True)
class Unrelated:
    """Passages of text as token ids, and where they are from."""

    ids: list[list[int]]
    about: dict[str, Any]


def read(path: str, tokenizer: Any) -> Unrelated:
    """Read and encode the passages of a file; raises BadInput."""
    file = user_path(path)
    try:
        content = file.read_bytes()
        found = _json_lines(content) if file.suffix == ".jsonl" else _blocks(content)
    except OSError as error:
        raise BadInput(f"train.forgetting={path}: cannot be read ({error})") from error
    except ValueError as error:
        raise BadInput(f"train.forgetting={path}{error}") from error
    passages = list(dict.fromkeys(each.strip() for each in found if each.strip()))[:PASSAGES]
    ids = [tokenizer(passage)["input_ids"][:TOKENS] for passage in passages]
    ids = [row for row in ids if len(row) > 1]
    if not ids:
        raise BadInput(f"train.forgetting={path}: no passage in it has two tokens or more")
    tokens = sum(len(row) - 1 for row in ids)
    about = {"path": path, "sha256": file_sha256(file), "passages": len(ids), "tokens": tokens}
    return Unrelated(ids, about)


def _blocks(content: bytes) -> list[str]:
    """Return what stands between blank lines."""
    refuse_other_kinds(content, "needed: text in UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f": cannot be read ({error}); needed: text in UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n\n")


def _json_lines(content: bytes) -> list[str]:
    """Return the text of each line."""
    passages = []
    for number, row in objects(content):
        field = next((each for each in FIELDS if isinstance(row, dict) and each in row), None)
        text = row[field] if field else None
        if field is None or not isinstance(text, str):
            raise ValueError(
                f" line {number}: it is {shortened(row)}, allowed is an object with a text in the "
                f"field {' or '.join(FIELDS)}"
            )
        try:
            check_whole(field, text)
        except ValueError as error:
            raise ValueError(f" line {number}: {error}") from error
        passages.append(text)
    return passages


@torch.no_grad()
def loss(model: nn.Module, ids: Sequence[Sequence[int]], device: torch.device) -> float:
    """Return the mean loss of a token over all passages; a passage at a time."""
    total, count = 0.0, 0
    for row in ids:
        tokens = torch.tensor([row], dtype=torch.int64, device=device)
        output = model(tokens)
        logits = (output if isinstance(output, torch.Tensor) else output.logits)[0, :-1]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        total += float(F.cross_entropy(logits, tokens[0, 1:], reduction="sum"))
        count += len(row) - 1
    return total / count


@torch.no_grad()
def moved(model: ModelConfig, dtype: str, optimizer: Any) -> dict[str, float | None] | None:
    """Return how far the tuned weights are from the untouched model's, and the norm of those.

    ZO-Act's basis is orthonormal: its coefficients are as far as the weights they are added to.
    None where what is tuned does not start at zero beside the model, or where nothing is tuned; the
    norm of quantised weights is None.
    """
    tuned = list(getattr(optimizer, "tuned", ()))
    if not tuned:
        return None
    untouched, _ = loading.load(model, dtype, torch.device("cpu"))
    weights = dict(untouched.named_parameters())
    distance, start = 0.0, []
    for each in tuned:
        branch = each.name.endswith(BRANCH)
        name = each.name.removesuffix(BRANCH) + "weight" if branch else each.name
        if name not in weights:
            return None
        start.append(weights[name])
        now = each.parameter.detach().cpu().double()
        distance += float((now if branch else now - weights[name].double()).square().sum())
    if any(map(is_quantised, start)):
        return {"moved": distance**0.5, "norm": None}
    length = sum(float(weight.double().square().sum()) for weight in start)
    return {"moved": distance**0.5, "norm": length**0.5}
