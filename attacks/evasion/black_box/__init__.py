"""Attacks that see answers only, or inputs made on another model."""
