"""A smaller student that is trained to answer as the dense model does."""
