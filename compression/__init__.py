"""Recipes: dense module -> candidate; what a candidate is; and its footprint."""
