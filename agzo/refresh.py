"""When bases are taken from a batch, and in which steps they are used.

| refresh_every | lagged | the bases of step t are of the batch of step                         |
|---------------|--------|----------------------------------------------------------------------|
| 1             | no     | t (the paper)                                                        |
| n             | no     | t - t mod n: each set serves n steps                                 |
| n             | yes    | the step before that one; before step n the first batch's own        |
| None          | no     | 0: one-shot, the first batch's bases serve the whole run             |

A step's own bases must be there before it perturbs, so a two-sided step pays a forward for them.
Those for a later step are taken in a forward that is made anyway.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Refresh:
    """The schedule of bases: every how many steps (None: once), and one step late if `lagged`."""

    every: int | None
    lagged: bool = False

    def source(self, step: int) -> int:
        """Return the step from whose batch the bases of `step` are."""
        if self.every is None:
            return 0
        return max(0, step - step % self.every - int(self.lagged))

    def own(self, step: int) -> bool:
        """Tell whether `step` perturbs inside bases of its own batch."""
        return self.source(step) == step

    def takes(self, step: int) -> bool:
        """Tell whether bases are taken from the batch of `step`, for it or for a later step."""
        if self.every is None:
            return step == 0
        return step == 0 or (step + int(self.lagged)) % self.every == 0

    def new(self, step: int) -> bool:
        """Tell whether the bases of `step` are others than those of the step before."""
        return step == 0 or self.source(step) != self.source(step - 1)
