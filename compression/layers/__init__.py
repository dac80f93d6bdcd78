"""Layers of a module: found, replaced, folded, and attention taken apart into plain layers."""
