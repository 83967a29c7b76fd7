"""The language model of a run: loaded, adapted, quantised, spread, saved; its loss."""
