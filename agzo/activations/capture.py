"""Turn each linear layer's input into its basis during a forward, and keep nothing of the input.

The capture watches products of inputs and weights (`agzo.torch_calls.products`) while the closure
runs. At the first call with a wanted weight (of those that carry the batch, see
`agzo.activations.calls`) it runs SubspaceExtract at once; the activation is only referenced weakly.
Layers fed by one tensor (the same object: q/k/v, gate/up) share one basis computation. A weight
that no row enters, an expert that no token chose, gets no basis. Of a weight with several calls
that count the basis is that of all their rows, see `agzo.activations.accumulated`.

Memory: the bases, (d_in, r) float32 for each distinct input.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from agzo.activations.calls import Calls, Constants, FirstRun
from agzo.activations.subspace import leading, subspace_extract
from agzo.distributed.group import ALONE, Group
from agzo.distributed.pieces import mask_now, running
from agzo.rng import Noise
from agzo.torch_calls.inputs import BySameTensor, fits, is_transformed
from agzo.torch_calls.products import TURNS, Matrices, Role, product
from agzo.torch_calls.surroundings import Closure, exactly
from agzo.torch_calls.uses import ADDRESSES, TorchCalls, among, holds, used
from agzo.tuned.select import Tuned


class ActivationCapture(TorchCalls):
    """Collects ``bases[name]``, (d_in, r) float32, for each wanted linear weight that is used.

    Args:
        wanted: the weights of linear layers.
        rank: r; fewer tokens than r, and an input narrower than r, cap it.
        power_steps: K of Algorithm 1; None takes the exact leading directions instead.
        start: bases to begin the iteration from, by name; where there is none Omega begins it.
        noise: address of the test matrix Omega (completed by input and example).
        token_mask: boolean (batch, sequence), True for real tokens; None counts all. It applies to
            inputs of shape (batch, sequence, width) and (batch * sequence, width); others, such
            as a head's label positions, are taken whole.
        group: processes that share the batch; the bases are those of all their rows. Each must
            reach the wanted layers in the same order, so an input that some tokens alone come to
            (an expert's) is an error.
        calls: which calls count, of the weights that are not simply called once.
        shape: the token mask by which calls are told apart, where token_mask is None on purpose.
        model: whose parameters and buffers carry nothing of a batch; wanted with `calls`.

    Of a batch in pieces (`agzo.distributed.pieces`) it looks at the first.
    """

    def __init__(
        self,
        wanted: list[Tuned],
        rank: int,
        power_steps: int | None,
        noise: Noise,
        token_mask: Tensor | None,
        start: Mapping[str, Tensor] | None = None,
        group: Group = ALONE,
        calls: Mapping[str, Calls] = MappingProxyType({}),
        shape: Tensor | None = None,
        model: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self._names = {id(t.parameter): t.name for t in wanted}
        self._matrices = Matrices(t.parameter for t in wanted)
        as_head: Role = "linear"  # a table that is the head too
        self._roles = {id(t.parameter): t.role if t.inputs is not None else as_head for t in wanted}
        self._rank = rank
        self._power_steps = power_steps
        self._noise = noise
        self._mask = token_mask
        self._start = start or {}
        self._group = group
        self._calls, self._shape = calls, token_mask if shape is None else shape
        tracked = any(each.rule == "carrying" for each in calls.values())
        self._constants = Constants(model) if tracked and model is not None else None
        self._first_run = FirstRun(model) if calls and model is not None else None
        self._unmet = set(self._names)
        self.used_otherwise: set[str] = set()
        """Names of the weights that another call used before any linear layer did."""
        self._by_input: BySameTensor[Tensor] = BySameTensor()
        self._mask_used = False
        self._finite: list[Tensor] = []
        self.bases: dict[str, Tensor] = {}

    def finite(self) -> Tensor:
        """Return whether every basis is finite (0-dim bool, on the device); check the mask's use.

        Raises:
            ValueError: no input had the mask's shape.
        """
        if self._names and self._mask is not None and not self._mask_used:
            raise ValueError(
                f"token_mask of shape {tuple(self._mask.shape)} fits no linear layer's input; "
                "allowed is (batch, sequence) of the batch that the closure evaluates"
            )
        if not self._finite:
            return torch.ones((), dtype=torch.bool, device="cpu")
        return torch.stack([each.to(self._finite[0].device) for each in self._finite]).all()

    def watch(self, closure: Closure) -> Tensor:
        """Return the closure's loss, and have the bases of what it ran on."""
        with self, nullcontext() if self._first_run is None else self._first_run:
            return closure()

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Answer a call of torch."""
        found = product(func, args, kwargs)
        if found is not None:
            self._mask_used |= fits(found.x, mask_now(self._mask))  # of any layer, wanted or not
            found = self._matrices.known(found)
        if found is not None and self._roles[id(found.weight)] == found.role:
            self.see(found.x, found.weight)
        elif holds(self._unmet, args) or (kwargs and holds(self._unmet, kwargs.values())):
            self._note_other_use(func, args, kwargs)
        result = func(*args, **kwargs)
        self._matrices.follow(func, args, result)
        if self._constants is not None:
            self._constants.take_in(func, args, kwargs, result)
        return result

    def _note_other_use(self, func: Any, args: Any, kwargs: Any) -> None:
        if func not in ADDRESSES and func not in TURNS:
            other = among(self._unmet, used(func, args, kwargs))
            self.used_otherwise.update(self._names[key] for key in other)

    def wants(self, weight: Tensor) -> bool:
        """Tell whether what enters the layer with this weight is looked at."""
        return id(weight) in self._names

    def see(self, x: Tensor, weight: Tensor) -> None:
        """Look at what enters the layer with this weight, if it is wanted."""
        name = self._names.get(id(weight))
        if name is None:
            return
        self._unmet.discard(id(weight))
        if x.is_nested or is_transformed(x):
            raise ValueError(
                f"{name}: its input is a nested tensor, or torch.func (vmap, grad) runs around "
                "it; allowed are plain inputs: leave this weight out with params="
            )
        if x.numel() > 0 and (name not in self._calls or self._counts(x, self._calls[name])):
            with exactly(x.device):
                self._see(x, name)

    def _counts(self, x: Tensor, calls: Calls) -> bool:
        """Tell whether an input is one of those that the basis is of."""
        if self._first_run is not None and not self._first_run.now():
            return False
        if calls.rule == "masked":
            mask = mask_now(self._shape)
            return mask is None or fits(x, mask)
        return calls.rule == "all" or self._constants is None or self._constants.carries(x)

    def _see(self, x: Tensor, name: str) -> None:
        """Look at what enters a wanted layer."""
        now = running()
        if name not in self.bases and (now is None or now.index == 0):
            self.bases[name] = self._basis(x, name)

    def _basis(self, x: Tensor, name: str) -> Tensor:
        known = self._by_input.get(x)
        if known is not None:
            return known
        basis = self._checked(self._extract(x, name))
        self._by_input.put(x, basis)
        return basis

    def _extract(self, x: Tensor, name: str) -> Tensor:
        """Return the basis of an input, (d_in, r) float32, by Algorithm 1."""
        flat, keep, examples, positions = self._rows(x, name)
        rank = min(self._rank, flat.shape[1])
        if self._group.size == 1:
            rank = min(rank, _token_count(flat, keep, examples, rank))
        else:
            rank = self._shared_rank(rank, flat, keep)
        if self._power_steps is None:
            return leading(flat, rank, keep)
        start = self._warm(name, rank)
        omega = None if start is not None else self._omega(x, examples, positions, rank, name)
        total = self._group.sum if self._group.size > 1 else None
        return subspace_extract(flat, omega, self._power_steps, keep, start, total)

    def _rows(self, x: Tensor, name: str) -> tuple[Tensor, Tensor | None, int, int]:
        """Return an input as (tokens, d_in), which of its rows are real, and (examples, positions).

        None where all are.
        """
        flat = x.detach().reshape(-1, x.shape[-1])
        examples, positions = (x.shape[0], x.shape[1:-1].numel()) if x.dim() > 1 else (1, 1)
        if self._group.size > 1:
            self._refuse_routed(x, name)
        mask = mask_now(self._mask)
        if mask is None or not fits(x, mask):
            return flat, None, examples, positions
        self._mask_used = True
        return flat, mask.reshape(-1).to(x.device), mask.shape[0], mask.shape[1]

    def _refuse_routed(self, x: Tensor, name: str) -> None:
        """Refuse an input that is neither of all tokens of the piece nor of places in each row.

        Another process, whose tokens choose other experts, would wait at another layer.
        """
        now = running()
        mask = None if now is None else now.piece.token_mask
        if mask is None or fits(x, mask) or x.shape[0] == mask.shape[0]:
            return
        raise ValueError(
            f"{name}: an input of shape {tuple(x.shape)}, of a batch's share of "
            f"{tuple(mask.shape)} tokens, is as of an expert that only some tokens choose; with "
            f"{self._group.size} processes allowed are layers that all tokens come to: use one "
            "process, or leave this weight out with params="
        )

    def _warm(self, name: str, rank: int) -> Tensor | None:
        """Return the basis that an iteration begins with, None where Omega begins it."""
        start = self._start.get(name)
        return None if start is None or start.shape[1] != rank else start

    def _omega(self, x: Tensor, examples: int, positions: int, rank: int, name: str) -> Tensor:
        """Return the rows of the whole batch's Omega, (m, rank), that are this input's."""
        now = running()
        first = (0, 0)
        if now is not None:
            before = now.piece.before.get(positions) if examples == 1 else None
            first = (now.piece.rows, 0) if before is None else (0, before)
        omega = self._noise.table(examples, positions, rank, x.device, name, first)
        return omega.reshape(-1, rank)

    def _checked(self, basis: Tensor) -> Tensor:
        """Note whether a basis is finite, and return it with 0 where it is not.

        The step is void then, and 0 * NaN would not be 0.
        """
        finite = torch.isfinite(basis)
        self._finite.append(finite.all())
        return torch.where(finite, basis, 0.0)

    def _shared_rank(self, rank: int, flat: Tensor, keep: Tensor | None) -> int:
        """Return a rank, or the number of all processes' tokens if it is less.

        Each process has at least one, so up to one direction a process nobody need ask.
        """
        if rank <= self._group.size:
            return rank
        tokens = flat.shape[0] if keep is None else int(torch.count_nonzero(keep))
        own = torch.tensor(tokens, dtype=torch.int64, device="cpu")
        return min(rank, int(self._group.sum(own)))


def _token_count(flat: Tensor, keep: Tensor | None, examples: int, rank: int) -> int:
    """Count the tokens that may limit the rank.

    Every example has a real token, so at least `rank` examples need no look at the mask, which
    would wait for the device.
    """
    if keep is None or examples >= rank:
        return flat.shape[0]
    return int(torch.count_nonzero(keep))
