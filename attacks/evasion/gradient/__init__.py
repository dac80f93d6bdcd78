"""Attacks that follow gradients of the model or of its twin."""
