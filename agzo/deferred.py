"""Updates that are put off: low-rank steps are kept as factors and written to a weight together.

    f(W + L R^T),    L (d_out, k) and R (d_in, k): what has been decided since W was written

A low-rank update reads and writes a whole weight in each step. With ``flush_every=n`` it is kept as
its two factors; evaluations add L R^T behind the product with W, beside the perturbation, and step
n, 2 n, 3 n, ... writes all that is kept in one pass. The trajectory is that of ``flush_every=1``
but for rounding. In bfloat16 and float16 weights that is a change for the better: they are rounded
once in n steps, and what each step adds is neither lost nor rounded before.

Memory: up to n r (d_out + d_in) float32 a weight (float64 beside float64 weights). An update with
the right factor of the one before (LOZO between two refreshes, AGZO with refresh_every > 1) is
added to that one's left factor and takes no room of its own.

Cost: two-sided no product more than the perturbation has, of rank k + r in place of r; in a base
forward, f(W), a thin product for each weight. A thin product passes over the layer's input and
output, an update twice over its weight, so it pays where tokens are few beside the width. Measured
with n = 16 on one core of a shared machine, float32, time of a step over that with n = 1 (a few
blocks of 16 steps, apart by .01 to .1):

    shape, batch x tokens    60M, 16 x 64    60M, 1 x 32    0.6B, 1 x 16
    AGZO, r = 1              1.03            1.09           0.98
    LOZO, r = 2              0.97            0.99           0.92

On a GPU it is not measured.

Put off are the weights of linear layers; all else (dense noise, embeddings) is written at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from agzo.direction import Direction, LowRank, at_least_float32
from agzo.kernels import thin
from agzo.perturb import Closure, Directions, Perturbed, SideBranch
from agzo.sampler import DirectionSampler
from agzo.select import Tuned


class Deferred(SideBranch):
    """Keeps updates as factors, and evaluates as if they were in the weights."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._names: dict[nn.Parameter, str] = {}
        self._kept: dict[nn.Parameter, LowRank] = {}
        self._open = True  # the last columns take an update with the right factor of the one before

    def begin(self, tuned: Sequence[Tuned], look: DirectionSampler, method: str) -> None:
        """Put off the updates of those linear weights that move along low-rank directions."""
        linear = [each for each in tuned if each.role == "linear"]
        self._names = {each.parameter: each.name for each in linear if look.sizes(each)[1] > 0}
        if not self._names:
            raise ValueError(
                f"flush_every={self._every}: {method} moves no weight of a linear layer along a "
                "low-rank direction here; allowed is 1"
            )

    def __contains__(self, parameter: nn.Parameter) -> bool:
        """Tell whether the updates of a parameter are put off."""
        return parameter in self._names

    @torch.no_grad()
    def unperturbed(self, closure: Closure) -> Tensor:
        """Return ``closure()`` at W + L R^T."""
        if not self._kept:
            return closure()
        with Perturbed(self._kept, 1.0):
            return closure()

    @torch.no_grad()
    def evaluate(self, closure: Closure, directions: Directions, scale: float) -> Tensor:
        """Return the loss at W + L R^T + scale * direction; see `Execution.evaluate`."""
        with _Beside(self._kept, directions, scale):
            return closure()

    def put_off(
        self, parameter: nn.Parameter, steps: Sequence[tuple[Direction, Tensor]], new_right: bool
    ) -> None:
        """Keep ``sum(c * direction)`` of low-rank directions that share one right factor.

        Args:
            parameter: one that is in this object.
            steps: (direction, c) pairs; c is a 0-dim tensor on the weight's device.
            new_right: the right factor may be another than that of the update before.
        """
        exact = at_least_float32(parameter.dtype)
        left, right = torch.zeros((), dtype=exact, device=parameter.device), None
        for direction, c in steps:
            assert isinstance(direction, LowRank)
            left = left + thin.rows(direction.left).to(exact) * c  # (r, d_out)
            right = thin.rows(direction.right).to(exact)
        assert right is not None
        kept = self._kept.get(parameter)
        if kept is not None and self._open and not new_right:
            rest, last = kept.left.T.split([kept.left.shape[1] - len(left), len(left)])
            self._kept[parameter] = LowRank(torch.cat([rest, last + left]).T, kept.right)
            return
        lefts, rights = ([], []) if kept is None else ([kept.left.T], [kept.right.T])
        left, right = torch.cat([*lefts, left]), torch.cat([*rights, right])  # both are copies
        self._kept[parameter] = LowRank(left.T, right.T)

    def due(self, step: int) -> bool:
        """Tell, once all updates of step `step` (from 0) are put off, whether to write them."""
        self._open = True
        return (step + 1) % self._every == 0

    def close(self) -> None:
        """Let the next update begin new columns, whatever its right factor is said to be."""
        self._open = False

    def take(self) -> dict[nn.Parameter, LowRank]:
        """Return what is kept, and keep it no longer."""
        kept, self._kept = self._kept, {}
        return kept

    def state_dict(self) -> dict[str, Any]:
        """Return what is kept, by the weights' names, as rows (k, d_out) and (k, d_in)."""
        kept = {self._names[p]: (each.left.T, each.right.T) for p, each in self._kept.items()}
        return {"kept": kept, "open": self._open}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Keep what `state_dict` returned, each on its weight's device; nothing for None.

        Raises:
            ValueError: it has updates of a weight that is none of these, or has another shape.
        """
        here = {name: parameter for parameter, name in self._names.items()}
        self._kept, self._open = {}, True
        if state is None:
            return
        for name, rows in state["kept"].items():
            found, shape = here.get(name), tuple(each.shape[1] for each in rows)
            if found is None or found.shape != shape:
                has = "none" if found is None else f"{tuple(found.shape)}"
                raise ValueError(
                    f"flush_every={self._every}: the loaded state puts off updates of {name}, "
                    f"{shape}; allowed are tuned linear weights of that shape, here is {has}"
                )
            left, right = (each.clone().to(found.device) for each in rows)
            self._kept[found] = LowRank(left.T, right.T)
        self._open = state["open"]


class _Beside(Perturbed):
    """As `Perturbed`, with what is kept of a weight added to its direction."""

    def __init__(self, kept: Directions, directions: Directions, scale: float) -> None:
        super().__init__(directions, scale)
        self._kept = kept

    def direction(self, value: Tensor) -> Direction | None:
        direction = super().direction(value)
        parameter = self._parameters.get(id(value))
        kept = None if parameter is None else self._kept.get(parameter)
        if kept is None:
            return direction
        assert isinstance(direction, LowRank)
        assert isinstance(kept, LowRank)
        left = torch.cat([direction.left.T, kept.left.T / self.scale])  # (r + k, d_out)
        return LowRank(left.T, torch.cat([direction.right.T, kept.right.T]).T)


def check_deferred(
    flush_every: int, execution: str, streamed: bool, groups: Sequence[Mapping[str, Any]]
) -> None:
    """Refuse what updates cannot be put off with."""
    if execution != "side_branch":
        raise ValueError(
            f"flush_every={flush_every}: with execution={execution!r} allowed is 1 (above 1 "
            "execution='side_branch', which adds to an output what is not in its weight)"
        )
    if streamed:
        raise ValueError(
            f"flush_every={flush_every}: with streamed layers allowed is 1; each is written anyway "
            "when it is there"
        )
    check_no_decay(flush_every, groups)


def check_no_decay(flush_every: int, groups: Sequence[Mapping[str, Any]]) -> None:
    """Refuse weight decay: it changes a weight in each step."""
    for group in groups:
        if group["weight_decay"]:
            raise ValueError(
                f"flush_every={flush_every}: with weight_decay={group['weight_decay']} allowed is "
                "1; decay writes each weight in each step"
            )
