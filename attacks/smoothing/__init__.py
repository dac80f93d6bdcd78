"""Randomised smoothing: the share of records that a model under noise is certain to get right within a radius."""
