"""What stands around a step, and what of it a closure and the method's own arithmetic shall find.

torch keeps settings beside a call's arguments. For each there is one rule:

    autocast         as around the step for the closure; off for everything else, so that a
                     direction, a basis and an update are in their own precision
    autocast's cache emptied before each evaluation and after a step: it holds casts of weights
                     until the outermost autocast ends, and those of other weights are wrong
    torch.compile    off for the closure (its modules run as they are written): compiled code
                     is not seen by the modes that perturb and look. `agzo.execution.compiled` turns
                     it on for its own layers
    function modes   one is active in each evaluation: torch itself chooses by that, see
                     `agzo.torch_calls.uses.TorchCalls`
    gradients        not recorded, unless the closure says so
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from agzo.torch_calls.uses import TorchCalls

KINDS = ("cpu", "cuda", "xpu", "mps", "hpu", "mtia", "maia", "xla", "ipu", "privateuseone")
"""Devices that have an autocast of their own."""

Closure = Callable[[], Tensor]
"""Returns the loss of a batch, 0-dim: what a method evaluates."""

Watch = Callable[[Closure], Tensor]
"""Returns a closure's loss, and has seen what it ran on."""

M = TypeVar("M", bound=Callable[..., Any])


class Surroundings:
    """Autocast as it is where this is made."""

    def __init__(self) -> None:
        self._casts = [
            (kind, torch.get_autocast_dtype(kind), torch.is_autocast_cache_enabled())
            for kind in KINDS
            if torch.is_autocast_enabled(kind)
        ]

    @contextmanager
    def left(self) -> Iterator[None]:
        """Leave them: what runs meanwhile is the method's own arithmetic, in its own precision."""
        with ExitStack() as stack:
            stack.callback(torch.clear_autocast_cache)
            for kind, _, _ in self._casts:
                stack.enter_context(torch.autocast(kind, enabled=False))
            yield

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Go back into them, for a closure."""
        torch.clear_autocast_cache()
        with ExitStack() as stack:
            for kind, dtype, cache in self._casts:
                stack.enter_context(torch.autocast(kind, dtype=dtype, cache_enabled=cache))
            yield


def watched() -> AbstractContextManager[Any]:
    """Return a context in which a function mode is active: an idle one, if there is no other."""
    return nullcontext() if torch._C._len_torch_function_stack() else TorchCalls()


def exactly(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which products on a device are made in the precision of their factors."""
    if device.type in KINDS and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def apart(method: M) -> M:
    """Run a method of an optimizer without gradients and apart from what is around its call.

    Its closures find that again by ``self.around.entered()``, but for torch.compile.
    """

    @functools.wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        outer, self.around = self.around, Surroundings()
        try:
            with torch.no_grad(), torch.compiler.set_stance("force_eager"), self.around.left():
                return method(self, *args, **kwargs)
        finally:
            self.around = outer

    as_it_is = torch._disable_dynamo(run)  # pyright: ignore[reportPrivateImportUsage]
    return cast(M, as_it_is)  # also where a training loop is compiled
