"""Training-time, compression-time and inference-time defenses, each with the adaptive attack that knows it."""
