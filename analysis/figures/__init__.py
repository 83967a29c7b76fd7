"""Figures with their captions, from files alone."""
