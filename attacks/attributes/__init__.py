"""Attribute inference: what a model adds to guessing a secret column of a record of which the rest is known."""
