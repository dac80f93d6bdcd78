"""Whether a finished file came from the dense model by the recipe that it declares."""
