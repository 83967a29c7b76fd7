"""The paper's theory, each statement measured on the library's own samplers and estimators.

    python -m experiments.theory [--out FOLDER] [--confidence 0.999] [--seed 0]

A claim (`projection`, `bias`, `cosine`, `activations`, `batches`) builds a small problem whose
gradient is known exactly, runs `ZeroOrderOptimizer.estimate` on it, and returns rows
(`evidence.Row`): what the theory says, what was measured, an interval, a verdict. Where an
assumption is broken on purpose the row says which one, and is expected to fail.

Imports torch, agzo and baselines only, and what writes a probe's files.
"""
