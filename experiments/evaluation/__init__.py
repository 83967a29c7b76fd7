"""Scores: options, generation, metrics, and what a run does to other text."""
