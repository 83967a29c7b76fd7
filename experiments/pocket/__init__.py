"""The pocket world: a small generated English-like world and a pocket model that has read it.

`generate` makes data sets in the hub's field names; `MODEL_DIR` holds a Qwen3 of under a million
parameters, pre-trained on the world's text. A pocket score is a sanity check of the software,
never evidence about a method.
"""

from __future__ import annotations

from pathlib import Path

from experiments.pocket.generate import generate
from experiments.pocket.tasks import TASKS

MODEL_DIR = Path(__file__).parent / "model"

__all__ = ["MODEL_DIR", "TASKS", "generate"]
