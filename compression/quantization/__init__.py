"""Fewer bits for weights and activations: grids, calibration, training under rounding, and the layers that ship."""
