"""The benchmark: what a step costs in units of two plain forwards, in time and in memory.

    python -m experiments.bench                          # ~60M-parameter Qwen3, fp32, 16 x 64
    python -m experiments.bench --device cuda            # Qwen3-0.6B and 1.7B shapes
    python -m experiments.bench --sweep length,batch,rank,size
    python -m experiments.bench.evaluation               # examples per second of evaluation
    python -m experiments.bench.time_to_loss OUT.json    # seconds to a dev loss, and as published

`shapes` and `losses` make the models and the work, `methods` lists what is measured, `plan` which
cases, `measure` measures one, `targets` says what it should cost, `table` and `record` print and
keep it. Needs torch and transformers alone, so that it runs on a bare GPU machine; drawing is
`analysis.figures.step_cost`, from the JSON. `time_to_loss`, with `loss_curve` and `along`, is
apart: it trains a real model on a CPU, and needs all that a run needs.
"""

from experiments.bench.methods import EPS, LR, METHODS
from experiments.models.shapes import SHAPES

__all__ = ["EPS", "LR", "METHODS", "SHAPES"]
