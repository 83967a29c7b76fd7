"""Preparing: what is made, and looked at, before the first step.

_ready       once it is known what is tuned: the sampler, and float32 copies
calibrate    batches that a method or its scope wants to see first
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from agzo.directions.sampler import NOISES, DirectionSampler, Gaussian
from agzo.directions.seen import OnSeenRows, SeenTokens
from agzo.distributed.group import Group
from agzo.guard import Guard
from agzo.progress import Progress
from agzo.torch_calls.inputs import is_low_precision
from agzo.torch_calls.surroundings import Closure, apart
from agzo.tuned.scope import Scope
from agzo.tuned.select import Tuned


class Preparing(Progress):
    """The part of a `ZeroOrderOptimizer` that prepares."""

    model: nn.Module
    tuned: list[Tuned]
    embeddings: str
    noise: str
    update: str
    large_state: bool
    rounding: str
    group: Group
    _guard: Guard
    scope: Scope
    _forward: Any
    _refuse_large_state: Callable[[int], None]
    _seen: SeenTokens | None = None  # the rows of tables that a batch looks up

    def _ready(self) -> None:
        """Make what depends on which parameters are tuned: sampler and float32 copies."""
        self.tuned = self.scope.narrow(self.tuned)
        own = {each.parameter for each in self.tuned}
        for group in self.param_groups:
            group["params"] = [each for each in group["params"] if each in own]
        self._zo["settings"] |= self.scope.settings
        self._names = {each.parameter: each.name for each in self.tuned}
        self._aim()
        if self.rounding == "master":
            for each in self.tuned:
                if is_low_precision(each.parameter.dtype):
                    self.state[each.parameter]["master"] = each.parameter.detach().float()

    def _aim(self) -> None:
        """Make the sampler of what is tuned, and refuse moments that are too large for it."""
        self._guard.follow(self.tuned)
        self._sampler: DirectionSampler = self._make_sampler()
        self._sampler.dense = NOISES[self.noise]
        tables = [each for each in self.tuned if each.role == "embedding"]
        self._seen = (
            SeenTokens(tables, self.group) if self.embeddings == "seen" and tables else None
        )
        if self._seen is not None:
            self._sampler = OnSeenRows(self._sampler, self._seen)
        rehearsal = self.tuned[0].device.type == "meta"  # which says nothing of memory
        if not self.large_state and not rehearsal:
            self._refuse_large_state(sum(each.numel() for each in self.model.parameters()))

    def _make_sampler(self) -> DirectionSampler:
        return Gaussian()

    @property
    def wants_batches(self) -> int:
        """Training batches that `calibrate` wants to see before the first step."""
        return self.scope.wants_batches

    @property
    def calibrated(self) -> dict[str, Any] | None:
        """What `calibrate` found, for the record of a run."""
        return self.scope.found

    @apart
    def calibrate(self, batches: Sequence[tuple[Closure, Tensor | None]]) -> None:
        """Look at `wants_batches` batches, (closure, token mask) each, before the first step.

        For methods that choose once what to tune or where to look; most have no need.
        """
        missing = self.scope.missing is not None
        self._guard.refuse_dropout()
        if self.scope.wants_batches:  # the batches may be the method's own wish
            self.scope.look(batches, self._forward)
        if missing:
            self._ready()
