"""What a finite difference asks of a loss: that it is a function, and that every use is seen.

A loss that answers twice differently would drown the difference. A tuned weight that torch's Python
functions never see (unused, or inside a scripted module) would move without having been measured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from agzo.torch_calls.uses import ADDRESSES, TorchCalls, among, used
from agzo.tuned.reached import passed_by
from agzo.tuned.select import Tuned


def check_loss(
    forward: Callable[[], Tensor],
    tuned: list[Tuned],
    must_see: bool,
    model: nn.Module,
    refuse_noise: Callable[[], None] = lambda: None,
) -> list[str]:
    """Evaluate the loss twice; raise ValueError if it differs, or if a tuned use was not seen.

    Args:
        forward: returns the loss, 0-dim.
        tuned: the parameters whose use is looked for.
        must_see: a use that is not seen is an error, but of what the batch passes by.
        model: whose parameters they are.
        refuse_noise: called where it differs; raises what names the module.

    Returns:
        The names of the parameters that this batch passes by, see `agzo.tuned.reached`.
    """
    with Uses(tuned) as watch:
        first, second = forward(), forward()
    used = [each.name for each in tuned if id(each.parameter) in watch.seen]
    unused = [each.name for each in tuned if id(each.parameter) not in watch.seen]
    waiting = passed_by(model, unused, used)
    unused = [name for name in unused if name not in waiting]
    if unused and must_see:
        raise ValueError(
            f"the closure does not use {len(unused)} tuned parameter(s): "
            f"{', '.join(unused[:5])} in any call that can be seen; exclude them with params= "
            "or requires_grad=False (or, for a scripted module, use execution='in_place')"
        )
    if not torch.equal(torch.nan_to_num(first), torch.nan_to_num(second)):
        refuse_noise()
        raise ValueError(
            f"the closure gave {first.item():.9g} and then {second.item():.9g} for the same "
            "weights; allowed is a deterministic loss (one fixed batch, no active dropout): "
            "its noise would drown a finite difference"
        )
    return waiting


class Uses(TorchCalls):
    """Notes the ids of tuned parameters whose values torch calls use."""

    def __init__(self, tuned: list[Tuned]) -> None:
        super().__init__()
        self.tuned = {id(each.parameter): each.name for each in tuned}
        self.seen: set[int] = set()

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Answer a call of torch."""
        if func not in ADDRESSES:
            self.seen.update(among(self.tuned, used(func, args, kwargs)))
        return func(*args, **kwargs)
