"""AGZO's sampler: a linear weight moves inside the leading directions of its layer's input."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from agzo.activations.accumulated import AccumulatedCapture
from agzo.activations.calls import Calls, LinearCalls
from agzo.activations.capture import ActivationCapture
from agzo.directions.direction import Direction
from agzo.directions.low_rank import LowRank, still
from agzo.directions.sampler import Gaussian, check_rank, input_side, width_of
from agzo.distributed.group import ALONE, Group
from agzo.rng import Noise
from agzo.tuned.coordinates import Moved
from agzo.tuned.select import Tuned


class ActivationSubspace(Gaussian):
    """AGZO's sampler: Delta = R A^T (Eq. 10), R ~ N(0, 1) of shape (d_out, r), unscaled.

    E|Delta|^2 = d_out r, and the mean estimate of a gradient G is its projection G A A^T. A weight
    that no row of the batch enters, whose gradient is zero, has the direction zero until the next
    bases are taken.

    Args:
        linear: the linear weights that get a basis, and the tables that get one where they are a
            head (embeddings="seen").
        rank, power_steps: r and K of Algorithm 1; K = None takes the exact leading directions.
        refresh_every: steps between new bases; None keeps the first ones.
        include_padding: count padding tokens too, as the author's prototype does.
        warm_start: begin each power iteration with the bases before, not with Omega.
        group: processes that share a batch.
        accumulated: how bases are taken from several micro-batches, see
        `agzo.activations.accumulated`.
        model: holds the weights; wanted by `learn`.
    """

    def __init__(
        self,
        linear: list[Tuned],
        rank: int,
        power_steps: int | None,
        refresh_every: int | None,
        include_padding: bool,
        warm_start: bool = False,
        group: Group = ALONE,
        accumulated: str = "first",
        model: nn.Module | None = None,
    ) -> None:
        check_rank(rank, {each.name: width_of(each) for each in linear}, "input of a linear layer")
        self._model = nn.Module() if model is None else model
        self._linear = linear
        self._rank = rank
        self._power_steps = power_steps
        self._refresh_every = refresh_every
        self._include_padding = include_padding
        self._warm_start = warm_start
        self._group = group
        self._accumulated = accumulated
        self.bases: dict[str, Tensor] = {}
        """Of the last step that took some."""
        self._taken: ActivationCapture | None = None  # by what is measured, which may yet fail
        self.learnt: dict[str, Calls] = {}
        """How matrices are called that are not simply called once in a forward."""
        self._used_otherwise: set[str] = set()  # by other calls, while bases were taken last

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_taken": None}  # a copy has nothing of a step that is staged

    @property
    def calls(self) -> dict[str, Calls]:
        """How the weights that get a basis are called, where not simply once in a forward."""
        names = {each.name for each in self._linear}
        return {name: each for name, each in self.learnt.items() if name in names}

    def capture(self, noise: Noise, token_mask: Tensor | None) -> ActivationCapture | None:
        """Return a capture that takes new bases, None where none are due.

        An optimizer that has no bases yet takes them at any step.
        """
        self._taken = None
        if self.bases and not takes_bases(noise.step, self._refresh_every):
            return None
        whole = self._accumulated != "first"
        calls = self.calls
        in_parts = whole or any(each.several for each in calls.values())
        self._taken = self._kind(whole, in_parts)(
            self._linear,
            self._rank,
            self._power_steps,
            noise,
            None if self._include_padding else token_mask,
            self.bases if self._warm_start else None,
            self._group,
            calls=calls,
            shape=token_mask,
            model=self._model,
        )
        return self._taken

    @property
    def now(self) -> dict[str, Tensor]:
        """The bases of what is measured now."""
        return self.bases if self._taken is None else self._taken.bases

    def stepped(self) -> None:
        """Keep the bases of a step that was taken."""
        if self._taken is not None:
            self.bases, self._used_otherwise = self._taken.bases, self._taken.used_otherwise
            self._taken = None

    def _kind(self, whole: bool, in_parts: bool) -> Callable[..., ActivationCapture]:
        """Return what makes a capture: of inputs in parts, and of those of all micro-batches."""
        return partial(AccumulatedCapture, whole) if in_parts else ActivationCapture

    @contextmanager
    def learn(self, token_mask: Tensor | None) -> Iterator[None]:
        """Learn from a forward how matrices are called, as a weight or not."""
        watch = LinearCalls(self._model, token_mask)
        with watch, watch.first_run:
            yield
        self.learnt = watch.found()

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Drop the bases that a look takes; a step that is staged keeps its own."""
        before = self._taken
        try:
            yield
        finally:
            self._taken = before

    def sample(self, tuned: Tuned, noise: Noise) -> Direction:
        """Return R A^T for a linear weight, dense noise for the rest."""
        if tuned.inputs is None:
            return super().sample(tuned, noise)
        if tuned.name not in self.now:
            self._refuse_without_basis(tuned)
            return still(tuned.parameter.shape, tuned.device)
        return self._inside(tuned, noise)

    def _refuse_without_basis(self, tuned: Tuned) -> None:
        """Raise ValueError unless no row of the batch entered the weight, which may be."""
        taken = self._taken
        if tuned.name in (self._used_otherwise if taken is None else taken.used_otherwise):
            raise ValueError(
                f"no basis for {tuned.name}: no product of an input with this weight was seen in "
                "the captured forward; exclude it with params="
            )
        if self._refresh_every is None:
            raise ValueError(
                f"refresh_every=None: no token of the first batch reaches {tuned.name}, and its "
                "bases are all there ever are; allowed are a number of steps, or params= without it"
            )
        if self._group.size > 1:
            raise ValueError(
                f"no basis for {tuned.name}: no token of this process's share reaches it; with "
                f"{self._group.size} processes allowed are layers that all tokens come to: use one "
                "process, or leave this weight out with params="
            )

    def head(self, tuned: Tuned, noise: Noise) -> LowRank | None:
        """Return R A^T of a table, A the basis of what enters it as a head; see `seen`."""
        return self._inside(tuned, noise) if tuned.name in self.now else None

    def _inside(self, tuned: Tuned, noise: Noise) -> LowRank:
        basis = self.now[tuned.name]  # (d_in, r) orthonormal columns
        d_out = tuned.parameter.shape[1 - input_side(tuned)]
        drawn = noise.columns(d_out, basis.shape[1], basis.device, tuned.name, "left")
        return LowRank.of(drawn, basis, tuned.inputs)

    def sizes(self, tuned: Tuned) -> tuple[int, int]:
        """Count the values of R, (d_out, r), and A, (d_in, r), or of dense noise."""
        if tuned.inputs is None:
            return super().sizes(tuned)
        d_in, d_out = width_of(tuned), tuned.parameter.shape[1 - tuned.inputs]
        rank = min(self._rank, d_in)
        return d_out * rank, d_in * rank

    def kept(self, tuned: Tuned) -> int:
        """Count the values of A, (d_in, r), of a linear weight or of a table that is a head."""
        if all(each.parameter is not tuned.parameter for each in self._linear):
            return 0
        return width_of(tuned) * min(self._rank, width_of(tuned))

    def moved(self, tuned: Tuned) -> Moved:
        """Say that a linear weight moves in a basis, of its input's width at most."""
        if tuned.inputs is None:
            return super().moved(tuned)
        rank = min(self._rank, width_of(tuned))
        return Moved(tuned.name, tuned.parameter.numel(), inside=True, rank=rank, asked=self._rank)


def takes_bases(step: int, refresh_every: int | None) -> bool:
    """Tell whether new bases are taken at `step`: every so many steps, or (None) once, at first."""
    return step == 0 if refresh_every is None else step % refresh_every == 0
