"""Extraction: a copy of the model from its answers."""
