"""Searches for the nearest adversarial input, instead of any within a radius."""
