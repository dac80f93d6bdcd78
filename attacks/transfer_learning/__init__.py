"""What a compressed model is worth, and gives away, as the beginning of a model for another task."""
