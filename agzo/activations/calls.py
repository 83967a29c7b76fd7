"""Which calls of a linear weight carry the batch, where there are several in one forward.

A weight may be used more than once: layers that share it, a loop over time, an answer that is
generated token by token. And not every use is of the batch: DoRA multiplies its factors with
``torch.eye`` to know a norm. The basis of a weight is that of the rows that

    fit the token mask                     where some call's do
    carry something of the batch           else: they come of a tensor that is neither made inside
                                           of the closure of nothing, nor a parameter or a buffer
    enter in any call                      where none carries anything

Where a closure runs the model several times, as one that generates does, the first run is looked
at. Most weights are called once; of them nothing is kept, and they cost nothing.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from agzo.distributed.pieces import mask_now, running
from agzo.torch_calls.inputs import fits, tensors
from agzo.torch_calls.products import Matrices
from agzo.torch_calls.uses import TorchCalls
from agzo.tuned.linears import plain_name

Rule = Literal["masked", "carrying", "all"]


@dataclass(frozen=True)
class Calls:
    """Of a weight that is not simply called once: which calls count, and if these are several."""

    rule: Rule
    several: bool


class FirstRun:
    """Tells, while it is entered, whether a model is at its first run of a piece of the batch."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self._runs, self._piece = model, 0, 0

    def __enter__(self) -> FirstRun:
        self._runs = self._piece = 0
        self._handle = self._model.register_forward_pre_hook(self._begin)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def now(self) -> bool:
        """Tell whether this is the first run; also where no run was seen to begin."""
        return self._runs <= 1

    def _begin(self, *_: object) -> None:
        now = running()
        before, self._piece = self._piece, 0 if now is None else now.index
        self._runs = self._runs + 1 if self._piece == before else 1


class Constants:
    """Tells tensors that carry nothing of the batch, as torch's calls make them."""

    def __init__(self, model: nn.Module) -> None:
        self._own = {id(each) for each in (*model.parameters(), *model.buffers())}
        self._made: dict[int, weakref.ref[Tensor]] = {}

    def carries(self, x: Tensor) -> bool:
        """Tell whether a tensor carries something of the batch."""
        made = self._made.get(id(x))
        return id(x) not in self._own and (made is None or made() is not x)

    def take_in(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Take in a call and what it returned."""
        given = tensors((args, kwargs))
        if not any(self.carries(each) for each in given):
            self._made.update({id(each): weakref.ref(each) for each in tensors(result)})
        elif getattr(func, "__name__", "").endswith("_"):  # in place, as __setitem__ is too
            for each in given:
                self._made.pop(id(each), None)


class LinearCalls(TorchCalls):
    """Watches a forward, and tells of each linear weight how it is called.

    Args:
        model: whose matrices are looked at, and whose parameters and buffers carry nothing of a
            batch.
        mask: boolean (batch, sequence), of the batch; None where there is none.

    Of a batch in pieces it looks at the first.
    """

    def __init__(self, model: nn.Module, mask: Tensor | None) -> None:
        super().__init__()
        self._constants, self.first_run = Constants(model), FirstRun(model)
        named = {name: p for name, p in model.named_parameters() if p.dim() == 2}
        self._names = {id(matrix): plain_name(name) for name, matrix in named.items()}
        self._matrices, self._mask = Matrices(named.values()), mask
        self._seen: dict[str, list[tuple[bool, bool]]] = {}  # (fits, carries) of each call

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Answer a call of torch."""
        result = func(*args, **kwargs)
        self._matrices.follow(func, args, result)
        found = self._matrices.times(func, args, kwargs)
        if found is not None:
            now = running()
            if (now is None or now.index == 0) and self.first_run.now():
                seen = self._seen.setdefault(self._names[id(found.weight)], [])
                mask = mask_now(self._mask)
                seen.append((fits(found.x, mask), self._constants.carries(found.x)))
        self._constants.take_in(func, args, kwargs, result)
        return result

    def found(self) -> dict[str, Calls]:
        """Return the weights that are not simply called once."""
        return {name: _of(seen) for name, seen in self._seen.items() if len(seen) > 1}


def _of(seen: list[tuple[bool, bool]]) -> Calls:
    fitting, carrying = sum(fit for fit, _ in seen), sum(carries for _, carries in seen)
    if fitting:
        return Calls("masked", fitting > 1)
    if carrying:
        return Calls("carrying", carrying > 1)
    return Calls("all", True)
