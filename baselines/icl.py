"""In-context learning: the model as it is, behind answered training examples.

As in MeZO's protocol each question has its own random demonstrations. The optimizer only says how
many; putting them in front is the runner's work (experiments/data/demonstrations.py), because it
is a matter of text.
"""

from __future__ import annotations

from torch import nn

from baselines.zero_shot import ZeroShot


class ICL(ZeroShot):
    """Evaluates only, behind `demonstrations` examples (fewer where the context is too short)."""

    def __init__(self, model: nn.Module, demonstrations: int = 32) -> None:
        if demonstrations < 1:
            raise ValueError(f"demonstrations={demonstrations}: allowed are 1 or more")
        super().__init__(model)
        self.demonstrations = demonstrations
