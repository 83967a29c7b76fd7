"""What each tuned weight is to the model: guessed at first, settled by the first step's forward.

Until that step has been taken, what a forward has shown is provisional: that of a look, of a step
that raised, or of one that is staged says nothing about the step that comes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from agzo.directions.activation_subspace import ActivationSubspace
from agzo.distributed.pieces import Joint
from agzo.optimizer import ZeroOrderOptimizer
from agzo.progress import ENTRY
from agzo.torch_calls.products import Role
from agzo.tuned.roles import Usage
from agzo.tuned.select import Tuned


class Settling(ZeroOrderOptimizer):
    """The part of an `AGZO` that finds out which weights are linear layers'."""

    _subspace: ActivationSubspace
    _settled: bool = False  # whether a forward has shown what the tuned parameters are
    _unsettled: list[Tuned] | None = None  # the guesses before that, while it is provisional

    def settle(self, usage: Usage) -> None:
        """Take each tuned parameter for what a forward has shown it to be, see `agzo.tuned.roles`.

        The first step does so with its own batch; a run does before, to say what it will move.
        """
        self._settle({each.name: usage.role(each.parameter, each.role) for each in self.tuned})

    def _settle(self, roles: Mapping[str, Role]) -> None:
        before, self._settled, self._unsettled = self.tuned, True, None
        self.tuned = [replace(each, role=roles.get(each.name, each.role)) for each in before]
        if [each.role for each in before] != [each.role for each in self.tuned]:
            learnt = self._subspace.learnt
            self._aim()
            self._subspace.learnt = learnt

    def _settle_for_now(self, usage: Usage) -> None:
        guesses = self.tuned
        self.settle(usage)
        self._unsettled = guesses

    @property
    def _guesses(self) -> list[Tuned] | None:
        """The tuned parameters as they were guessed, None where they are settled for good."""
        if not self._settled:
            return self.tuned
        return self._unsettled if self._zo["step"] == 0 else None

    def _check(self, closure: Joint) -> None:
        guesses = self._guesses
        if guesses is not None and self._settled:
            self.tuned, self._settled = guesses, False
            self._aim()
        with Usage(each.parameter for each in self.tuned) as usage:
            super()._check(closure)
        if not self._settled:
            self._settle_for_now(usage)

    @contextmanager
    def _only_looking(self, batch: Joint) -> Iterator[None]:
        if not self._settled:
            usage = Usage(each.parameter for each in self.tuned)
            with usage, self._subspace.learn(batch.token_mask):
                self._run(batch)
            self._settle_for_now(usage)
        with super()._only_looking(batch):
            yield

    def live_state(self) -> dict[str, Any]:
        """Return torch's state dict, to write at once; what weights are is in its entry "zo"."""
        state, guesses = super().live_state(), self._guesses
        roles = {each.name: each.role for each in guesses or self.tuned}
        state["state"][ENTRY] |= {"roles": roles, "settled": guesses is None}
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned, and what weights are to the model."""
        super().load_state_dict(state_dict)
        self._settle(self._zo.pop("roles", {}))
        self._settled = self._zo.pop("settled", True)
