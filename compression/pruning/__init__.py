"""Weights, channels and heads taken away: what counts as unimportant, and what is trained afterwards."""
