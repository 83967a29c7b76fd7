"""Measurements behind the figures: each probe looks at a model and writes tidy tables.

    python -m experiments.probe structure --out FOLDER model=pocket data=pocket task=sst2

A probe is a module with plain collecting functions, which need torch (and transformers) alone and
so run on a bare GPU machine too, and three names for the command line: `HELP`, `arguments(parser)`
and `run(options, say) -> (about, tables)`, where `options.kept(name, make)` keeps a finished piece.
`show(folder)` prints what a user reads, where there is something. Drawing is done by `analysis`,
from the files alone.
"""
