"""How a loss is evaluated at perturbed weights: beside them, in place, compiled, streamed."""
